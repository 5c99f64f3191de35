// Launches for one dtype: included by one translation unit a dtype (float32.cu, ...) and by the host run.
#pragma once

#include "cuda/conv_kernel.cuh"
#include "cuda/scan_kernel.cuh"

namespace mscope {

// Blocks in a row along x, and the shared memory of each; more than kSharedUnasked must be asked for.
struct Grid {
  int64_t blocks;
  int threads;
  int shared_bytes = 0;
  int shared_limit = 0;  // the most that a block may have on this device
};
constexpr int kSharedUnasked = 48 * 1024;

#if defined(__CUDACC__)

// The status of this launch and of nothing else: cudaGetLastError would tell an earlier call's failure again.
template <class... Parameters>
int launch(void (*kernel)(Parameters...), const Grid& grid, cudaStream_t stream, const Parameters&... arguments) {
  const void* const entry = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaSuccess;
  // Always the same number: a smaller one that another thread sets for its own launch would refuse this one.
  if (grid.shared_bytes > kSharedUnasked)
    error = cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_limit);
  if (error == cudaSuccess) {
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    error = cudaLaunchKernel(entry, dim3(static_cast<unsigned>(grid.blocks)), dim3(static_cast<unsigned>(grid.threads)),
                             pointers, static_cast<size_t>(grid.shared_bytes), stream);
  }
  if (error != cudaSuccess) cudaGetLastError();  // it has been told
  return error;
}

#else

template <class... Parameters>
int launch(void (*kernel)(Parameters...), const Grid& grid, cudaStream_t, const Parameters&... arguments) {
  if (grid.blocks < 1 || grid.blocks >= int64_t{1} << 31 || grid.threads < 1 || grid.threads > 1024 ||
      grid.shared_bytes > (grid.shared_limit > kSharedUnasked ? grid.shared_limit : kSharedUnasked))
    return mscope_emulation::no_such_launch;
  return mscope_emulation::run(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.threads),
                               static_cast<size_t>(grid.shared_bytes), [&] { kernel(arguments...); });
}

#endif

template <class T, bool SUMMARY>
int launch_pass(const MscopeScanParams& p, const ScanPlan& plan, cudaStream_t stream) {
  const Grid grid{plan.blocks, plan.threads, plan.shared_bytes, plan.shared_limit};
  switch (plan.layout) {
    case Layout::wide:  // never cut into segments, so never summarised
      if (SUMMARY) return MSCOPE_BAD_SIZE;
      return launch(scan_kernel<T, layout_lanes(Layout::wide), layout_states(Layout::wide), false>, grid, stream, p,
                    plan);
    case Layout::dense:
      return launch(scan_kernel<T, layout_lanes(Layout::dense), layout_states(Layout::dense), SUMMARY>, grid, stream, p,
                    plan);
    case Layout::small:
      return launch(scan_kernel<T, layout_lanes(Layout::small), layout_states(Layout::small), SUMMARY>, grid, stream, p,
                    plan);
  }
  return MSCOPE_BAD_SIZE;
}

template <class T>
int launch_scan(const MscopeScanParams& p, const ScanPlan& plan, cudaStream_t stream) {
  if (plan.segments > 1) {
    const int status = launch_pass<T, true>(p, plan, stream);
    if (status != MSCOPE_OK) return status;
  }
  return launch_pass<T, false>(p, plan, stream);
}

template <class T>
int launch_conv(const MscopeConvParams& p, cudaStream_t stream) {
  return launch(conv_kernel<T>, Grid{conv_blocks(p), kConvThreads}, stream, p);
}

}  // namespace mscope

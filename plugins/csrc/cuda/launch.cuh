// Launches for one dtype: included by one translation unit a dtype (float32.cu, ...) and by the host run.
#pragma once

#include "cuda/conv_kernel.cuh"
#include "cuda/scan_kernel.cuh"

namespace mscope {

#if defined(__CUDACC__)

template <class Kernel, class... Arguments>
int launch(Kernel kernel, int64_t blocks, int threads, int shared_bytes, cudaStream_t stream,
           const Arguments&... arguments) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes), stream>>>(
      arguments...);
  return cudaGetLastError();
}

#else

template <class Kernel, class... Arguments>
int launch(Kernel kernel, int64_t blocks, int threads, int shared_bytes, cudaStream_t, const Arguments&... arguments) {
  return mscope_emulation::run(static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                               static_cast<size_t>(shared_bytes), [&] { kernel(arguments...); });
}

#endif

template <class T, bool SUMMARY>
int launch_pass(const MscopeScanParams& p, const ScanPlan& plan, cudaStream_t stream) {
  switch (plan.layout) {
    case Layout::wide:  // never cut into segments, so never summarised
      if (SUMMARY) return MSCOPE_BAD_SIZE;
      return launch(scan_kernel<T, layout_lanes(Layout::wide), layout_states(Layout::wide), false>, plan.blocks,
                    plan.threads, plan.shared_bytes, stream, p, plan);
    case Layout::dense:
      return launch(scan_kernel<T, layout_lanes(Layout::dense), layout_states(Layout::dense), SUMMARY>, plan.blocks,
                    plan.threads, plan.shared_bytes, stream, p, plan);
    case Layout::small:
      return launch(scan_kernel<T, layout_lanes(Layout::small), layout_states(Layout::small), SUMMARY>, plan.blocks,
                    plan.threads, plan.shared_bytes, stream, p, plan);
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
  return launch(conv_kernel<T>, conv_blocks(p), kConvThreads, 0, stream, p);
}

}  // namespace mscope

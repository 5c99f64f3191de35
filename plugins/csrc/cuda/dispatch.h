// From parameters and a dtype to the kernels: checks, plan, and the one switch over dtypes. No framework; the C
// interface, the TensorRT plugin and the host run call these.
#pragma once

#include <type_traits>

#include "cuda/params.h"
#include "cuda/plan.h"
#include "cuda/portable.cuh"
#include "cuda/storage.cuh"

namespace mscope {

// launch.cuh defines these; float32.cu and its kin instantiate them.
template <class T>
int launch_scan(const MscopeScanParams& p, const ScanPlan& plan, cudaStream_t stream);
template <class T>
int launch_conv(const MscopeConvParams& p, cudaStream_t stream);

// Returns call(T*) for the type that `dtype` names.
template <class Call>
int for_dtype(int dtype, const Call& call) {
  switch (dtype) {
    case MSCOPE_FLOAT32:
      return call(static_cast<float*>(nullptr));
    case MSCOPE_FLOAT16:
      return call(static_cast<Half*>(nullptr));
    case MSCOPE_BFLOAT16:
      return call(static_cast<BFloat*>(nullptr));
    default:
      return MSCOPE_BAD_DTYPE;
  }
}

inline int plan_for(const MscopeScanParams& p, int dtype, const MscopeMachine& machine, ScanPlan& plan) {
  return for_dtype(dtype, [&](auto* type) { return plan_scan(p, sizeof *type, machine, plan); });
}

inline int run_scan(const MscopeScanParams& p, int dtype, const MscopeMachine& machine, cudaStream_t stream) {
  ScanPlan plan;
  const int status = plan_for(p, dtype, machine, plan);
  if (status != MSCOPE_OK || p.batch == 0) return status;
  for (int64_t i = 0; i < p.directions; ++i) {
    const MscopeScanDirection& d = p.direction[i];
    if (!d.x.data || !d.delta.data || !d.B.data || !d.C.data || !d.A || !d.D) return MSCOPE_BAD_POINTER;
    if (p.rank > 0 && !d.dt_weight) return MSCOPE_BAD_POINTER;
    if (p.directions == 2 && d.reverse != i) return MSCOPE_BAD_SIZE;
  }
  if (!p.y.data) return MSCOPE_BAD_POINTER;
  if (p.workspace_bytes < workspace_bytes(plan)) return MSCOPE_SMALL_WORKSPACE;
  if (workspace_bytes(plan) > 0 && !p.workspace) return MSCOPE_BAD_POINTER;
  return for_dtype(dtype,
                   [&](auto* type) { return launch_scan<std::remove_pointer_t<decltype(type)>>(p, plan, stream); });
}

inline int run_conv(const MscopeConvParams& p, int dtype, cudaStream_t stream) {
  const int64_t limit = int64_t{1} << 30;
  if (p.batch < 0 || p.length < 1 || p.channels < 1) return MSCOPE_BAD_SIZE;
  if (p.batch > limit || p.length > limit || p.channels > limit) return MSCOPE_BAD_SIZE;
  if (!plan_detail::countable(p.batch, p.length, p.channels)) return MSCOPE_BAD_SIZE;
  if (p.width < 2 || p.width > kConvTaps) return MSCOPE_BAD_WIDTH;
  if (p.batch > 0 && conv_blocks(p) >= (int64_t{1} << 31)) return MSCOPE_BAD_SIZE;
  if (p.batch == 0) return for_dtype(dtype, [](auto*) { return static_cast<int>(MSCOPE_OK); });
  if (!p.x.data || (!p.weight && !p.weight_b)) return MSCOPE_BAD_POINTER;
  if (p.weight && (!p.bias || !p.y.data)) return MSCOPE_BAD_POINTER;
  if (p.weight_b && (!p.bias_b || !p.y_b.data)) return MSCOPE_BAD_POINTER;
  return for_dtype(dtype, [&](auto* type) { return launch_conv<std::remove_pointer_t<decltype(type)>>(p, stream); });
}

}  // namespace mscope

// By itself: drivers older than CUDA 12.4 do not know cudaGraphSetConditional and cannot load this file's code, which must
// not take the other kernels with it.
#include "cuda/select_kernel.cuh"

#include "cuda/api.h"
#include "cuda/device_scope.h"

int mscope_cuda_select(const MscopeSelectParams* p, int device, void* stream) {
  const mscope::DeviceScope scope(device);
  if (scope.status() != cudaSuccess) return scope.status();
  return mscope::run_select(*p, static_cast<cudaStream_t>(stream));
}

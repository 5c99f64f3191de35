#include "cuda/resample_kernel.cuh"

#include "cuda/api.h"
#include "cuda/device_scope.h"

int mscope_cuda_resample(const MscopeResampleParams* p, int device, void* stream) {
  const mscope::DeviceScope scope(device);
  if (scope.status() != cudaSuccess) return scope.status();
  return mscope::run_resample(*p, static_cast<cudaStream_t>(stream));
}

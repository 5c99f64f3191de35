// The one question to the CUDA runtime that the kernels' own interface (cuda/api.h) does not answer.
#include <cuda_runtime_api.h>

#include "trt/launch.h"

int mscope::trt::current_device() {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) throw Refusal(std::string("there is no CUDA device: ") + cudaGetErrorString(error));
  return device;
}

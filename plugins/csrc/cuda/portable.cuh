// The few words of CUDA that the kernels use, for nvcc or, through emulation.h, for the host's compiler.
#pragma once

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#define MSCOPE_DEVICE __device__ __forceinline__
// The parameters stay in constant memory, also where they are indexed at run time: without the mark such an index would
// copy the struct into local memory.
#define MSCOPE_CONSTANT const __grid_constant__
#define MSCOPE_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)
#define MSCOPE_SHARED(name)              \
  extern __shared__ float4 name##_raw[]; \
  float* const name = reinterpret_cast<float*>(name##_raw)
#define MSCOPE_UNROLL _Pragma("unroll")
#define MSCOPE_UNROLL_4 _Pragma("unroll 4")
#define MSCOPE_NO_UNROLL _Pragma("unroll 1")

#else

#include "cuda/emulation.h"

#define MSCOPE_DEVICE inline
#define MSCOPE_CONSTANT const
#define MSCOPE_KERNEL(...) void
#define MSCOPE_SHARED(name) float* const name = mscope_emulation::shared_memory()
#define MSCOPE_UNROLL
#define MSCOPE_UNROLL_4
#define MSCOPE_NO_UNROLL

#endif

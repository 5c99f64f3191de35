// How many exponentials a second the special-function units make: the scan's floor. Compiled and called by scan_gpu.py.
#include <cuda_runtime.h>

namespace {

constexpr int kChains = 8;  // independent, so that the unit never waits for its own latency
constexpr int kSteps = 512;

__global__ void __launch_bounds__(256) exponentials(float* out) {
  float v[kChains];
  for (int i = 0; i < kChains; ++i) v[i] = -1.0f / (1.0f + threadIdx.x + i);
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int i = 0; i < kChains; ++i) asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(v[i]));
  float sum = 0.0f;
  for (int i = 0; i < kChains; ++i) sum += v[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

}  // namespace

// Makes blocks * 256 * 8 * 512 exponentials; `out` holds blocks * 256 floats.
extern "C" int exp2_rate(float* out, int blocks, void* stream) {
  exponentials<<<blocks, 256, 0, static_cast<cudaStream_t>(stream)>>>(out);
  return cudaGetLastError();
}

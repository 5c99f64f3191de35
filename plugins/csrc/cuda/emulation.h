// Runs a kernel on the host, one fiber a thread, to check its indexing without a GPU. Not for speed, and not shipped.
//
// The fibers of a block run one after the other, in an order that the caller picks; each runs until a barrier. Between
// two barriers the order must not matter: a test that gets the same bits in several orders has shown that it does not.
// Shared memory is filled with NaN first, so that what was never written shows, and has guard words behind it.
#pragma once

#include <stdint.h>
#include <string.h>

#include <functional>

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaStream_t = void*;

namespace mscope_emulation {

enum class Order { forward, backward, shuffled };

float* shared_memory();
const dim3& thread_index();
const dim3& block_index();
const dim3& block_size();
void block_barrier();
void warp_barrier();
uint32_t exchange(uint32_t value, int from_lane);

// 0, or one of the faults below.
enum Fault { none = 0, barrier_not_met_by_all = -100, wrote_past_shared_memory = -101, no_such_launch = -102 };
int run(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel);
void set_order(Order order);

}  // namespace mscope_emulation

#define threadIdx (::mscope_emulation::thread_index())
#define blockIdx (::mscope_emulation::block_index())
#define blockDim (::mscope_emulation::block_size())

inline void __syncthreads() { mscope_emulation::block_barrier(); }
inline void __syncwarp() { mscope_emulation::warp_barrier(); }

template <class T>
inline T __shfl_xor_sync(unsigned, T value, int mask) {
  static_assert(sizeof(T) == 4, "words only");
  uint32_t word;
  memcpy(&word, &value, 4);
  word = mscope_emulation::exchange(word, static_cast<int>(threadIdx.x % 32) ^ mask);
  memcpy(&value, &word, 4);
  return value;
}

template <class T>
inline T __ldg(const T* p) {
  return *p;
}

// A conditional handle is the address of a word here.
inline void cudaGraphSetConditional(uint64_t handle, unsigned value) { *reinterpret_cast<unsigned*>(handle) = value; }

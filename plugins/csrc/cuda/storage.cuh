// float32, float16 and bfloat16 in memory; arithmetic is float32 everywhere.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cuda/portable.cuh"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace mscope {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

MSCOPE_DEVICE float widen(float v) { return v; }
MSCOPE_DEVICE void narrow(float v, float& to) { to = v; }

#if defined(__CUDACC__)

MSCOPE_DEVICE float widen(Half v) { return __half2float(__ushort_as_half(v.bits)); }
MSCOPE_DEVICE float widen(BFloat v) { return __uint_as_float(static_cast<unsigned>(v.bits) << 16); }
MSCOPE_DEVICE void narrow(float v, Half& to) { to.bits = __half_as_ushort(__float2half_rn(v)); }
MSCOPE_DEVICE void narrow(float v, BFloat& to) { to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(v)); }

#else

inline float widen(Half v) {
  const uint32_t sign = (v.bits & 0x8000u) << 16, magnitude = v.bits & 0x7fffu;
  uint32_t word;
  float out;
  if (magnitude >= 0x7c00u) {
    word = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;  // infinity, NaN
  } else if (magnitude >= 0x400u) {
    word = sign | ((magnitude << 13) + 0x38000000u);
  } else {
    out = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -out : out;
  }
  memcpy(&out, &word, 4);
  return out;
}
inline float widen(BFloat v) {
  const uint32_t word = static_cast<uint32_t>(v.bits) << 16;
  float out;
  memcpy(&out, &word, 4);
  return out;
}
// To nearest, ties to even: adding half of the last place kept, less one where that place is even, carries as it
// should.
inline void narrow(float v, BFloat& to) {
  uint32_t word;
  memcpy(&word, &v, 4);
  to.bits = v != v ? 0x7fffu : static_cast<uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}
inline void narrow(float v, Half& to) {
  uint32_t word;
  memcpy(&word, &v, 4);
  const uint32_t sign = word >> 16 & 0x8000u, magnitude = word & 0x7fffffffu;
  if (v != v) {
    to.bits = 0x7fffu;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above
    to.bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (magnitude >= 0x38800000u) {
    to.bits = static_cast<uint16_t>(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
  } else {  // denormal: 0.5 has its last place at 2^-24, so the addition rounds there
    float shifted;
    memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;
    memcpy(&word, &shifted, 4);
    to.bits = static_cast<uint16_t>(sign | (word - 0x3f000000u));
  }
}

#endif

// Inputs are never written while a kernel runs, so they go through the read-only cache.
MSCOPE_DEVICE float fetch(const float* p) { return __ldg(p); }
MSCOPE_DEVICE float fetch(const Half* p) { return widen(Half{__ldg(&p->bits)}); }
MSCOPE_DEVICE float fetch(const BFloat* p) { return widen(BFloat{__ldg(&p->bits)}); }

// Four neighbours in one access; p is aligned to four elements.
MSCOPE_DEVICE float4 fetch4(const float* p) { return __ldg(reinterpret_cast<const float4*>(p)); }
template <class T>
MSCOPE_DEVICE float4 fetch4(const T* p) {
  const uint2 words = __ldg(reinterpret_cast<const uint2*>(p));
  return make_float4(widen(T{static_cast<uint16_t>(words.x)}), widen(T{static_cast<uint16_t>(words.x >> 16)}),
                     widen(T{static_cast<uint16_t>(words.y)}), widen(T{static_cast<uint16_t>(words.y >> 16)}));
}

}  // namespace mscope

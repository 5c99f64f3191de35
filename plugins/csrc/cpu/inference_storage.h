// Loads and stores of tensors that are kept as float32, float16 or bfloat16, as vectors of float32.
#pragma once

#include <stdint.h>
#include <string.h>

#include "scan/hd.h"
#include "scan/vec.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {

struct Float32 {
  using type = float;
};
struct Float16 {
  using type = uint16_t;
};
struct Bfloat16 {
  using type = uint16_t;
};

// One float16, by its bits: not every instruction set converts, and none may depend on the mode for denormals.
MSCOPE_INLINE float widen(Float16, uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu, mantissa = half & 0x3ffu;
  float value;
  uint32_t bits;
  if (exponent == 0) {
    value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // denormals: units of 2^-24
    memcpy(&bits, &value, sizeof bits);
    bits |= sign;
  } else {
    bits = sign | ((exponent == 0x1f ? 0xffu : exponent + 112u) << 23) | (mantissa << 13);
  }
  memcpy(&value, &bits, sizeof value);
  return value;
}
MSCOPE_INLINE float widen(Bfloat16, uint16_t upper) {
  const uint32_t bits = static_cast<uint32_t>(upper) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
MSCOPE_INLINE float widen(Float32, float value) { return value; }

// To the nearest, ties to even; NaN stays NaN.
MSCOPE_INLINE uint16_t narrow(Float16, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t half;
  if (bits >= 0x7f800000u) {
    half = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (bits >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (bits >= 0x38800000u) {
    half = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  } else {
    // Denormal halves: adding 0.5 leaves the value in units of 2^-24, rounded, in the low bits.
    float magnitude;
    memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, sizeof bits);
    half = bits - 0x3f000000u;
  }
  return static_cast<uint16_t>(sign | half);
}
MSCOPE_INLINE uint16_t narrow(Bfloat16, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// A whole vector, lane by lane; the overloads below are the instruction sets' own.
template <class T, class V>
MSCOPE_INLINE V load_whole(T type, const uint16_t* p, V*) {
  float lanes[V::width];
  for (int i = 0; i < V::width; ++i) lanes[i] = widen(type, p[i]);
  return V::load(lanes);
}
template <class T, class V>
MSCOPE_INLINE void store_whole(T type, uint16_t* p, V value) {
  float lanes[V::width];
  value.store(lanes);
  for (int i = 0; i < V::width; ++i) p[i] = narrow(type, lanes[i]);
}

#if MSCOPE_ISA_ID == MSCOPE_ISA_ID_avx512
MSCOPE_INLINE Avx512 load_whole(Float16, const uint16_t* p, Avx512*) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
MSCOPE_INLINE void store_whole(Float16, uint16_t* p, Avx512 value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT));
}
MSCOPE_INLINE Avx512 load_whole(Bfloat16, const uint16_t* p, Avx512*) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
#elif MSCOPE_ISA_ID == MSCOPE_ISA_ID_avx2
MSCOPE_INLINE Avx2 load_whole(Float16, const uint16_t* p, Avx2*) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
MSCOPE_INLINE void store_whole(Float16, uint16_t* p, Avx2 value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT));
}
MSCOPE_INLINE Avx2 load_whole(Bfloat16, const uint16_t* p, Avx2*) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
#elif MSCOPE_ISA_ID == MSCOPE_ISA_ID_neon
MSCOPE_INLINE Neon load_whole(Float16, const uint16_t* p, Neon*) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
MSCOPE_INLINE void store_whole(Float16, uint16_t* p, Neon value) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(value.v)));
}
MSCOPE_INLINE Neon load_whole(Bfloat16, const uint16_t* p, Neon*) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
#endif

// The first `count` lanes of a row, zero in the others: memory past them is neither read nor written.
template <class T>
MSCOPE_INLINE Vec load(T type, const uint16_t* p, int count) {
  if (count == Vec::width) return load_whole(type, p, static_cast<Vec*>(nullptr));
  uint16_t lanes[Vec::width] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return load_whole(type, lanes, static_cast<Vec*>(nullptr));
}
template <class T>
MSCOPE_INLINE void store(T type, uint16_t* p, Vec value, int count) {
  if (count == Vec::width) return store_whole(type, p, value);
  uint16_t lanes[Vec::width];
  store_whole(type, lanes, value);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}
MSCOPE_INLINE Vec load(Float32, const float* p, int count) {
  return count == Vec::width ? Vec::load(p) : Vec::load(p, count);
}
MSCOPE_INLINE void store(Float32, float* p, Vec value, int count) {
  if (count == Vec::width) value.store(p);
  else value.store(p, count);
}

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

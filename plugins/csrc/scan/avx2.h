// Eight lanes of AVX2 with FMA. The functions mean what their namesakes in scan/scalar.h say.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "scan/hd.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {

struct Avx2 {
  static constexpr int width = 8;
  // Sixteen registers: eight states and the constants of exp2 would spill.
  static constexpr int state_block = 4;

  __m256 v;

  Avx2() = default;
  MSCOPE_INLINE Avx2(__m256 value) : v(value) {}
  MSCOPE_INLINE Avx2(float value) : v(_mm256_set1_ps(value)) {}

  MSCOPE_INLINE static Avx2 load(const float* p) { return _mm256_loadu_ps(p); }
  // The first `count` lanes (0 <= count <= 8), zero in the others; memory past them is not touched.
  MSCOPE_INLINE static Avx2 load(const float* p, int count) { return _mm256_maskload_ps(p, mask(count)); }
  MSCOPE_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  MSCOPE_INLINE void store(float* p, int count) const { _mm256_maskstore_ps(p, mask(count), v); }

 private:
  MSCOPE_INLINE static __m256i mask(int count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
  }
};

MSCOPE_INLINE Avx2 operator+(Avx2 a, Avx2 b) { return _mm256_add_ps(a.v, b.v); }
MSCOPE_INLINE Avx2 operator-(Avx2 a, Avx2 b) { return _mm256_sub_ps(a.v, b.v); }
MSCOPE_INLINE Avx2 operator*(Avx2 a, Avx2 b) { return _mm256_mul_ps(a.v, b.v); }
MSCOPE_INLINE Avx2 operator/(Avx2 a, Avx2 b) { return _mm256_div_ps(a.v, b.v); }
MSCOPE_INLINE Avx2 fma(Avx2 a, Avx2 b, Avx2 c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
MSCOPE_INLINE Avx2 fnma(Avx2 a, Avx2 b, Avx2 c) { return _mm256_fnmadd_ps(a.v, b.v, c.v); }
MSCOPE_INLINE Avx2 max(Avx2 a, Avx2 b) { return _mm256_max_ps(a.v, b.v); }
MSCOPE_INLINE Avx2 min(Avx2 a, Avx2 b) { return _mm256_min_ps(a.v, b.v); }
MSCOPE_INLINE Avx2 abs(Avx2 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
MSCOPE_INLINE Avx2 select_nonnegative(Avx2 test, Avx2 yes, Avx2 no) {
  return _mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(test.v, _mm256_setzero_ps(), _CMP_GE_OQ));
}
MSCOPE_INLINE Avx2 round(Avx2 a) {
  return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// A NaN in n converts to INT_MIN, which the shift turns into a factor of 1: p, NaN as well then, goes through.
MSCOPE_INLINE Avx2 scale(Avx2 p, Avx2 n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return _mm256_mul_ps(p.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
MSCOPE_INLINE float sum(Avx2 a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  s = _mm_add_ss(s, _mm_movehdup_ps(s));
  return _mm_cvtss_f32(s);
}

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

// Sixteen lanes of AVX-512 (F, VL, DQ, BW). The functions mean what their namesakes in scan/scalar.h say.
#pragma once

#include <immintrin.h>

#include "scan/hd.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {

struct Avx512 {
  static constexpr int width = 16;
  static constexpr int state_block = 8;

  __m512 v;

  Avx512() = default;
  MSCOPE_INLINE Avx512(__m512 value) : v(value) {}
  MSCOPE_INLINE Avx512(float value) : v(_mm512_set1_ps(value)) {}

  MSCOPE_INLINE static Avx512 load(const float* p) { return _mm512_loadu_ps(p); }
  // The first `count` lanes (0 <= count <= 16), zero in the others; memory past them is not touched.
  MSCOPE_INLINE static Avx512 load(const float* p, int count) { return _mm512_maskz_loadu_ps(mask(count), p); }
  MSCOPE_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  MSCOPE_INLINE void store(float* p, int count) const { _mm512_mask_storeu_ps(p, mask(count), v); }

 private:
  MSCOPE_INLINE static __mmask16 mask(int count) { return static_cast<__mmask16>((1u << count) - 1u); }
};

MSCOPE_INLINE Avx512 operator+(Avx512 a, Avx512 b) { return _mm512_add_ps(a.v, b.v); }
MSCOPE_INLINE Avx512 operator-(Avx512 a, Avx512 b) { return _mm512_sub_ps(a.v, b.v); }
MSCOPE_INLINE Avx512 operator*(Avx512 a, Avx512 b) { return _mm512_mul_ps(a.v, b.v); }
MSCOPE_INLINE Avx512 operator/(Avx512 a, Avx512 b) { return _mm512_div_ps(a.v, b.v); }
MSCOPE_INLINE Avx512 fma(Avx512 a, Avx512 b, Avx512 c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
MSCOPE_INLINE Avx512 fnma(Avx512 a, Avx512 b, Avx512 c) { return _mm512_fnmadd_ps(a.v, b.v, c.v); }
MSCOPE_INLINE Avx512 max(Avx512 a, Avx512 b) { return _mm512_max_ps(a.v, b.v); }
MSCOPE_INLINE Avx512 min(Avx512 a, Avx512 b) { return _mm512_min_ps(a.v, b.v); }
MSCOPE_INLINE Avx512 abs(Avx512 a) { return _mm512_abs_ps(a.v); }
MSCOPE_INLINE Avx512 select_nonnegative(Avx512 test, Avx512 yes, Avx512 no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(test.v, _mm512_setzero_ps(), _CMP_GE_OQ), no.v, yes.v);
}
MSCOPE_INLINE Avx512 round(Avx512 a) {
  return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// scalef takes any n, and over- and underflows by itself.
MSCOPE_INLINE Avx512 scale(Avx512 p, Avx512 n) { return _mm512_scalef_ps(p.v, n.v); }
MSCOPE_INLINE Avx512 scale_wide(Avx512 p, Avx512 n) { return _mm512_scalef_ps(p.v, n.v); }
MSCOPE_INLINE float sum(Avx512 a) { return _mm512_reduce_add_ps(a.v); }

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

// The exponentials of the inference kernels: those of scan/math.h, and on AVX-512 cheaper and closer ones.
//
// The scan's time is its exponentials'. Sixteen powers of two in a register, picked by one permutation, leave an exponent of
// at most 1/32, for which a polynomial of degree 3 is exact to float32 (1.6e-9, where degree 5 over a whole octave has
// 9e-8): one operation less on the multipliers' pipes a state, and no bias that would add up over the tokens. Degree 2 with
// 32 powers is a tenth faster still and was not taken: its slope at 0 is off by 1.5e-5, and so is then the memory of every
// slow state. docs/kernels.md has the measurements.
#pragma once

#include <stdint.h>

#include "scan/math.h"
#include "scan/vec.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {

template <class V>
struct Exponential {
  // 2^(delta a2) of COUNT states, whose a2 are `V::width` floats apart; delta * a2 in [-kFastExponent, 0].
  template <int COUNT>
  MSCOPE_INLINE void decays(V delta, const float* a2, V (&decay)[COUNT]) const {
    for (int i = 0; i < COUNT; ++i) decay[i] = exp2_decay(delta * V::load(a2 + i * V::width));
  }
  // e^x of any x, and of x <= 0: mscope::exp.
  MSCOPE_INLINE V exp(V x) const { return mscope::exp(x); }
  MSCOPE_INLINE V exp_decay(V x) const { return mscope::exp(x); }
};

// -|v|.
template <class V>
MSCOPE_INLINE V negative_abs(V v) {
  return V(0.0f) - abs(v);
}

#if MSCOPE_ISA_ID == MSCOPE_ISA_ID_avx512

MSCOPE_INLINE Avx512 negative_abs(Avx512 v) { return _mm512_or_ps(v.v, _mm512_set1_ps(-0.0f)); }

alignas(64) constexpr float kPowersOf2[16] = {  // 2^(i / 16)
    1.0f, 1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f,
    1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f, 1.68179286f, 1.75625217f, 1.8340081f, 1.91520655f};

template <>
struct Exponential<Avx512> {
  __m512 powers = _mm512_load_ps(kPowersOf2);

  // To multiples of 1/16: 1.5 * 2^23 / 16. The sum's low four bits are then the index into the table.
  static constexpr float kShift = 786432.0f;

  // Stage by stage for all the states: a compiler that finishes one state before the next leaves more to the processor's
  // reordering than it holds.
  // _mm512_mul_round_ps is an ordinary product that compilers do not fuse with what follows: it feeds two sums, and two
  // fused operations would load the multipliers' pipes, the bottleneck, with one operation more.
  template <int COUNT>
  MSCOPE_INLINE void decays(Avx512 delta, const float* a2, Avx512 (&decay)[COUNT]) const {
    __m512 t[COUNT], shifted[COUNT];
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) {
      t[i] = _mm512_mul_round_ps(delta.v, _mm512_loadu_ps(a2 + i * Avx512::width), _MM_FROUND_CUR_DIRECTION);
      shifted[i] = _mm512_add_ps(t[i], _mm512_set1_ps(kShift));
    }
    power(t, shifted, decay);
  }

  MSCOPE_INLINE Avx512 exp(Avx512 x) const { return exp_decay(min(Avx512(89.0f), x)); }

  MSCOPE_INLINE Avx512 exp_decay(Avx512 x) const {
    x = max(Avx512(-104.0f), x);
    const __m512 shifted[1] = {fma(x, Avx512(kLog2E), Avx512(kShift)).v};
    // What is left below a sixteenth, with log2(e) in two parts, as x * log2(e) alone would lose |x| / 2^24.
    const __m512 n = _mm512_sub_ps(shifted[0], _mm512_set1_ps(kShift));
    const Avx512 rest = _mm512_fmsub_ps(x.v, _mm512_set1_ps(kLog2E), n);
    const Avx512 f = fma(x, Avx512(1.925963033e-8f), rest);
    const __m512 base = _mm512_permutexvar_ps(_mm512_castps_si512(shifted[0]), powers);
    return _mm512_scalef_ps(fma(Avx512(base) * f, slope(f), Avx512(base)).v, n);
  }

 private:
  // (2^f - 1) / f, |f| <= 1/32: minimax of 2^f among the polynomials that are exactly 1 at 0.
  MSCOPE_INLINE static Avx512 slope(Avx512 f) {
    return fma(fma(f, Avx512(0.0555021365f), Avx512(0.240234288f)), f, Avx512(0.693147183f));
  }

  // 2^t, given shifted = t + kShift. scalef takes the floor of its exponent, which is what the table's index leaves.
  template <int COUNT>
  MSCOPE_INLINE void power(const __m512 (&t)[COUNT], const __m512 (&shifted)[COUNT], Avx512 (&result)[COUNT]) const {
    __m512 n[COUNT], base[COUNT];
    Avx512 f[COUNT], p[COUNT];
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) {
      base[i] = _mm512_permutexvar_ps(_mm512_castps_si512(shifted[i]), powers);
      n[i] = _mm512_sub_ps(shifted[i], _mm512_set1_ps(kShift));
    }
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) f[i] = _mm512_sub_ps(t[i], n[i]);
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) p[i] = slope(f[i]);
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) f[i] = _mm512_mul_round_ps(base[i], f[i].v, _MM_FROUND_CUR_DIRECTION);
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) result[i] = _mm512_scalef_ps(fma(f[i], p[i], Avx512(base[i])).v, n[i]);
  }
};

#elif MSCOPE_ISA_ID == MSCOPE_ISA_ID_avx2

MSCOPE_INLINE Avx2 negative_abs(Avx2 v) { return _mm256_or_ps(v.v, _mm256_set1_ps(-0.0f)); }

// 2^(i / 8), its bits less i * 2^20: what (8 n + i) * 2^20 is added to, to give 2^(n + i / 8).
alignas(32) constexpr uint32_t kPowersOf2[8] = {0x3f800000u, 0x3f7b95c2u, 0x3f7837f0u, 0x3f75fed7u,
                                                0x3f7504f3u, 0x3f75672au, 0x3f7744fdu, 0x3f7ac0c7u};

// As on AVX-512 with a table of eight, exponents of at most 1/16 (2.5e-8), and the power of two added to the bits.
template <>
struct Exponential<Avx2> {
  __m256 powers = _mm256_load_ps(reinterpret_cast<const float*>(kPowersOf2));

  static constexpr float kShift = 1572864.0f;  // 1.5 * 2^23 / 8: to multiples of 1/8

  template <int COUNT>
  MSCOPE_INLINE void decays(Avx2 delta, const float* a2, Avx2 (&decay)[COUNT]) const {
    Avx2 t[COUNT], shifted[COUNT];
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) {
      // Below -126 the bits would wrap round: 2^-126 is as good as 0.
      t[i] = max(Avx2(-126.0f), delta * Avx2::load(a2 + i * Avx2::width));
      shifted[i] = t[i] + Avx2(kShift);
    }
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) {
      const Avx2 f = t[i] - (shifted[i] - Avx2(kShift));
      const Avx2 base = power(shifted[i]);
      decay[i] = fma(base * f, slope(f), base);
    }
  }

  MSCOPE_INLINE Avx2 exp(Avx2 x) const { return exp_decay(min(Avx2(88.0f), x)); }

  MSCOPE_INLINE Avx2 exp_decay(Avx2 x) const {
    x = max(Avx2(-87.0f), x);
    const Avx2 shifted = fma(x, Avx2(kLog2E), Avx2(kShift));
    const Avx2 n = shifted - Avx2(kShift);
    const Avx2 f = fma(x, Avx2(1.925963033e-8f), Avx2(_mm256_fmsub_ps(x.v, _mm256_set1_ps(kLog2E), n.v)));
    const Avx2 base = power(shifted);
    return fma(base * f, slope(f), base);
  }

 private:
  MSCOPE_INLINE static Avx2 slope(Avx2 f) {
    return fma(fma(f, Avx2(0.0554962218f), Avx2(0.24025763f)), f, Avx2(0.693147214f));
  }
  // A NaN in shifted gives some number; f, NaN as well then, goes through.
  MSCOPE_INLINE Avx2 power(Avx2 shifted) const {
    const __m256i index = _mm256_castps_si256(shifted.v);
    const __m256i base = _mm256_castps_si256(_mm256_permutevar8x32_ps(powers, index));
    return _mm256_castsi256_ps(_mm256_add_epi32(base, _mm256_slli_epi32(index, 20)));
  }
};

#endif

// 2^t for any t: where delta is negative (no softplus), huge, or A positive. Infinity above 128, NaN goes through.
template <class V>
MSCOPE_INLINE V exp2_any(V t) {
  t = min(V(129.0f), max(V(-150.0f), t));
  const V n = round(t);
  return scale_wide(exp2_fraction(t - n), n);
}

// As softplus and silu of scan/math.h, with the cheaper exponential.
template <class V>
MSCOPE_INLINE V softplus(const Exponential<V>& e, V v) {
  return max(V(0.0f), v) + log1p_unit(e.exp_decay(negative_abs(v)));
}
template <class V>
MSCOPE_INLINE V silu(const Exponential<V>& e, V v) {
  return v / (e.exp(V(0.0f) - v) + V(1.0f));
}

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

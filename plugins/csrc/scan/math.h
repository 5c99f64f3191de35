// exp, softplus, sigmoid and SiLU, written once for every vector type (and, as Scalar, for CUDA).
//
// Relative errors below are of float32 results against exact ones, swept by tests/plugins/test_training_kernels.py. No
// function gives NaN for a number that is finite, and NaN goes through all of them.
#pragma once

#include "scan/hd.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

// p * 2^n for integral n in [-254, 254]: in two halves, as 2^n itself may not be representable.
template <class V>
MSCOPE_HD V scale_wide(V p, V n) {
  const V half = round(n * V(0.5f));
  return scale(scale(p, half), n - half);
}

// 2^f for f in [-1/2, 1/2], within 8.9e-8.
// The constant term is exactly 1: an error there has one sign and compounds over the tokens, where the other terms'
// errors average out. (Degree 5, minimax of the relative error.)
template <class V>
MSCOPE_HD V exp2_fraction(V f) {
  V p = fma(V(0.0013272889f), f, V(0.0096716909f));
  p = fma(p, f, V(0.0555070760f));
  p = fma(p, f, V(0.2402223889f));
  p = fma(p, f, V(0.6931469941f));
  p = fma(p, f, V(1.0f));
  return p;
}

// 2^t for t <= 127, the decay of the recurrence: t = delta * A * log2(e) is never positive. Within 2e-7; 0 (or a denormal,
// where those are not flushed) below -127.
template <class V>
MSCOPE_HD V exp2_decay(V t) {
  t = max(V(-127.0f), t);
  const V n = round(t);
  return scale(exp2_fraction(t - n), n);
}

// e^x for any x, within 1.5e-7; infinity above 88.7, gradual underflow to 0 below -87.3.
// x is reduced by ln 2 in two parts (the first has 12 low bits of zeros, so that n * it is exact): x * log2(e) alone would
// lose |x| / 2^24. (Degree 6, minimax of the relative error on +-ln(2)/2, first two terms exact.)
template <class V>
MSCOPE_HD V exp(V x) {
  x = min(V(89.0f), max(V(-104.0f), x));
  const V n = round(x * V(kLog2E));
  V r = fnma(n, V(0.693115234375f), x);
  r = fnma(n, V(3.194618494528623e-05f), r);
  V p = fma(V(0.0014039790f), r, V(0.0083719067f));
  p = fma(p, r, V(0.0416651182f));
  p = fma(p, r, V(0.1666648769f));
  p = fma(p, r, V(0.5000000201f));
  p = fma(p, r, V(1.0f));
  p = fma(p, r, V(1.0f));
  return scale_wide(p, n);
}

// log(1 + u) for u in [0, 1], within 3e-7: 2 atanh(s), s = u / (2 + u), whose series starts with 2s, so that small u keep
// all their digits (log(1 + u) in float32 would not). (Degree 4 in s^2 on [0, 1/9].)
template <class V>
MSCOPE_HD V log1p_unit(V u) {
  const V s = u / (u + V(2.0f));
  const V w = s * s;
  V p = fma(V(0.2254089319f), w, V(0.2186132726f));
  p = fma(p, w, V(0.2858132513f));
  p = fma(p, w, V(0.3999996015f));
  p = fma(p, w, V(0.6666666670f));
  return fma(s * w, p, s + s);
}

// log(1 + e^v) for any v, within 4e-7; v itself for large v.
template <class V>
MSCOPE_HD V softplus(V v) {
  return max(V(0.0f), v) + log1p_unit(exp(V(0.0f) - abs(v)));
}

// softplus and its derivative, sigmoid, for one exponential.
template <class V>
struct SoftplusSlope {
  V value, slope;
};
template <class V>
MSCOPE_HD SoftplusSlope<V> softplus_slope(V v) {
  const V u = exp(V(0.0f) - abs(v));
  const V r = V(1.0f) / (u + V(1.0f));
  return {max(V(0.0f), v) + log1p_unit(u), select_nonnegative(v, r, u * r)};
}

// 1 / (1 + e^-v) for any v, within 3e-7; 0 below -88.7.
template <class V>
MSCOPE_HD V sigmoid(V v) {
  return V(1.0f) / (exp(V(0.0f) - v) + V(1.0f));
}

// v sigmoid(v).
template <class V>
MSCOPE_HD V silu(V v) {
  return v / (exp(V(0.0f) - v) + V(1.0f));
}

// d silu / dv, given s = sigmoid(v).
template <class V>
MSCOPE_HD V silu_slope(V v, V s) {
  return fma(s * v, V(1.0f) - s, s);
}

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

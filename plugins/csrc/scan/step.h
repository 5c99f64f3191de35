// One token of the selective scan for one vector of channels. Host and device; the states stay in registers.
//
//     d = softplus(delta + delta_bias);  h_n = 2^(d A2_n) h_n + d x B_n;  y = sum_n C_n h_n + D x;  y *= SiLU(z)
//
// A2 = A log2(e) is prepared by the caller, once a kernel. Order of a pass over the tokens: `token`, then `advance` for
// every block of states, `skip` and `gate`.
#pragma once

#include <stdint.h>

#include "scan/math.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {

// What the recurrence needs of a token beside B and C.
template <class V>
struct Token {
  V delta;  // after bias and softplus
  V input;  // delta * x
};

template <class V>
MSCOPE_HD Token<V> token(V delta, V delta_bias, V x, bool delta_softplus = true) {
  V d = delta + delta_bias;
  if (delta_softplus) d = softplus(d);
  return {d, d * x};
}

// States h of STATES consecutive n go one token on; returns their part of y.
// a2: row n at a2 + n * a2_stride holds A2 of this vector's channels. B, C: the token's values of the first of these n.
template <int STATES, class V>
MSCOPE_HD V advance(V (&h)[STATES], const Token<V>& now, const float* a2, int64_t a2_stride, const float* B,
                    const float* C) {
  V y(0.0f);
#if defined(__GNUC__) && !defined(__CUDACC__)
#pragma GCC unroll 16
#elif defined(__CUDACC__)
#pragma unroll
#endif
  for (int n = 0; n < STATES; ++n) {
    const V decay = exp2_decay(now.delta * V::load(a2 + n * a2_stride));
    h[n] = fma(decay, h[n], now.input * V(B[n]));
    y = fma(V(C[n]), h[n], y);
  }
  return y;
}

template <class V>
MSCOPE_HD V skip(V y, V D, V x) {
  return fma(D, x, y);
}

template <class V>
MSCOPE_HD V gate(V y, V z) {
  return y * silu(z);
}

// Writes A (channels, states), row-major, as A2: (states, padded), transposed and multiplied by log2(e), `padded` >=
// channels. The padding is -1, so that idle lanes compute with tame numbers.
inline void prepare_a2(const float* A, int64_t channels, int64_t states, int64_t padded, float* a2) {
  for (int64_t n = 0; n < states; ++n)
    for (int64_t c = 0; c < padded; ++c) a2[n * padded + c] = c < channels ? A[c * states + n] * kLog2E : -1.0f;
}

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

// One block of channels of CausalConv1dSiLU: the kernel of the op, and the first half of the mixer's first phase.
#pragma once

#include <stdint.h>

#include "cpu/inference.h"
#include "cpu/inference_exp.h"
#include "cpu/inference_storage.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {

// Tokens [first, last) of an image, one direction: x of type T to y of type Y. A window of tokens moves the way the taps
// look back, so that each is loaded once; those over the sequence's end are zeros.
template <int TAPS, class T, class Y>
MSCOPE_INLINE void conv_taps(T type, Y result, const inference::ConvProblem& p, int direction, int64_t image, int64_t first,
                             int64_t last, int64_t channel, int count, const Exponential<Vec>& e) {
  const bool backward = p.direction[direction].backward;
  const int64_t step = backward ? -1 : 1, start = backward ? last - 1 : first;
  const int64_t x_step = step * p.x_row, y_step = step * p.channels;
  const float* const packed = p.direction[direction].packed + channel / Vec::width * (TAPS + 1) * Vec::width;
  const auto* x = static_cast<const typename T::type*>(p.x) + (image * p.tokens + start) * p.x_row + channel;
  auto* y = static_cast<typename Y::type*>(p.direction[direction].y) + (image * p.tokens + start) * p.channels + channel;
  Vec weight[TAPS], window[TAPS];
  for (int j = 0; j < TAPS; ++j) weight[j] = Vec::load(packed + j * Vec::width);
  const Vec bias = Vec::load(packed + TAPS * Vec::width);
  const int64_t before = backward ? p.tokens - 1 - start : start;
  for (int j = 0; j < TAPS - 1; ++j)
    window[j] = before < TAPS - 1 - j ? Vec(0.0f) : load(type, x - (TAPS - 1 - j) * x_step, count);
  const Exponential<Vec> exponential = e;  // a copy, so that stores cannot alias its tables
  for (int64_t left = last - first; left > 0; --left) {
    window[TAPS - 1] = load(type, x, count);
    Vec sum = bias;
#pragma GCC unroll 4
    for (int j = 0; j < TAPS; ++j) sum = fma(weight[j], window[j], sum);
    store(result, y, silu(exponential, sum), count);
#pragma GCC unroll 4
    for (int j = 0; j < TAPS - 1; ++j) window[j] = window[j + 1];
    x += x_step, y += y_step;
  }
}

template <class T, class Y>
MSCOPE_INLINE void conv_block(T type, Y result, const inference::ConvProblem& p, int direction, int64_t image, int64_t first,
                              int64_t last, int64_t channel, int count, const Exponential<Vec>& e) {
  switch (p.taps) {
    case 2: return conv_taps<2>(type, result, p, direction, image, first, last, channel, count, e);
    case 3: return conv_taps<3>(type, result, p, direction, image, first, last, channel, count, e);
    case 4: return conv_taps<4>(type, result, p, direction, image, first, last, channel, count, e);
  }
}

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

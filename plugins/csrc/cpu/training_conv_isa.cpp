// Forward and backward of the causal depthwise convolution with SiLU, compiled once per instruction set.
//
// Tap j of the W meets the token W - 1 - j before the current one, or after it in a reversed sequence; tokens outside the
// sequence count as zero.

#include "cpu/training_block.h"
#include "cpu/training_kernels.h"
#include "scan/denormals.h"
#include "scan/math.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {
namespace {

// The first tap that meets a token of the sequence, at step `s` in the order of the convolution.
MSCOPE_INLINE int64_t first_tap(int64_t s, int64_t width) { return s < width - 1 ? width - 1 - s : 0; }

// bias + sum of taps at token t, step s. WIDTH is the number of taps, 0 where only conv.width knows it.
template <int WIDTH>
MSCOPE_INLINE Vec convolve(const MscopeConv& conv, const float* taps, int64_t stride, const float* x, int64_t step_back,
                           int64_t s, Block block) {
  const int64_t width = WIDTH != 0 ? WIDTH : conv.width;
  Vec sum = Vec::load(taps + width * stride);
  if (WIDTH != 0 && s >= width - 1) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < WIDTH; ++j)
      sum = fma(Vec::load(taps + j * stride), block.load(x + (width - 1 - j) * step_back), sum);
  } else {
    for (int64_t j = first_tap(s, width); j < width; ++j)
      sum = fma(Vec::load(taps + j * stride), block.load(x + (width - 1 - j) * step_back), sum);
  }
  return sum;
}

template <int WIDTH>
void forward_block(const MscopeConv& conv, const float* taps, int64_t row, Block block, float* y) {
  const int64_t stride = padded(conv.channels), direction = conv.reverse ? -1 : 1;
  int64_t t = row + (conv.reverse ? conv.length - 1 : 0);
  for (int64_t s = 0; s < conv.length; ++s, t += direction) {
    const Vec sum = convolve<WIDTH>(conv, taps, stride, conv.x + t * conv.x_stride, -direction * conv.x_stride, s, block);
    block.store(silu(sum), y + t * conv.channels);
  }
}

// scratch: (L, W), the gradient at the convolution's output, in the order of its steps.
template <int WIDTH>
void backward_block(const MscopeConv& conv, const float* taps, int64_t row, Block block, float* scratch,
                    const MscopeConvGrads& grads, float* partial) {
  const int64_t stride = padded(conv.channels), direction = conv.reverse ? -1 : 1;
  const int64_t width = WIDTH != 0 ? WIDTH : conv.width, length = conv.length;
  const int64_t first = row + (conv.reverse ? length - 1 : 0);
  Vec grad_bias(0.0f);
  for (int64_t s = 0; s < length; ++s) {
    const int64_t t = first + s * direction;
    const Vec sum = convolve<WIDTH>(conv, taps, stride, conv.x + t * conv.x_stride, -direction * conv.x_stride, s, block);
    const Vec g = block.load(grads.y + t * conv.channels) * silu_slope(sum, sigmoid(sum));
    g.store(scratch + s * W);
    grad_bias = grad_bias + g;
  }
  add_to(partial + width * stride, grad_bias);

  for (int64_t s = 0; s < length; ++s) {
    // Token s met tap width - 1 - ahead of step s + ahead.
    const int64_t reach = length - s < width ? length - s : width;
    Vec grad(0.0f);
    for (int64_t ahead = 0; ahead < reach; ++ahead)
      grad = fma(Vec::load(taps + (width - 1 - ahead) * stride), Vec::load(scratch + (s + ahead) * W), grad);
    block.store(grad, grads.x + (first + s * direction) * conv.channels);
  }
  for (int64_t j = 0; j < width; ++j) {
    const int64_t behind = width - 1 - j;
    Vec grad(0.0f);
    for (int64_t s = behind; s < length; ++s)
      grad = fma(Vec::load(scratch + s * W), block.load(conv.x + (first + (s - behind) * direction) * conv.x_stride), grad);
    add_to(partial + j * stride, grad);
  }
}

template <int WIDTH>
void forward_width(const MscopeConv& conv, const float* taps, Span span, float* y) {
  for (int64_t b = span.first; b < span.last; ++b)
    for (int64_t c = 0; c < conv.channels; c += W)
      forward_block<WIDTH>(conv, taps + c, b * conv.length, block_at(c, conv.channels), y);
}

template <int WIDTH>
void backward_width(const MscopeConv& conv, const float* taps, Span span, float* scratch, const MscopeConvGrads& grads,
                    float* partial) {
  for (int64_t b = span.first; b < span.last; ++b)
    for (int64_t c = 0; c < conv.channels; c += W)
      backward_block<WIDTH>(conv, taps + c, b * conv.length, block_at(c, conv.channels), scratch, grads, partial + c);
}

int64_t backward_scratch(const MscopeConv& conv) { return conv.length * W; }

void forward(const MscopeConv& conv, const float* taps, Span span, float* y) {
  const FlushDenormals guard;
  if (conv.width == 4)
    forward_width<4>(conv, taps, span, y);
  else
    forward_width<0>(conv, taps, span, y);
}

void backward(const MscopeConv& conv, const float* taps, Span span, float* scratch, const MscopeConvGrads& grads,
              float* partial) {
  const FlushDenormals guard;
  if (conv.width == 4)
    backward_width<4>(conv, taps, span, scratch, grads, partial);
  else
    backward_width<0>(conv, taps, span, scratch, grads, partial);
}

}  // namespace
}  // namespace MSCOPE_ISA_NAME

const ConvKernels* MSCOPE_CONCAT(conv_kernels_, MSCOPE_ISA_NAME)() {
  static constexpr ConvKernels kernels{W, backward_scratch, forward, backward};
  return &kernels;
}

}  // namespace mscope

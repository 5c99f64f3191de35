// Forward and backward of the selective scan, compiled once per instruction set.
//
// Channels go through the vector's lanes: one block of `width` channels of one sequence is done at a time, with all that
// the passes hand to each other in a scratch of a few hundred kilobytes, which stays in the second-level cache. States go
// in blocks whose recurrences live in registers.

#include "cpu/training_block.h"
#include "cpu/training_kernels.h"
#include "scan/denormals.h"
#include "scan/step.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {
namespace {

// The order of the tokens: step s of `length` is token first + s * direction.
struct Order {
  int64_t first, direction;
  MSCOPE_INLINE int64_t token(int64_t step) const { return first + step * direction; }
};

MSCOPE_INLINE Order order_of(const MscopeScan& scan) {
  return scan.reverse ? Order{scan.length - 1, -1} : Order{0, 1};
}

// delta after softplus, delta * x, and D * x as the start of y, for every token: (L, W) each, in the sequence's order.
struct ForwardScratch {
  float *delta, *input, *y;

  ForwardScratch(float* scratch, int64_t length)
      : delta(scratch), input(scratch + length * W), y(scratch + 2 * length * W) {}
};

template <int STATES>
void forward_states(const MscopeScan& scan, const float* a2, int64_t n, int64_t row, ForwardScratch buffers) {
  const int64_t stride = padded(scan.channels);
  const Order order = order_of(scan);
  Vec h[STATES];
  for (int i = 0; i < STATES; ++i) h[i] = Vec(0.0f);
  for (int64_t s = 0; s < scan.length; ++s) {
    const int64_t t = order.token(s);
    const Token<Vec> now{Vec::load(buffers.delta + t * W), Vec::load(buffers.input + t * W)};
    const Vec y = advance(h, now, a2 + n * stride, stride, scan.B + (row + t) * scan.B_stride + n,
                          scan.C + (row + t) * scan.C_stride + n);
    (Vec::load(buffers.y + t * W) + y).store(buffers.y + t * W);
  }
}

void forward_block(const MscopeScan& scan, const float* a2, int64_t row, Block block, ForwardScratch buffers, float* y) {
  const Vec D = block.load(scan.D), bias = block.load_or_zero(scan.delta_bias);
  for (int64_t t = 0; t < scan.length; ++t) {
    const Vec x = block.load(scan.x + (row + t) * scan.x_stride);
    const Token<Vec> now =
        token(block.load(scan.delta + (row + t) * scan.delta_stride), bias, x, scan.delta_softplus != 0);
    now.delta.store(buffers.delta + t * W);
    now.input.store(buffers.input + t * W);
    (D * x).store(buffers.y + t * W);
  }
  a2 += block.channel;
  constexpr int most = Vec::state_block;
  int64_t n = 0;
  for (; n + most <= scan.states; n += most) forward_states<most>(scan, a2, n, row, buffers);
  for (; n + 4 <= scan.states; n += 4) forward_states<4>(scan, a2, n, row, buffers);
  for (; n < scan.states; ++n) forward_states<1>(scan, a2, n, row, buffers);
  for (int64_t t = 0; t < scan.length; ++t) {
    Vec out = Vec::load(buffers.y + t * W);
    if (scan.z != nullptr) out = gate(out, block.load(scan.z + (row + t) * scan.z_stride));
    block.store(out, y + (row + t) * scan.channels);
  }
}

// Scratch of the backward pass. (L, W) each: delta after softplus, its derivative, delta * x, the gradient g of y before
// the gate, the sum over states of C h, and the sums over states that the gradients of delta and x are made of. (L, STATES,
// W): states and decays of one block of states. (L, N, W): the gradients of B and C, summed over channels lane by lane.
struct BackwardScratch {
  float *delta, *slope, *input, *g, *y, *to_delta, *to_input, *h, *decay, *B, *C;

  BackwardScratch(float* scratch, int64_t length, int64_t states) {
    float** const rows[] = {&delta, &slope, &input, &g, &y, &to_delta, &to_input};
    for (float** row : rows) {
      *row = scratch;
      scratch += length * W;
    }
    h = scratch;
    decay = h + length * W * Vec::state_block;
    B = decay + length * W * Vec::state_block;
    C = B + length * W * states;
  }
  static int64_t size(int64_t length, int64_t states) { return length * W * (7 + 2 * Vec::state_block + 2 * states); }
};

// With dh_t the gradient of h_t (through y_t and h_{t+1}) and q = dh_t * decay_t * h_{t-1}:
//   dC_t += g_t h_t;  dB_t += dh_t input_t;  dA += delta_t q;  ddelta_t += A q + x_t B_t dh_t;  dx_t += delta_t B_t dh_t.
template <int STATES>
void backward_states(const MscopeScan& scan, const float* a2, int64_t n, int64_t row, const BackwardScratch& buffers,
                     float* partial) {
  const int64_t stride = padded(scan.channels);
  const Order order = order_of(scan);
  Vec h[STATES], carry[STATES], dA[STATES];
  for (int i = 0; i < STATES; ++i) h[i] = carry[i] = dA[i] = Vec(0.0f);

  for (int64_t s = 0; s < scan.length; ++s) {
    const int64_t t = order.token(s);
    const Vec delta = Vec::load(buffers.delta + t * W), input = Vec::load(buffers.input + t * W);
    const float* B = scan.B + (row + t) * scan.B_stride + n;
    const float* C = scan.C + (row + t) * scan.C_stride + n;
    Vec y = Vec::load(buffers.y + t * W);
#pragma GCC unroll 8
    for (int i = 0; i < STATES; ++i) {
      const Vec decay = exp2_decay(delta * Vec::load(a2 + (n + i) * stride));
      h[i] = fma(decay, h[i], input * Vec(B[i]));
      y = fma(Vec(C[i]), h[i], y);
      decay.store(buffers.decay + (s * STATES + i) * W);
      h[i].store(buffers.h + (s * STATES + i) * W);
    }
    y.store(buffers.y + t * W);
  }

  for (int64_t s = scan.length - 1; s >= 0; --s) {
    const int64_t t = order.token(s);
    const Vec delta = Vec::load(buffers.delta + t * W), input = Vec::load(buffers.input + t * W);
    const Vec g = Vec::load(buffers.g + t * W);
    const float* B = scan.B + (row + t) * scan.B_stride + n;
    const float* C = scan.C + (row + t) * scan.C_stride + n;
    float* grad_B = buffers.B + (t * scan.states + n) * W;
    float* grad_C = buffers.C + (t * scan.states + n) * W;
    Vec to_delta = Vec::load(buffers.to_delta + t * W), to_input = Vec::load(buffers.to_input + t * W);
#pragma GCC unroll 8
    for (int i = 0; i < STATES; ++i) {
      const Vec dh = fma(g, Vec(C[i]), carry[i]);
      fma(g, h[i], Vec::load(grad_C + i * W)).store(grad_C + i * W);
      fma(dh, input, Vec::load(grad_B + i * W)).store(grad_B + i * W);
      to_input = fma(dh, Vec(B[i]), to_input);
      carry[i] = dh * Vec::load(buffers.decay + (s * STATES + i) * W);
      // h[i] turns into the state before this token.
      h[i] = s > 0 ? Vec::load(buffers.h + ((s - 1) * STATES + i) * W) : Vec(0.0f);
      const Vec q = carry[i] * h[i];
      dA[i] = fma(delta, q, dA[i]);
      to_delta = fma(q, Vec::load(a2 + (n + i) * stride), to_delta);
    }
    to_delta.store(buffers.to_delta + t * W);
    to_input.store(buffers.to_input + t * W);
  }
  for (int i = 0; i < STATES; ++i) add_to(partial + (n + i) * stride, dA[i]);
}

void backward_block(const MscopeScan& scan, const float* a2, int64_t row, Block block, const BackwardScratch& buffers,
                    const MscopeScanGrads& grads, float* partial) {
  const int64_t channels = scan.channels;
  const Vec D = block.load(scan.D), bias = block.load_or_zero(scan.delta_bias);
  for (int64_t t = 0; t < scan.length; ++t) {
    const Vec v = block.load(scan.delta + (row + t) * scan.delta_stride) + bias;
    const SoftplusSlope<Vec> d = scan.delta_softplus ? softplus_slope(v) : SoftplusSlope<Vec>{v, Vec(1.0f)};
    Vec g = block.load(grads.y + (row + t) * channels);
    if (scan.z != nullptr) g = g * silu(block.load(scan.z + (row + t) * scan.z_stride));
    d.value.store(buffers.delta + t * W);
    d.slope.store(buffers.slope + t * W);
    (d.value * block.load(scan.x + (row + t) * scan.x_stride)).store(buffers.input + t * W);
    g.store(buffers.g + t * W);
    Vec(0.0f).store(buffers.y + t * W);
    Vec(0.0f).store(buffers.to_delta + t * W);
    Vec(0.0f).store(buffers.to_input + t * W);
  }

  constexpr int most = Vec::state_block;
  int64_t n = 0;
  a2 += block.channel;
  partial += block.channel;
  for (; n + most <= scan.states; n += most) backward_states<most>(scan, a2, n, row, buffers, partial);
  for (; n + 4 <= scan.states; n += 4) backward_states<4>(scan, a2, n, row, buffers, partial);
  for (; n < scan.states; ++n) backward_states<1>(scan, a2, n, row, buffers, partial);

  Vec grad_D(0.0f), grad_bias(0.0f);
  for (int64_t t = 0; t < scan.length; ++t) {
    const Vec x = block.load(scan.x + (row + t) * scan.x_stride);
    const Vec g = Vec::load(buffers.g + t * W), to_input = Vec::load(buffers.to_input + t * W);
    // to_delta was summed with A log2(e) in the place of A.
    const Vec to_delta = fma(Vec::load(buffers.to_delta + t * W), Vec(kLn2), x * to_input);
    const Vec grad_delta = to_delta * Vec::load(buffers.slope + t * W);
    block.store(fma(Vec::load(buffers.delta + t * W), to_input, D * g), grads.x + (row + t) * channels);
    block.store(grad_delta, grads.delta + (row + t) * channels);
    grad_D = fma(g, x, grad_D);
    grad_bias = grad_bias + grad_delta;
    if (scan.z != nullptr) {
      const Vec z = block.load(scan.z + (row + t) * scan.z_stride);
      const Vec y = skip(Vec::load(buffers.y + t * W), D, x);
      const Vec grad = block.load(grads.y + (row + t) * channels) * y * silu_slope(z, sigmoid(z));
      block.store(grad, grads.z + (row + t) * channels);
    }
  }
  add_to(partial + scan.states * padded(channels), grad_D);
  add_to(partial + (scan.states + 1) * padded(channels), grad_bias);
}

int64_t scan_forward_scratch(const MscopeScan& scan) { return 3 * scan.length * W; }

int64_t scan_backward_scratch(const MscopeScan& scan) { return BackwardScratch::size(scan.length, scan.states); }

void scan_forward(const MscopeScan& scan, const float* a2, Span span, float* scratch, float* y) {
  const FlushDenormals guard;
  const ForwardScratch buffers(scratch, scan.length);
  for (int64_t b = span.first; b < span.last; ++b)
    for (int64_t c = 0; c < scan.channels; c += W)
      forward_block(scan, a2, b * scan.length, block_at(c, scan.channels), buffers, y);
}

void scan_backward(const MscopeScan& scan, const float* a2, Span span, float* scratch, const MscopeScanGrads& grads,
                   float* partial) {
  const FlushDenormals guard;
  const BackwardScratch buffers(scratch, scan.length, scan.states);
  const int64_t pairs = scan.length * scan.states;
  for (int64_t b = span.first; b < span.last; ++b) {
    const int64_t row = b * scan.length;
    for (int64_t i = 0; i < 2 * pairs; ++i) Vec(0.0f).store(buffers.B + i * W);  // B and C lie side by side
    for (int64_t c = 0; c < scan.channels; c += W)
      backward_block(scan, a2, row, block_at(c, scan.channels), buffers, grads, partial);
    for (int64_t i = 0; i < pairs; ++i) {
      grads.B[row * scan.states + i] = sum(Vec::load(buffers.B + i * W));
      grads.C[row * scan.states + i] = sum(Vec::load(buffers.C + i * W));
    }
  }
}

}  // namespace
}  // namespace MSCOPE_ISA_NAME

const ScanKernels* MSCOPE_CONCAT(scan_kernels_, MSCOPE_ISA_NAME)() {
  static constexpr ScanKernels kernels{W, scan_forward_scratch, scan_backward_scratch, scan_forward, scan_backward};
  return &kernels;
}

}  // namespace mscope

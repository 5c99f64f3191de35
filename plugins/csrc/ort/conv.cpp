// CausalConv1dSiLU for ONNX Runtime.

#include "ort/infer.h"
#include "ort/kernel.h"

namespace mscope {
namespace ort {
namespace {

using inference::ConvProblem;

enum Input : size_t { kXz, kWeight, kBias, kWeightB, kBiasB, kInputs };
constexpr Port kInputPorts[kInputs] = {
    {"xz", true, false}, {"weight", true, false}, {"bias", true, false}, {"weight_b", true, true}, {"bias_b", true, true}};
constexpr Port kOutputPorts[] = {{"x", true, false}};

constexpr int64_t kMinTaps = 2, kMaxTaps = 4;

class ConvKernel final : public Kernel {
 public:
  ConvKernel(const OrtApi& runtime, const OrtKernelInfo* info, const OpSpec& op, Storage stored)
      : Kernel(runtime, info, op, stored) {
    const bool with_weight = present(info, kWeightB), with_bias = present(info, kBiasB);
    if (with_weight != with_bias)
      throw InvalidArgument(node + ": got " + (with_weight ? "weight_b" : "bias_b") + " without " +
                            (with_weight ? "bias_b" : "weight_b") + ", expected both or neither");
    directions_ = with_weight ? 2 : 1;
    Shape shapes[kInputs];
    for (size_t i = 0; i < kInputs; ++i) shapes[i] = declared(info, i);
    validate(shapes);
    for (int d = 0; d < directions_; ++d) {
      const Tensor weight = constant(info, kWeight + 2 * d), bias = constant(info, kBias + 2 * d);
      if (weight && bias) {
        pack(weight, bias, packed_[d].allocate(floats(weight.shape)));
        // The runtime checks a constant's shape against itself only; from here on it is ours.
        channels_ = weight.shape.at(0);
        taps_ = weight.shape.at(1);
      }
    }
  }

  void compute(OrtKernelContext* context) override {
    Tensor in[kInputs];
    Shape shapes[kInputs];
    for (size_t i = 0; i < static_cast<size_t>(directions_ == 2 ? kInputs : kWeightB); ++i) {
      // Packed parameters are neither read nor checked again.
      if (i > kXz && packed_[(i - 1) / 2].get() != nullptr) continue;
      in[i] = input(context, i);
      shapes[i] = in[i].shape;
    }
    if (packed_[0].get() != nullptr) {
      shapes[kWeight].known = true;
      shapes[kWeight].rank = 2;
      shapes[kWeight].extent[0] = channels_;
      shapes[kWeight].extent[1] = taps_;
    }
    validate(shapes);
    const int64_t channels = shapes[kWeight].at(0);
    ConvProblem p{};
    p.storage = storage;
    p.batch = shapes[kXz].at(0);
    p.tokens = shapes[kXz].at(1);
    p.channels = channels;
    p.taps = shapes[kWeight].at(1);
    p.x = in[kXz].data;
    p.x_row = shapes[kXz].at(2);
    Scratch scratch(api, context);
    const int64_t extents[] = {directions_, p.batch * p.tokens, channels};
    char* const x = static_cast<char*>(output(context, 0, extents, 3));
    const int64_t half = p.batch * p.tokens * channels * (storage == Storage::f32 ? 4 : 2);
    p.directions = directions_;
    for (int d = 0; d < directions_; ++d) {
      const float* packed = packed_[d].get();
      if (packed == nullptr) {
        const Tensor &weight = in[kWeight + 2 * d], &bias = in[kBias + 2 * d];
        float* const made = scratch.allocate(floats(weight.shape));
        pack(weight, bias, made);
        packed = made;
      }
      p.direction[d].packed = packed;
      p.direction[d].y = x + d * half;
      p.direction[d].backward = d == 1;
    }
    parallel(context, p, kernels.conv_tasks(p), kernels.conv);
  }

 private:
  void validate(const Shape (&s)[kInputs]) const {
    const int64_t C = s[kWeight].at(0), W = s[kWeight].at(1);
    std::string context;
    if (s[kWeight].known) context = ", with C and W from weight " + to_text(s[kWeight].extent, s[kWeight].rank);
    const ShapeCheck shapes(node, context);
    shapes.expect("weight", s[kWeight], {kUnknown, kUnknown}, "(C, W)");
    if (W != kUnknown && (W < kMinTaps || W > kMaxTaps))
      shapes.refuse("weight has " + std::to_string(W) + " taps, expected W from 2 to 4");
    shapes.expect("bias", s[kBias], {C}, "(C)");
    shapes.expect("xz", s[kXz], {kUnknown, kUnknown, kUnknown}, "(B, L, C + Cz)");
    const int64_t row = s[kXz].at(2);
    if (row != kUnknown && C != kUnknown && row < C)
      shapes.refuse("xz has shape " + to_text(s[kXz].extent, 3) + ", expected at least C = " + std::to_string(C) +
                    " channels");
    if (s[kXz].at(1) == 0) shapes.refuse("xz has no tokens, expected L of at least 1");
    shapes.expect("weight_b", s[kWeightB], {C, W}, "(C, W)");
    shapes.expect("bias_b", s[kBiasB], {C}, "(C)");
  }

  int64_t floats(const Shape& weight) const {
    return inference::packed_conv_floats(kernels.width, weight.at(0), weight.at(1));
  }
  void pack(const Tensor& weight, const Tensor& bias, float* packed) const {
    inference::pack_conv(kernels.width, storage, weight.shape.at(0), weight.shape.at(1), weight.data, bias.data, packed);
  }

  int directions_ = 1;
  int64_t channels_ = kUnknown, taps_ = kUnknown;  // of packed parameters
  Buffer packed_[2];
};

Kernel* create(const OrtApi& api, const OrtKernelInfo* info, const OpSpec& spec, Storage storage) {
  return new ConvKernel(api, info, spec, storage);
}

void infer(const OrtApi& api, OrtShapeInferContext* context) {
  const DeclaredShape xz(api, context, kXz), weight(api, context, kWeight);
  size_t inputs = 0;
  check(api, api.ShapeInferContext_GetInputCount(context, &inputs));
  if (xz.rank() != 3 || weight.rank() != 2) return;
  xz.set_output(context, 0, {{inputs > kWeightB ? 2 : 1, ""}, xz.rows(), weight.axis(0)});
}

}  // namespace

const OpSpec kConvOp = {"CausalConv1dSiLU", kInputPorts, kInputs, kOutputPorts, 1, create, infer};

}  // namespace ort
}  // namespace mscope

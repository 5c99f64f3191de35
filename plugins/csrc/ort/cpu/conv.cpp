// CausalConv1dSiLU for ONNX Runtime on the CPU.

#include "ort/contract.h"
#include "ort/cpu/kernel.h"

namespace mscope {
namespace ort {
namespace {

using inference::ConvProblem;

class ConvKernel final : public CpuKernel {
 public:
  ConvKernel(const OrtApi& runtime, const OrtKernelInfo* info, const OpSpec& op, Storage stored)
      : CpuKernel(runtime, info, op, stored) {
    directions_ = conv_directions(node, present(info, kConvWeightB), present(info, kConvBiasB));
    Shape shapes[kConvInputs];
    for (size_t i = 0; i < kConvInputs; ++i) shapes[i] = declared(info, i);
    check_conv(node, shapes);
    for (int d = 0; d < directions_; ++d) {
      const Tensor weight = constant(info, kConvWeight + 2 * d), bias = constant(info, kConvBias + 2 * d);
      if (weight && bias) {
        pack(weight, bias, packed_[d].allocate(floats(weight.shape)));
        // The runtime checks a constant's shape against itself only; from here on it is ours.
        channels_ = weight.shape.at(0);
        taps_ = weight.shape.at(1);
      }
    }
  }

  void compute(OrtKernelContext* context) override {
    Tensor in[kConvInputs];
    Shape shapes[kConvInputs];
    for (size_t i = 0; i < static_cast<size_t>(directions_ == 2 ? kConvInputs : kConvWeightB); ++i) {
      // Packed parameters are neither read nor checked again.
      if (i > kConvXz && packed_[(i - 1) / 2].get() != nullptr) continue;
      in[i] = input(context, i);
      shapes[i] = in[i].shape;
    }
    if (packed_[0].get() != nullptr) {
      shapes[kConvWeight].known = true;
      shapes[kConvWeight].rank = 2;
      shapes[kConvWeight].extent[0] = channels_;
      shapes[kConvWeight].extent[1] = taps_;
    }
    check_conv(node, shapes);
    const int64_t channels = shapes[kConvWeight].at(0);
    ConvProblem p{};
    p.storage = storage;
    p.batch = shapes[kConvXz].at(0);
    p.tokens = shapes[kConvXz].at(1);
    p.channels = channels;
    p.taps = shapes[kConvWeight].at(1);
    p.x = in[kConvXz].data;
    p.x_row = shapes[kConvXz].at(2);
    Scratch scratch(api, context);
    const int64_t extents[] = {directions_, p.batch * p.tokens, channels};
    char* const x = static_cast<char*>(output(context, 0, extents, 3));
    const int64_t half = p.batch * p.tokens * channels * bytes_of(storage);
    p.directions = directions_;
    for (int d = 0; d < directions_; ++d) {
      const float* packed = packed_[d].get();
      if (packed == nullptr) {
        const Tensor &weight = in[kConvWeight + 2 * d], &bias = in[kConvBias + 2 * d];
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

}  // namespace

const OpSpec kConvOp = conv_spec(create);

}  // namespace ort
}  // namespace mscope

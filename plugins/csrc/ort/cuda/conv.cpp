// CausalConv1dSiLU for ONNX Runtime on CUDA.

#include "ort/cuda/kernel.h"

namespace mscope {
namespace ort {
namespace {

class ConvKernel final : public CudaKernel {
 public:
  ConvKernel(const OrtApi& runtime, const OrtKernelInfo* info, const OpSpec& op, Storage stored)
      : CudaKernel(runtime, info, op, stored),
        directions_(conv_directions(node, present(info, kConvWeightB), present(info, kConvBiasB))) {
    Shape shapes[kConvInputs];
    declare(info, shapes);
    check_conv(node, shapes);
  }

  void compute(OrtKernelContext* context) override {
    Shape shapes[kConvInputs];
    const void* data[kConvInputs];
    read(context, shapes, data);
    check_conv(node, shapes);
    DenseSizes sizes = {};
    sizes.batch = shapes[kConvXz].at(0);
    sizes.length = shapes[kConvXz].at(1);
    sizes.row = shapes[kConvXz].at(2);
    sizes.channels = shapes[kConvWeight].at(0);
    sizes.width = shapes[kConvWeight].at(1);
    const int64_t extents[] = {directions_, sizes.batch * sizes.length, sizes.channels};
    OrtValue* x = nullptr;
    void* const to = output(context, 0, extents, 3, &x);
    launch(context, x, dense_conv(sizes, dtype(), data, to));
  }

 private:
  const int directions_;
};

Kernel* create(const OrtApi& api, const OrtKernelInfo* info, const OpSpec& spec, Storage storage) {
  return new ConvKernel(api, info, spec, storage);
}

}  // namespace

const OpSpec kConvOp = conv_spec(create);

}  // namespace ort
}  // namespace mscope

// SelectiveScan and BidirectionalSelectiveScan for ONNX Runtime on CUDA.

#include "ort/cuda/kernel.h"

namespace mscope {
namespace ort {
namespace {

class ScanKernel final : public CudaKernel {
 public:
  ScanKernel(const OrtApi& runtime, const OrtKernelInfo* info, const OpSpec& op, Storage stored)
      : CudaKernel(runtime, info, op, stored),
        reverse_(flag(info, "reverse", false)),
        softplus_(flag(info, "delta_softplus", true)) {
    Shape shapes[kScanInputs];
    declare(info, shapes);
    check_scan(node, shapes);
  }

  void compute(OrtKernelContext* context) override {
    Shape shapes[kScanInputs];
    const void* data[kScanInputs];
    read(context, shapes, data);
    check_scan(node, shapes);
    DenseSizes sizes = {};
    sizes.batch = shapes[kScanX].at(0);
    sizes.length = shapes[kScanX].at(1);
    sizes.channels = shapes[kScanA].at(0);
    sizes.states = shapes[kScanA].at(1);
    const int64_t extents[] = {sizes.batch, sizes.length, sizes.channels};
    OrtValue* y = nullptr;
    void* const to = output(context, 0, extents, 3, &y);
    launch(context, y, dense_scan(sizes, dtype(), data, reverse_, softplus_, to));
  }

 private:
  const bool reverse_, softplus_;
};

class BidirectionalScanKernel final : public CudaKernel {
 public:
  BidirectionalScanKernel(const OrtApi& runtime, const OrtKernelInfo* info, const OpSpec& op, Storage stored)
      : CudaKernel(runtime, info, op, stored) {
    Shape shapes[kBidirectionalInputs];
    declare(info, shapes);
    check_bidirectional(node, shapes);
  }

  void compute(OrtKernelContext* context) override {
    Shape shapes[kBidirectionalInputs];
    const void* data[kBidirectionalInputs];
    read(context, shapes, data);
    check_bidirectional(node, shapes);
    DenseSizes sizes = {};
    sizes.batch = shapes[kBidirectionalXz].at(0);
    sizes.length = shapes[kBidirectionalXz].at(1);
    sizes.row = shapes[kBidirectionalXz].at(2);
    sizes.channels = shapes[kBidirectionalParameters + kDecay].at(0);
    sizes.states = shapes[kBidirectionalParameters + kDecay].at(1);
    sizes.rank = shapes[kBidirectionalParameters + kDtWeight].at(1);
    const int64_t extents[] = {sizes.batch, sizes.length, sizes.channels};
    OrtValue* y = nullptr;
    void* const to = output(context, 0, extents, 3, &y);
    launch(context, y, dense_bidirectional(sizes, dtype(), data, to));
  }
};

template <class Op>
Kernel* create(const OrtApi& api, const OrtKernelInfo* info, const OpSpec& spec, Storage storage) {
  return new Op(api, info, spec, storage);
}

}  // namespace

const OpSpec kScanOp = scan_spec(create<ScanKernel>);
const OpSpec kBidirectionalScanOp = bidirectional_spec(create<BidirectionalScanKernel>);

}  // namespace ort
}  // namespace mscope

// SelectiveScan for ONNX Runtime on the CPU.

#include "ort/contract.h"
#include "ort/cpu/kernel.h"

namespace mscope {
namespace ort {
namespace {

using inference::ScanProblem;

class ScanKernel final : public CpuKernel {
 public:
  ScanKernel(const OrtApi& runtime, const OrtKernelInfo* info, const OpSpec& op, Storage stored)
      : CpuKernel(runtime, info, op, stored),
        reverse_(flag(info, "reverse", false)),
        softplus_(flag(info, "delta_softplus", true)) {
    Shape shapes[kScanInputs];
    for (size_t i = 0; i < kScanInputs; ++i) shapes[i] = declared(info, i);
    check_scan(node, shapes);
    const Tensor A = constant(info, kScanA), D = constant(info, kScanD), bias = constant(info, kScanDeltaBias);
    if (A && D && (bias || !present(info, kScanDeltaBias))) {
      pack(A, D, bias, packed_.allocate(floats(A.shape)));
      A_ = A.shape;
    }
  }

  void compute(OrtKernelContext* context) override {
    Tensor in[kScanInputs];
    Shape shapes[kScanInputs];
    for (size_t i = 0; i < kScanInputs; ++i) {
      const bool parameter = i == kScanA || i == kScanD || i == kScanDeltaBias;
      if (parameter && packed_.get() != nullptr) continue;
      in[i] = input(context, i);
      shapes[i] = in[i].shape;
    }
    if (packed_.get() != nullptr) shapes[kScanA] = A_;
    check_scan(node, shapes);
    ScanProblem p{};
    p.storage = p.inner = storage;
    p.batch = shapes[kScanX].at(0);
    p.tokens = shapes[kScanX].at(1);
    p.channels = shapes[kScanA].at(0);
    p.states = shapes[kScanA].at(1);
    p.softplus = softplus_;
    p.directions = 1;
    p.z = in[kScanZ].data;
    p.z_row = p.channels;
    inference::ScanDirection& d = p.direction[0];
    d.x = in[kScanX].data;
    d.delta = in[kScanDelta].data;
    d.x_row = d.delta_row = p.channels;
    d.B = in[kScanB].data;
    d.C = in[kScanC].data;
    d.B_row = d.C_row = p.states;
    d.reverse = reverse_;
    Scratch scratch(api, context);
    d.packed = packed_.get();
    if (d.packed == nullptr) {
      float* const made = scratch.allocate(floats(shapes[kScanA]));
      pack(in[kScanA], in[kScanD], in[kScanDeltaBias], made);
      d.packed = made;
    }
    const int64_t extents[] = {p.batch, p.tokens, p.channels};
    p.y = output(context, 0, extents, 3);
    const int64_t tasks = kernels.scan_tasks(p);
    if (p.states > inference::kStatesInPlace && tasks > 0)
      p.state = scratch.allocate(tasks * p.states * kernels.width);
    parallel(context, p, tasks, kernels.scan);
  }

 private:
  int64_t floats(const Shape& A) const { return inference::packed_scan_floats(kernels.width, A.at(0), A.at(1), 0); }
  void pack(const Tensor& A, const Tensor& D, const Tensor& bias, float* packed) const {
    inference::pack_scan(kernels.width, storage, A.shape.at(0), A.shape.at(1), 0, static_cast<const float*>(A.data),
                         nullptr, static_cast<const float*>(bias.data), static_cast<const float*>(D.data), packed);
  }

  const bool reverse_, softplus_;
  Shape A_;  // of packed parameters
  Buffer packed_;
};

Kernel* create(const OrtApi& api, const OrtKernelInfo* info, const OpSpec& spec, Storage storage) {
  return new ScanKernel(api, info, spec, storage);
}

}  // namespace

const OpSpec kScanOp = scan_spec(create);

}  // namespace ort
}  // namespace mscope

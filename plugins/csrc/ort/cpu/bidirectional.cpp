// BidirectionalSelectiveScan for ONNX Runtime on the CPU.

#include "ort/contract.h"
#include "ort/cpu/kernel.h"

namespace mscope {
namespace ort {
namespace {

using inference::ScanProblem;

class BidirectionalScanKernel final : public CpuKernel {
 public:
  BidirectionalScanKernel(const OrtApi& runtime, const OrtKernelInfo* info, const OpSpec& op, Storage stored)
      : CpuKernel(runtime, info, op, stored) {
    Shape shapes[kBidirectionalInputs];
    for (size_t i = 0; i < kBidirectionalInputs; ++i) shapes[i] = declared(info, i);
    check_bidirectional(node, shapes);
    Tensor parameters[2][kParametersADirection];
    for (size_t d = 0; d < 2; ++d)
      for (size_t i = 0; i < kParametersADirection; ++i) {
        parameters[d][i] = constant(info, kBidirectionalParameters + d * kParametersADirection + i);
        if (!parameters[d][i]) return;  // all of them or none: packed in every run then
      }
    A_ = parameters[0][kDecay].shape;
    dt_weight_ = parameters[0][kDtWeight].shape;
    for (size_t d = 0; d < 2; ++d) pack(parameters[d], packed_[d].allocate(floats(A_, dt_weight_)));
  }

  void compute(OrtKernelContext* context) override {
    const bool ready = packed_[0].get() != nullptr;
    Tensor in[kBidirectionalInputs];
    Shape shapes[kBidirectionalInputs];
    for (size_t i = 0; i < (ready ? kBidirectionalParameters : kBidirectionalInputs); ++i) {
      in[i] = input(context, i);
      shapes[i] = in[i].shape;
    }
    if (ready) {
      shapes[kBidirectionalParameters + kDecay] = A_;
      shapes[kBidirectionalParameters + kDtWeight] = dt_weight_;
    }
    check_bidirectional(node, shapes);
    const Shape &A = shapes[kBidirectionalParameters + kDecay], &dt_weight = shapes[kBidirectionalParameters + kDtWeight];
    ScanProblem p{};
    p.storage = p.inner = storage;
    p.batch = shapes[kBidirectionalXz].at(0);
    p.tokens = shapes[kBidirectionalXz].at(1);
    p.channels = A.at(0);
    p.states = A.at(1);
    p.rank = dt_weight.at(1);
    p.softplus = true;
    p.directions = 2;
    const int64_t element = bytes_of(storage);
    p.z = static_cast<const char*>(in[kBidirectionalXz].data) + p.channels * element;
    p.z_row = 2 * p.channels;
    Scratch scratch(api, context);
    for (size_t i = 0; i < 2; ++i) {
      inference::ScanDirection& d = p.direction[i];
      // Direction i is the i-th half: (2, B L, C) and (2, B L, R + 2N).
      const int64_t first = static_cast<int64_t>(i) * p.batch * p.tokens;
      d.x = static_cast<const char*>(in[kBidirectionalX].data) + first * p.channels * element;
      d.x_row = p.channels;
      const char* const dbc = static_cast<const char*>(in[kBidirectionalDbc].data) + first * (p.rank + 2 * p.states) * element;
      d.delta = dbc;
      d.B = dbc + p.rank * element;
      d.C = dbc + (p.rank + p.states) * element;
      d.delta_row = d.B_row = d.C_row = p.rank + 2 * p.states;
      d.reverse = i == 1;
      d.packed = packed_[i].get();
      if (d.packed == nullptr) {
        float* const made = scratch.allocate(floats(A, dt_weight));
        pack(in + kBidirectionalParameters + i * kParametersADirection, made);
        d.packed = made;
      }
    }
    const int64_t extents[] = {p.batch, p.tokens, p.channels};
    p.y = output(context, 0, extents, 3);
    const int64_t tasks = kernels.scan_tasks(p);
    if (tasks == 0) return;
    if (storage != Storage::f32) p.sum = scratch.allocate(p.batch * p.tokens * p.channels);
    if (p.states > inference::kStatesInPlace) p.state = scratch.allocate(tasks * p.states * kernels.width);
    parallel(context, p, tasks, kernels.scan);
  }

 private:
  int64_t floats(const Shape& A, const Shape& dt_weight) const {
    return inference::packed_scan_floats(kernels.width, A.at(0), A.at(1), dt_weight.at(1));
  }
  void pack(const Tensor* parameters, float* packed) const {
    const Shape& A = parameters[kDecay].shape;
    inference::pack_scan(kernels.width, storage, A.at(0), A.at(1), parameters[kDtWeight].shape.at(1),
                         static_cast<const float*>(parameters[kDecay].data), parameters[kDtWeight].data,
                         static_cast<const float*>(parameters[kDtBias].data),
                         static_cast<const float*>(parameters[kSkip].data), packed);
  }

  Shape A_, dt_weight_;  // of packed parameters
  Buffer packed_[2];
};

Kernel* create(const OrtApi& api, const OrtKernelInfo* info, const OpSpec& spec, Storage storage) {
  return new BidirectionalScanKernel(api, info, spec, storage);
}

}  // namespace

const OpSpec kBidirectionalScanOp = bidirectional_spec(create);

}  // namespace ort
}  // namespace mscope

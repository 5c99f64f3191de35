// BidirectionalSelectiveScan for ONNX Runtime.

#include "ort/infer.h"
#include "ort/kernel.h"

namespace mscope {
namespace ort {
namespace {

using inference::ScanProblem;

// Parameters of one direction, in the order of the contract.
enum Parameter : size_t { kDtWeight, kDtBias, kA, kD, kParameters };
enum Input : size_t { kXz, kX, kDbc, kForward, kBackward = kForward + kParameters,
                      kInputs = kBackward + kParameters };
constexpr Port kInputPorts[kInputs] = {
    {"xz", true, false},           {"x", true, false},          {"dbc", true, false},
    {"dt_weight", true, false},    {"dt_bias", false, false},   {"A", false, false},   {"D", false, false},
    {"dt_weight_b", true, false},  {"dt_bias_b", false, false}, {"A_b", false, false}, {"D_b", false, false}};
constexpr Port kOutputPorts[] = {{"y", true, false}};

class BidirectionalScanKernel final : public Kernel {
 public:
  BidirectionalScanKernel(const OrtApi& runtime, const OrtKernelInfo* info, const OpSpec& op, Storage stored)
      : Kernel(runtime, info, op, stored) {
    Shape shapes[kInputs];
    for (size_t i = 0; i < kInputs; ++i) shapes[i] = declared(info, i);
    validate(shapes);
    Tensor parameters[2][kParameters];
    for (size_t d = 0; d < 2; ++d)
      for (size_t i = 0; i < kParameters; ++i) {
        parameters[d][i] = constant(info, kForward + d * kParameters + i);
        if (!parameters[d][i]) return;  // all of them or none: packed in every run then
      }
    A_ = parameters[0][kA].shape;
    dt_weight_ = parameters[0][kDtWeight].shape;
    for (size_t d = 0; d < 2; ++d) pack(parameters[d], packed_[d].allocate(floats(A_, dt_weight_)));
  }

  void compute(OrtKernelContext* context) override {
    const bool ready = packed_[0].get() != nullptr;
    Tensor in[kInputs];
    Shape shapes[kInputs];
    for (size_t i = 0; i < (ready ? kForward : kInputs); ++i) {
      in[i] = input(context, i);
      shapes[i] = in[i].shape;
    }
    if (ready) {
      shapes[kForward + kA] = A_;
      shapes[kForward + kDtWeight] = dt_weight_;
    }
    validate(shapes);
    const Shape &A = shapes[kForward + kA], &dt_weight = shapes[kForward + kDtWeight];
    ScanProblem p{};
    p.storage = p.inner = storage;
    p.batch = shapes[kXz].at(0);
    p.tokens = shapes[kXz].at(1);
    p.channels = A.at(0);
    p.states = A.at(1);
    p.rank = dt_weight.at(1);
    p.softplus = true;
    p.directions = 2;
    const int64_t element = storage == Storage::f32 ? 4 : 2;
    p.z = static_cast<const char*>(in[kXz].data) + p.channels * element;
    p.z_row = 2 * p.channels;
    Scratch scratch(api, context);
    for (size_t i = 0; i < 2; ++i) {
      inference::ScanDirection& d = p.direction[i];
      // Direction i is the i-th half: (2, B L, C) and (2, B L, R + 2N).
      const int64_t first = static_cast<int64_t>(i) * p.batch * p.tokens;
      d.x = static_cast<const char*>(in[kX].data) + first * p.channels * element;
      d.x_row = p.channels;
      const char* const dbc = static_cast<const char*>(in[kDbc].data) + first * (p.rank + 2 * p.states) * element;
      d.delta = dbc;
      d.B = dbc + p.rank * element;
      d.C = dbc + (p.rank + p.states) * element;
      d.delta_row = d.B_row = d.C_row = p.rank + 2 * p.states;
      d.reverse = i == 1;
      d.packed = packed_[i].get();
      if (d.packed == nullptr) {
        float* const made = scratch.allocate(floats(A, dt_weight));
        pack(in + kForward + i * kParameters, made);
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
  void validate(const Shape (&s)[kInputs]) const {
    const Shape &A = s[kForward + kA], &dt_weight = s[kForward + kDtWeight];
    const int64_t B = s[kXz].at(0), L = s[kXz].at(1), C = A.at(0), N = A.at(1), R = dt_weight.at(1);
    std::string context;
    if (A.known) context += ", with C and N from A " + to_text(A.extent, A.rank);
    if (dt_weight.known) context += ", R from dt_weight " + to_text(dt_weight.extent, dt_weight.rank);
    if (s[kXz].known) context += ", B and L from xz " + to_text(s[kXz].extent, s[kXz].rank);
    const ShapeCheck shapes(node, context);
    shapes.expect("A", A, {kUnknown, kUnknown}, "(C, N)");
    if (C == 0 || N == 0) shapes.refuse("A has shape " + to_text(A.extent, 2) + ", expected C and N of at least 1");
    shapes.expect("dt_weight", dt_weight, {C, kUnknown}, "(C, R)");
    if (R == 0) shapes.refuse("dt_weight has shape " + to_text(dt_weight.extent, 2) + ", expected R of at least 1");
    shapes.expect("xz", s[kXz], {kUnknown, kUnknown, C == kUnknown ? kUnknown : 2 * C}, "(B, L, 2C)");
    if (L == 0) shapes.refuse("xz has no tokens, expected L of at least 1");
    const int64_t columns = R == kUnknown || N == kUnknown ? kUnknown : R + 2 * N;
    const int64_t rows = B == kUnknown || L == kUnknown ? kUnknown : B * L;
    shapes.expect("x", s[kX], {2, rows, C}, "(2, B L, C)");
    shapes.expect("dbc", s[kDbc], {2, rows, columns}, "(2, B L, R + 2N)");
    for (size_t i = 0; i < 2; ++i) {
      const size_t first = kForward + i * kParameters;
      shapes.expect(kInputPorts[first + kDtWeight].name, s[first + kDtWeight], {C, R}, "(C, R)");
      shapes.expect(kInputPorts[first + kDtBias].name, s[first + kDtBias], {C}, "(C)");
      shapes.expect(kInputPorts[first + kA].name, s[first + kA], {C, N}, "(C, N)");
      shapes.expect(kInputPorts[first + kD].name, s[first + kD], {C}, "(C)");
    }
  }

  int64_t floats(const Shape& A, const Shape& dt_weight) const {
    return inference::packed_scan_floats(kernels.width, A.at(0), A.at(1), dt_weight.at(1));
  }
  void pack(const Tensor* parameters, float* packed) const {
    const Shape& A = parameters[kA].shape;
    inference::pack_scan(kernels.width, storage, A.at(0), A.at(1), parameters[kDtWeight].shape.at(1),
                         static_cast<const float*>(parameters[kA].data), parameters[kDtWeight].data,
                         static_cast<const float*>(parameters[kDtBias].data),
                         static_cast<const float*>(parameters[kD].data), packed);
  }

  Shape A_, dt_weight_;  // of packed parameters
  Buffer packed_[2];
};

Kernel* create(const OrtApi& api, const OrtKernelInfo* info, const OpSpec& spec, Storage storage) {
  return new BidirectionalScanKernel(api, info, spec, storage);
}

void infer(const OrtApi& api, OrtShapeInferContext* context) {
  const DeclaredShape xz(api, context, kXz), x(api, context, kX);
  if (xz.rank() == 3 && x.rank() == 3) xz.set_output(context, 0, {xz.axis(0), xz.axis(1), x.axis(2)});
}

}  // namespace

const OpSpec kBidirectionalScanOp = {"BidirectionalSelectiveScan", kInputPorts, kInputs, kOutputPorts, 1, create, infer};

}  // namespace ort
}  // namespace mscope

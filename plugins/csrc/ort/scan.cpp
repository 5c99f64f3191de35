// SelectiveScan for ONNX Runtime.

#include "ort/infer.h"
#include "ort/kernel.h"

namespace mscope {
namespace ort {
namespace {

using inference::ScanProblem;

enum Input : size_t { kX, kDelta, kA, kB, kC, kD, kZ, kDeltaBias, kInputs };
constexpr Port kInputPorts[kInputs] = {{"x", true, false}, {"delta", true, false}, {"A", false, false},
                                       {"B", true, false}, {"C", true, false},     {"D", false, false},
                                       {"z", true, true},  {"delta_bias", false, true}};
constexpr Port kOutputPorts[] = {{"y", true, false}};

class ScanKernel final : public Kernel {
 public:
  ScanKernel(const OrtApi& runtime, const OrtKernelInfo* info, const OpSpec& op, Storage stored)
      : Kernel(runtime, info, op, stored),
        reverse_(flag(info, "reverse", 0)),
        softplus_(flag(info, "delta_softplus", 1)) {
    Shape shapes[kInputs];
    for (size_t i = 0; i < kInputs; ++i) shapes[i] = declared(info, i);
    validate(shapes);
    const Tensor A = constant(info, kA), D = constant(info, kD), bias = constant(info, kDeltaBias);
    if (A && D && (bias || !present(info, kDeltaBias))) {
      pack(A, D, bias, packed_.allocate(floats(A.shape)));
      A_ = A.shape;
    }
  }

  void compute(OrtKernelContext* context) override {
    Tensor in[kInputs];
    Shape shapes[kInputs];
    for (size_t i = 0; i < kInputs; ++i) {
      const bool parameter = i == kA || i == kD || i == kDeltaBias;
      if (parameter && packed_.get() != nullptr) continue;
      in[i] = input(context, i);
      shapes[i] = in[i].shape;
    }
    if (packed_.get() != nullptr) shapes[kA] = A_;
    validate(shapes);
    ScanProblem p{};
    p.storage = p.inner = storage;
    p.batch = shapes[kX].at(0);
    p.tokens = shapes[kX].at(1);
    p.channels = shapes[kA].at(0);
    p.states = shapes[kA].at(1);
    p.softplus = softplus_;
    p.directions = 1;
    p.z = in[kZ].data;
    p.z_row = p.channels;
    inference::ScanDirection& d = p.direction[0];
    d.x = in[kX].data;
    d.delta = in[kDelta].data;
    d.x_row = d.delta_row = p.channels;
    d.B = in[kB].data;
    d.C = in[kC].data;
    d.B_row = d.C_row = p.states;
    d.reverse = reverse_;
    Scratch scratch(api, context);
    d.packed = packed_.get();
    if (d.packed == nullptr) {
      float* const made = scratch.allocate(floats(shapes[kA]));
      pack(in[kA], in[kD], in[kDeltaBias], made);
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
  bool flag(const OrtKernelInfo* info, const char* name, int64_t otherwise) const {
    const int64_t value = attribute(info, name, otherwise);
    if (value != 0 && value != 1)
      throw InvalidArgument(node + ": attribute " + name + " is " + std::to_string(value) + ", expected 0 or 1");
    return value == 1;
  }

  void validate(const Shape (&s)[kInputs]) const {
    const int64_t B = s[kX].at(0), L = s[kX].at(1), C = s[kA].at(0), N = s[kA].at(1);
    std::string context;
    if (s[kA].known) context += ", with C and N from A " + to_text(s[kA].extent, s[kA].rank);
    if (s[kX].known) context += ", B and L from x " + to_text(s[kX].extent, s[kX].rank);
    const ShapeCheck shapes(node, context);
    shapes.expect("A", s[kA], {kUnknown, kUnknown}, "(C, N)");
    shapes.expect("x", s[kX], {kUnknown, kUnknown, C}, "(B, L, C)");
    if (L == 0) shapes.refuse("x has no tokens, expected L of at least 1");
    if (C == 0 || N == 0) shapes.refuse("A has shape " + to_text(s[kA].extent, 2) + ", expected C and N of at least 1");
    shapes.expect("delta", s[kDelta], {B, L, C}, "(B, L, C)");
    shapes.expect("B", s[kB], {B, L, N}, "(B, L, N)");
    shapes.expect("C", s[kC], {B, L, N}, "(B, L, N)");
    shapes.expect("D", s[kD], {C}, "(C)");
    shapes.expect("z", s[kZ], {B, L, C}, "(B, L, C)");
    shapes.expect("delta_bias", s[kDeltaBias], {C}, "(C)");
  }

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

void infer(const OrtApi& api, OrtShapeInferContext* context) {
  const DeclaredShape x(api, context, kX);
  if (x.rank() == 3) x.set_output(context, 0, {x.axis(0), x.axis(1), x.axis(2)});
}

}  // namespace

const OpSpec kScanOp = {"SelectiveScan", kInputPorts, kInputs, kOutputPorts, 1, create, infer};

}  // namespace ort
}  // namespace mscope

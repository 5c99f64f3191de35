// VimMixer for ONNX Runtime on the CPU: convolution, x_proj and scan as two rounds of tasks instead of four nodes.

#include "ort/contract.h"
#include "ort/cpu/kernel.h"
#include "ort/infer.h"

namespace mscope {
namespace ort {
namespace {

using inference::ProjectProblem;
using inference::ScanProblem;

// Parameters of one direction, in the order of the contract.
enum Tap : size_t { kWeight, kBias, kTaps };
enum Parameter : size_t { kDtWeight, kDtBias, kA, kD, kParameters };
enum Input : size_t { kXz, kConv, kXProj = kConv + 2 * kTaps, kScan, kInputs = kScan + 2 * kParameters };
constexpr Port kInputPorts[kInputs] = {
    {"xz", true, false},
    {"weight", true, false},       {"bias", true, false},       {"weight_b", true, false}, {"bias_b", true, false},
    {"x_proj_weight", true, false},
    {"dt_weight", true, false},    {"dt_bias", false, false},   {"A", false, false},   {"D", false, false},
    {"dt_weight_b", true, false},  {"dt_bias_b", false, false}, {"A_b", false, false}, {"D_b", false, false}};
constexpr Port kOutputPorts[] = {{"y", true, false}};

// Sizes of one problem, from the shapes of its parameters.
struct Sizes {
  int64_t channels, taps, states, rank;
  int64_t columns() const { return rank + 2 * states; }
};

class MixerKernel final : public CpuKernel {
 public:
  MixerKernel(const OrtApi& runtime, const OrtKernelInfo* info, const OpSpec& op, Storage stored)
      : CpuKernel(runtime, info, op, stored) {
    Shape shapes[kInputs];
    for (size_t i = 0; i < kInputs; ++i) shapes[i] = declared(info, i);
    validate(shapes);
    Tensor in[kInputs];
    for (size_t i = kConv; i < kInputs; ++i) {
      in[i] = constant(info, i);
      if (!in[i]) return;  // all of them or none: packed in every run then
    }
    for (size_t i = kConv; i < kInputs; ++i) parameters_[i] = in[i].shape;
    const Sizes sizes = sizes_of(parameters_);
    pack(in, sizes, packed_.allocate(floats(sizes)));
  }

  void compute(OrtKernelContext* context) override {
    const bool ready = packed_.get() != nullptr;
    Tensor in[kInputs];
    Shape shapes[kInputs];
    for (size_t i = 0; i < kInputs; ++i) {
      if (ready && i >= kConv) {
        shapes[i] = parameters_[i];
      } else {
        in[i] = input(context, i);
        shapes[i] = in[i].shape;
      }
    }
    validate(shapes);
    const Sizes sizes = sizes_of(shapes);
    const int64_t batch = shapes[kXz].at(0), tokens = shapes[kXz].at(1), rows = batch * tokens, C = sizes.channels;
    const int64_t extents[] = {batch, tokens, C};
    void* const y = output(context, 0, extents, 3);
    if (rows == 0) return;
    Scratch scratch(api, context);
    const float* packed = packed_.get();
    if (!ready) {
      float* const made = scratch.allocate(floats(sizes));
      pack(in, sizes, made);
      packed = made;
    }
    const int64_t columns = inference::padded_columns(kernels.width, sizes.columns());
    float* const x = scratch.allocate(2 * rows * (C + columns));
    float* const dbc = x + 2 * rows * C;
    const int64_t element = bytes_of(storage);

    ProjectProblem project{};
    project.conv.storage = storage;
    project.conv.batch = batch, project.conv.tokens = tokens, project.conv.channels = C, project.conv.taps = sizes.taps;
    project.conv.x = in[kXz].data;
    project.conv.x_row = 2 * C;
    project.conv.directions = 2;
    project.columns = columns;
    ScanProblem scan{};
    scan.storage = storage;
    scan.inner = Storage::f32;
    scan.batch = batch, scan.tokens = tokens, scan.channels = C, scan.states = sizes.states, scan.rank = sizes.rank;
    scan.softplus = true;
    scan.directions = 2;
    scan.z = static_cast<const char*>(in[kXz].data) + C * element;
    scan.z_row = 2 * C;
    scan.y = y;
    for (size_t i = 0; i < 2; ++i) {
      const Packed at = part(packed, sizes, i);
      float* const x_i = x + static_cast<int64_t>(i) * rows * C;
      float* const dbc_i = dbc + static_cast<int64_t>(i) * rows * columns;
      project.conv.direction[i] = {at.conv, x_i, i == 1};
      project.weight[i] = at.x_proj;
      project.dbc[i] = dbc_i;
      scan.direction[i] = {at.scan, x_i, C, dbc_i, columns, dbc_i + sizes.rank, dbc_i + sizes.rank + sizes.states,
                           columns, columns, i == 1};
    }
    const int64_t tasks = kernels.scan_tasks(scan);
    if (storage != Storage::f32) scan.sum = scratch.allocate(rows * C);
    if (sizes.states > inference::kStatesInPlace) scan.state = scratch.allocate(tasks * sizes.states * kernels.width);
    parallel(context, project, kernels.project_tasks(project), kernels.project);
    parallel(context, scan, tasks, kernels.scan);
  }

 private:
  static Sizes sizes_of(const Shape (&s)[kInputs]) {
    return {s[kScan + kA].at(0), s[kConv + kWeight].at(1), s[kScan + kA].at(1), s[kScan + kDtWeight].at(1)};
  }

  void validate(const Shape (&s)[kInputs]) const {
    const Shape &A = s[kScan + kA], &dt_weight = s[kScan + kDtWeight], &weight = s[kConv + kWeight];
    const int64_t C = A.at(0), N = A.at(1), R = dt_weight.at(1), W = weight.at(1);
    std::string context;
    if (A.known) context += ", with C and N from A " + to_text(A.extent, A.rank);
    if (dt_weight.known) context += ", R from dt_weight " + to_text(dt_weight.extent, dt_weight.rank);
    const ShapeCheck shapes(node, context);
    shapes.expect("A", A, {kUnknown, kUnknown}, "(C, N)");
    if (C == 0 || N == 0) shapes.refuse("A has shape " + to_text(A.extent, 2) + ", expected C and N of at least 1");
    shapes.expect("dt_weight", dt_weight, {C, kUnknown}, "(C, R)");
    if (R == 0) shapes.refuse("dt_weight has shape " + to_text(dt_weight.extent, 2) + ", expected R of at least 1");
    shapes.expect("weight", weight, {C, kUnknown}, "(C, W)");
    if (W != kUnknown && (W < kMinTaps || W > kMaxTaps))
      shapes.refuse("weight has " + std::to_string(W) + " taps, expected W from 2 to 4");
    shapes.expect("xz", s[kXz], {kUnknown, kUnknown, times(2, C)}, "(B, L, 2C)");
    if (s[kXz].at(1) == 0) shapes.refuse("xz has no tokens, expected L of at least 1");
    const int64_t columns = plus(R, times(2, N));
    shapes.expect("x_proj_weight", s[kXProj], {2, C, columns}, "(2, C, R + 2N)");
    for (size_t i = 0; i < 2; ++i) {
      const size_t conv = kConv + i * kTaps, scan = kScan + i * kParameters;
      shapes.expect(kInputPorts[conv + kWeight].name, s[conv + kWeight], {C, W}, "(C, W)");
      shapes.expect(kInputPorts[conv + kBias].name, s[conv + kBias], {C}, "(C)");
      shapes.expect(kInputPorts[scan + kDtWeight].name, s[scan + kDtWeight], {C, R}, "(C, R)");
      shapes.expect(kInputPorts[scan + kDtBias].name, s[scan + kDtBias], {C}, "(C)");
      shapes.expect(kInputPorts[scan + kA].name, s[scan + kA], {C, N}, "(C, N)");
      shapes.expect(kInputPorts[scan + kD].name, s[scan + kD], {C}, "(C)");
    }
  }

  // The packed parameters lie side by side: per direction those of the convolution, of x_proj and of the scan, each padded
  // to whole vectors.
  struct Packed {
    const float *conv, *x_proj, *scan;
  };
  int64_t conv_floats(const Sizes& s) const { return inference::packed_conv_floats(kernels.width, s.channels, s.taps); }
  int64_t x_proj_floats(const Sizes& s) const {
    return s.channels * inference::padded_columns(kernels.width, s.columns());
  }
  int64_t scan_floats(const Sizes& s) const {
    return inference::packed_scan_floats(kernels.width, s.channels, s.states, s.rank);
  }
  int64_t floats(const Sizes& s) const { return 2 * (conv_floats(s) + x_proj_floats(s) + scan_floats(s)); }
  Packed part(const float* packed, const Sizes& s, size_t direction) const {
    const float* const conv = packed + static_cast<int64_t>(direction) * floats(s) / 2;
    return {conv, conv + conv_floats(s), conv + conv_floats(s) + x_proj_floats(s)};
  }
  void pack(const Tensor* in, const Sizes& s, float* packed) const {
    const int64_t element = bytes_of(storage);
    for (size_t i = 0; i < 2; ++i) {
      const Packed at = part(packed, s, i);
      const Tensor *const conv = in + kConv + i * kTaps, *const scan = in + kScan + i * kParameters;
      const char* const x_proj =
          static_cast<const char*>(in[kXProj].data) + static_cast<int64_t>(i) * s.channels * s.columns() * element;
      inference::pack_conv(kernels.width, storage, s.channels, s.taps, conv[kWeight].data, conv[kBias].data,
                           const_cast<float*>(at.conv));
      inference::pack_x_proj(kernels.width, storage, s.channels, s.columns(), x_proj, const_cast<float*>(at.x_proj));
      inference::pack_scan(kernels.width, storage, s.channels, s.states, s.rank,
                           static_cast<const float*>(scan[kA].data), scan[kDtWeight].data,
                           static_cast<const float*>(scan[kDtBias].data), static_cast<const float*>(scan[kD].data),
                           const_cast<float*>(at.scan));
    }
  }

  Shape parameters_[kInputs];  // of packed parameters
  Buffer packed_;
};

Kernel* create(const OrtApi& api, const OrtKernelInfo* info, const OpSpec& spec, Storage storage) {
  return new MixerKernel(api, info, spec, storage);
}

void infer(const OrtApi& api, OrtShapeInferContext* context) {
  const DeclaredShape xz(api, context, kXz), A(api, context, kScan + kA);
  if (xz.rank() == 3 && A.rank() == 2) xz.set_output(context, 0, {xz.axis(0), xz.axis(1), A.axis(0)});
}

}  // namespace

const OpSpec kMixerOp = {"VimMixer", kInputPorts, kInputs, kOutputPorts, 1, create, infer};

}  // namespace ort
}  // namespace mscope

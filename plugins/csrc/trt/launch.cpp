#include "trt/launch.h"

#include "cuda/api.h"
#include "trt/workspace.h"

namespace mscope::trt {
namespace {

using nvinfer1::DataType;

int dtype_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return MSCOPE_FLOAT32;
    case DataType::kHALF:
      return MSCOPE_FLOAT16;
    default:
      return MSCOPE_BFLOAT16;  // check_types has seen to it
  }
}

int64_t item_bytes(int dtype) { return dtype == MSCOPE_FLOAT32 ? 4 : 2; }

void require(int status, const char* what) {
  if (status != MSCOPE_OK) throw Refusal(std::string(what) + " failed: " + mscope_cuda_message(status));
}

// Reads a call's tensors. TensorRT's are dense and row-major (format kLINEAR).
class Reader {
 public:
  explicit Reader(const Call& call) : call_(call), dtype_(dtype_of(call.in[0].type)) {
    Shape shapes[kMaxInputs];
    DataType types[kMaxInputs] = {};
    for (int i = 0; i < call.op.input_count; ++i) {
      if (!is_wired(call.wired, i)) continue;
      shapes[i] = shape_of(call.in[i].dims);
      types[i] = call.in[i].type;
    }
    check_types(call.op, types, call.wired);
    sizes_ = resolve(call.op, shapes, call.wired);
    for (const int64_t size : {sizes_[kBatch], sizes_[kLength], sizes_[kChannels]})
      if (size == kUnknown) throw Refusal("a size is still unknown when the op is to run");
  }

  int dtype() const { return dtype_; }
  const Sizes& sizes() const { return sizes_; }

  const void* data(int input) const { return is_wired(call_.wired, input) ? call_.inputs[input] : nullptr; }
  const float* floats(int input) const { return static_cast<const float*>(data(input)); }

  // (B, L, any) from element `start` on; data null where it is not wired.
  MscopeRows rows(int input, int64_t start = 0) const {
    if (!is_wired(call_.wired, input)) return {};
    const char* const first = static_cast<const char*>(call_.inputs[input]);
    const int64_t row = call_.in[input].dims.d[2];
    return {first ? first + start * item_bytes(dtype_) : nullptr, row, row * sizes_[kLength]};
  }
  // Entry `direction` of (2, B L, any), from `start` of its last axis on.
  MscopeRows rows_of(int direction, int input, int64_t start = 0) const {
    return rows(input, direction * sizes_[kBatch] * sizes_[kLength] * call_.in[input].dims.d[2] + start);
  }
  // The output (B, L, C), or entry `direction` of (K, B L, C).
  MscopeRows output(int direction = 0) const {
    const int64_t image = sizes_[kChannels] * sizes_[kLength], skipped = direction * sizes_[kBatch] * image;
    char* const first = static_cast<char*>(call_.outputs[0]);
    return {first ? first + skipped * item_bytes(dtype_) : nullptr, sizes_[kChannels], image};
  }

 private:
  const Call& call_;
  int dtype_;
  Sizes sizes_;
};

void launch_conv(const Call& call) {
  const Reader reader(call);
  const Sizes& sizes = reader.sizes();
  MscopeConvParams p = {};
  p.batch = sizes[kBatch];
  p.length = sizes[kLength];
  p.channels = sizes[kChannels];
  p.width = sizes[kWidth];
  p.x = reader.rows(kConvXz);
  p.weight = reader.data(kConvWeight);
  p.bias = reader.data(kConvBias);
  p.y = reader.output();
  if (is_wired(call.wired, kConvWeightB)) {
    p.weight_b = reader.data(kConvWeightB);
    p.bias_b = reader.data(kConvBiasB);
    p.y_b = reader.output(1);
  }
  require(mscope_cuda_conv_silu(&p, reader.dtype(), current_device(), call.stream), "the convolution's launch");
}

void launch_scan(const Call& call, MscopeScanParams& p, int dtype) {
  const int device = current_device();
  int64_t needed = 0;
  require(mscope_cuda_scan_workspace(&p, dtype, device, &needed), "the scan's plan");
  if (needed > static_cast<int64_t>(workspace_bound(p.batch, p.length, p.channels, p.states, p.directions)))
    throw Refusal("the scan needs more scratch memory than the engine set aside: rebuild the engine");
  p.workspace = call.workspace;
  p.workspace_bytes = call.workspace ? needed : 0;
  require(mscope_cuda_scan(&p, dtype, device, call.stream), "the scan's launch");
}

void launch_one_direction(const Call& call) {
  const Reader reader(call);
  const Sizes& sizes = reader.sizes();
  MscopeScanParams p = {};
  p.batch = sizes[kBatch];
  p.length = sizes[kLength];
  p.channels = sizes[kChannels];
  p.states = sizes[kStates];
  p.directions = 1;
  p.delta_softplus = call.attributes[kScanSoftplus];
  MscopeScanDirection& d = p.direction[0];
  d.x = reader.rows(kScanX);
  d.delta = reader.rows(kScanDelta);
  d.B = reader.rows(kScanB);
  d.C = reader.rows(kScanC);
  d.A = reader.floats(kScanA);
  d.D = reader.floats(kScanD);
  d.dt_bias = reader.floats(kScanDeltaBias);
  d.reverse = call.attributes[kScanReverse];
  p.z = reader.rows(kScanZ);
  p.y = reader.output();
  launch_scan(call, p, reader.dtype());
}

void launch_bidirectional(const Call& call) {
  const Reader reader(call);
  const Sizes& sizes = reader.sizes();
  MscopeScanParams p = {};
  p.batch = sizes[kBatch];
  p.length = sizes[kLength];
  p.channels = sizes[kChannels];
  p.states = sizes[kStates];
  p.rank = sizes[kRank];
  p.directions = 2;
  p.delta_softplus = 1;
  for (int i = 0; i < 2; ++i) {
    MscopeScanDirection& d = p.direction[i];
    const int parameters = kBidirectionalParameters + i * kParametersADirection;
    d.x = reader.rows_of(i, kBidirectionalX);
    d.delta = reader.rows_of(i, kBidirectionalDbc);
    d.B = reader.rows_of(i, kBidirectionalDbc, p.rank);
    d.C = reader.rows_of(i, kBidirectionalDbc, p.rank + p.states);
    d.dt_weight = reader.data(parameters + kDtWeight);
    d.dt_bias = reader.floats(parameters + kDtBias);
    d.A = reader.floats(parameters + kDecay);
    d.D = reader.floats(parameters + kSkip);
    d.reverse = i;
  }
  p.z = reader.rows(kBidirectionalXz, p.channels);
  p.y = reader.output();
  launch_scan(call, p, reader.dtype());
}

}  // namespace

void launch(const Call& call) {
  switch (call.op.kind) {
    case OpKind::conv:
      return launch_conv(call);
    case OpKind::scan:
      return launch_one_direction(call);
    case OpKind::bidirectional:
      return launch_bidirectional(call);
  }
}

size_t workspace_bytes(const Op& op, const Sizes& largest) {
  if (op.kind == OpKind::conv) return 0;
  for (const Symbol symbol : {kBatch, kLength, kChannels, kStates})
    if (largest[symbol] == kUnknown) throw Refusal(std::string("the largest ") + kLetters[symbol] + " is not known");
  const int64_t directions = op.kind == OpKind::bidirectional ? 2 : 1;
  return static_cast<size_t>(
      workspace_bound(largest[kBatch], largest[kLength], largest[kChannels], largest[kStates], directions));
}

}  // namespace mscope::trt

#include "trt/launch.h"

#include "cuda/api.h"
#include "cuda/dense.h"
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

void require(int status, const char* what) {
  if (status != MSCOPE_OK) throw Refusal(std::string(what) + " failed: " + mscope_cuda_message(status));
}

// A call's tensors, checked. TensorRT's are dense and row-major (format kLINEAR).
struct Read {
  int dtype;
  DenseSizes sizes;
  const void* inputs[kMaxInputs];
};

Read read(const Call& call) {
  Read read = {dtype_of(call.in[0].type), {}, {}};
  Shape shapes[kMaxInputs];
  DataType types[kMaxInputs] = {};
  for (int i = 0; i < call.op.input_count; ++i) {
    if (!is_wired(call.wired, i)) continue;
    shapes[i] = shape_of(call.in[i].dims);
    types[i] = call.in[i].type;
    read.inputs[i] = call.inputs[i];
  }
  check_types(call.op, types, call.wired);
  const Sizes sizes = resolve(call.op, shapes, call.wired);
  // What is unknown was compared with nothing.
  for (int i = 0; i < call.op.input_count; ++i)
    for (int axis = 0; is_wired(call.wired, i) && axis < call.op.inputs[i].rank; ++axis)
      if (shapes[i].size[axis] < 0)
        throw Refusal(std::string(call.op.inputs[i].name) + " has shape " + text_of(shapes[i]) +
                      ": a size is still unknown when the op is to run");
  read.sizes = {sizes[kBatch], sizes[kLength], sizes[kChannels], sizes[kStates],
                sizes[kRank],  sizes[kWidth],  call.in[0].dims.d[2]};
  return read;
}

void launch_scan(const Call& call, MscopeScanParams p, int dtype) {
  const int device = current_device();
  int64_t needed = 0;
  require(mscope_cuda_scan_workspace(&p, dtype, device, &needed), "the scan's plan");
  if (needed > static_cast<int64_t>(workspace_bound(p.batch, p.length, p.channels, p.states, p.directions)))
    throw Refusal("the scan needs more scratch memory than the engine set aside: rebuild the engine");
  p.workspace = call.workspace;
  p.workspace_bytes = call.workspace ? needed : 0;
  require(mscope_cuda_scan(&p, dtype, device, call.stream), "the scan's launch");
}

}  // namespace

void launch(const Call& call) {
  const Read given = read(call);
  void* const out = call.outputs[0];
  switch (call.op.kind) {
    case OpKind::conv: {
      const MscopeConvParams p = dense_conv(given.sizes, given.dtype, given.inputs, out);
      return require(mscope_cuda_conv_silu(&p, given.dtype, current_device(), call.stream), "the convolution's launch");
    }
    case OpKind::scan: {
      const bool reverse = call.attributes[kScanReverse] != 0, softplus = call.attributes[kScanSoftplus] != 0;
      return launch_scan(call, dense_scan(given.sizes, given.dtype, given.inputs, reverse, softplus, out), given.dtype);
    }
    case OpKind::bidirectional:
      return launch_scan(call, dense_bidirectional(given.sizes, given.dtype, given.inputs, out), given.dtype);
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

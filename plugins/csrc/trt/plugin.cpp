#include "trt/plugin.h"

#include <new>

#include "trt/launch.h"
#include "trt/logger.h"

namespace mscope::trt {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

namespace {

constexpr int32_t kSuccess = 0, kFailure = 1;

// Trailing inputs that a node leaves out are not counted; TensorRT refuses a node that leaves out one in the middle.
// No input of an op is a scalar, so that a tensor without axes, should one come, is not wired either.
Wired wired_of(const PluginTensorDesc* in, int32_t count) {
  Wired wired = 0;
  for (int32_t i = 0; i < count; ++i)
    if (in[i].dims.nbDims > 0) wired |= Wired{1} << i;
  return wired;
}

void check_count(const State& state, int32_t inputs, int32_t outputs) {
  const Op& op = *state.op;
  if (inputs < 1 || inputs > op.input_count)
    throw Refusal("there are " + std::to_string(inputs) + " inputs: expected at most " +
                  std::to_string(op.input_count));
  if (outputs != op.output_count)
    throw Refusal("there are " + std::to_string(outputs) + " outputs: expected " + std::to_string(op.output_count));
}

// Checks counts, and shapes and types as far as they are known, and returns the sizes.
Sizes check_all(const State& state, const PluginTensorDesc* in, int32_t count, const PluginTensorDesc* out,
                int32_t outputs) {
  const Op& op = *state.op;
  const Wired wired = wired_of(in, count);
  check_wired(op, wired);
  Shape shapes[kMaxInputs], results[kMaxOutputs];
  DataType types[kMaxInputs] = {};
  for (int32_t i = 0; i < count; ++i) shapes[i] = shape_of(in[i].dims), types[i] = in[i].type;
  check_types(op, types, wired);
  const Sizes sizes = resolve(op, shapes, wired);
  for (int32_t i = 0; i < outputs; ++i) {
    results[i] = shape_of(out[i].dims);
    if (out[i].type != types[0])
      throw Refusal(std::string("output ") + op.outputs[i].name + " is " + name_of(out[i].type) + ": expected " +
                    name_of(types[0]) + ", as " + op.inputs[0].name + " is");
  }
  check_outputs(op, sizes, results, outputs);
  return sizes;
}

void copy_descriptions(const DynamicPluginTensorDesc* from, int32_t count, Dims DynamicPluginTensorDesc::*dims,
                       PluginTensorDesc* to) {
  for (int32_t i = 0; i < count; ++i) {
    to[i] = from[i].desc;
    if (to[i].dims.nbDims > 0 && (from[i].*dims).nbDims == to[i].dims.nbDims) to[i].dims = from[i].*dims;
  }
}

}  // namespace

Plugin::Plugin(const State& state) : state_(state) {
  const Op& op = *state_.op;
  std::string attributes;
  for (int i = 0; i < op.attribute_count; ++i) {
    fields_[i] = {op.attributes[i].name, &state_.attributes[i], nvinfer1::PluginFieldType::kINT32, 1};
    attributes += std::string(", \"") + op.attributes[i].name + "\": " + std::to_string(state_.attributes[i]);
  }
  fields_[op.attribute_count] = {kInputsField, &state_.wired, nvinfer1::PluginFieldType::kINT32, 1};
  serialized_.nbFields = op.attribute_count + 1;
  serialized_.fields = fields_;
  metadata_ = std::string("{\"op\": \"") + op.name + "\", \"version\": \"" + kPluginVersion + "\"" + attributes + "}";
  identity_ = "mambascope" + metadata_;
}

std::string Plugin::title() const {
  return std::string("mambascope ") + state_.op->name + (state_.layer.empty() ? "" : " '" + state_.layer + "'");
}

void Plugin::tell(const std::string& what) const { log(Severity::verbose, title() + " " + what); }

void Plugin::complain(const char* where, const char* what) const noexcept {
  try {
    log(Severity::error, title() + ", " + where + ": " + what);
  } catch (...) {  // no memory for the message
  }
}

template <class Body>
int32_t Plugin::guarded(const char* where, const Body& body) const noexcept {
  try {
    body();
    return kSuccess;
  } catch (const std::exception& error) {
    complain(where, error.what());
  } catch (...) {
    complain(where, "an unknown exception");
  }
  return kFailure;
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

Plugin* Plugin::clone() noexcept {
  Plugin* copy = nullptr;
  guarded("clone", [&] { copy = new Plugin(state_); });
  return copy;
}

const char* Plugin::getPluginName() const noexcept { return state_.op->name; }
const char* Plugin::getPluginVersion() const noexcept { return kPluginVersion; }
const char* Plugin::getPluginNamespace() const noexcept { return state_.space; }

int32_t Plugin::getNbOutputs() const noexcept { return state_.op->output_count; }

int32_t Plugin::getOutputDataTypes(DataType* outputTypes, int32_t nbOutputs, const DataType* inputTypes,
                                   int32_t nbInputs) const noexcept {
  return guarded("getOutputDataTypes", [&] {
    check_count(state_, nbInputs, nbOutputs);
    Wired counted = (Wired{1} << nbInputs) - 1;
    // The one that could be left out with another behind it: its type says nothing then.
    if (state_.op->kind == OpKind::scan && nbInputs > kScanDeltaBias) counted &= ~(Wired{1} << kScanZ);
    check_types(*state_.op, inputTypes, counted);
    for (int32_t i = 0; i < nbOutputs; ++i) outputTypes[i] = inputTypes[0];
  });
}

int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t nbInputs, const DimsExprs*, int32_t nbShapeInputs,
                                DimsExprs* outputs, int32_t nbOutputs,
                                nvinfer1::IExprBuilder& exprBuilder) noexcept {
  return guarded("getOutputShapes", [&] {
    const Op& op = *state_.op;
    check_count(state_, nbInputs, nbOutputs);
    if (nbShapeInputs != 0) throw Refusal("the op takes no shape inputs");
    Shape shapes[kMaxInputs];
    Wired wired = 0;
    for (int32_t i = 0; i < nbInputs; ++i) {
      shapes[i] = shape_of(inputs[i]);
      if (shapes[i].rank > 0) wired |= Wired{1} << i;
    }
    check_wired(op, wired);
    const Sizes sizes = resolve(op, shapes, wired);
    state_.wired = static_cast<int32_t>(wired);
    // Batch and length of the first input; the channels of x or, for the convolution, of its weight.
    const auto *const batch = inputs[0].d[0], *const length = inputs[0].d[1];
    outputs[0].nbDims = 3;
    if (op.kind == OpKind::conv) {
      outputs[0].d[0] = exprBuilder.constant(sizes[kDirections]);
      outputs[0].d[1] = exprBuilder.operation(nvinfer1::DimensionOperation::kPROD, *batch, *length);
      outputs[0].d[2] = inputs[kConvWeight].d[0];
    } else {
      outputs[0].d[0] = batch;
      outputs[0].d[1] = length;
      outputs[0].d[2] = inputs[op.kind == OpKind::bidirectional ? int{kBidirectionalX} : int{kScanX}].d[2];
    }
  });
}

bool Plugin::supportsFormatCombination(int32_t pos, const DynamicPluginTensorDesc* inOut, int32_t nbInputs,
                                       int32_t nbOutputs) noexcept {
  bool supported = false;
  guarded("supportsFormatCombination", [&] {
    const Op& op = *state_.op;
    check_count(state_, nbInputs, nbOutputs);
    if (pos < 0 || pos >= nbInputs + nbOutputs) throw Refusal("there is no tensor " + std::to_string(pos));
    const Tensor& tensor = pos < nbInputs ? op.inputs[pos] : op.outputs[pos - nbInputs];
    const PluginTensorDesc& desc = inOut[pos].desc;
    const bool absent = tensor.optional && desc.dims.nbDims <= 0;
    const bool linear = desc.format == nvinfer1::TensorFormat::kLINEAR;
    supported = absent || (linear && fits(tensor, desc.type, inOut[0].desc.type));
    if (!supported)  // the builder tries combinations that it then drops, so this is no error yet
      tell(std::string("does not take ") + tensor.name + " as " + name_of(desc.type) +
           (linear ? "" : " in a format that is not linear") + " where " + op.inputs[0].name + " is " +
           name_of(inOut[0].desc.type));
  });
  return supported;
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* in, int32_t nbInputs,
                                const DynamicPluginTensorDesc* out, int32_t nbOutputs) noexcept {
  return guarded("configurePlugin", [&] {
    check_count(state_, nbInputs, nbOutputs);
    PluginTensorDesc inputs[kMaxInputs], outputs[kMaxOutputs];
    for (auto dims : {&DynamicPluginTensorDesc::min, &DynamicPluginTensorDesc::opt, &DynamicPluginTensorDesc::max}) {
      copy_descriptions(in, nbInputs, dims, inputs);
      copy_descriptions(out, nbOutputs, dims, outputs);
      check_all(state_, inputs, nbInputs, outputs, nbOutputs);
    }
    state_.wired = static_cast<int32_t>(wired_of(inputs, nbInputs));
  });
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t nbInputs,
                                const DynamicPluginTensorDesc* outputs, int32_t nbOutputs) const noexcept {
  size_t bytes = 0;
  guarded("getWorkspaceSize", [&] {
    check_count(state_, nbInputs, nbOutputs);
    PluginTensorDesc in[kMaxInputs], out[kMaxOutputs];
    copy_descriptions(inputs, nbInputs, &DynamicPluginTensorDesc::max, in);
    copy_descriptions(outputs, nbOutputs, &DynamicPluginTensorDesc::max, out);
    bytes = workspace_bytes(*state_.op, check_all(state_, in, nbInputs, out, nbOutputs));
    tell("asks for " + std::to_string(bytes) + " bytes of scratch memory");
  });
  return bytes;
}

const char* Plugin::getTimingCacheID() noexcept { return identity_.c_str(); }
const char* Plugin::getMetadataString() noexcept { return metadata_.c_str(); }

int32_t Plugin::onShapeChange(const PluginTensorDesc* in, int32_t nbInputs, const PluginTensorDesc* out,
                              int32_t nbOutputs) noexcept {
  return guarded("onShapeChange", [&] {
    check_count(state_, nbInputs, nbOutputs);
    check_all(state_, in, nbInputs, out, nbOutputs);
    state_.wired = static_cast<int32_t>(wired_of(in, nbInputs));
  });
}

int32_t Plugin::enqueue(const PluginTensorDesc* inputDesc, const PluginTensorDesc*, const void* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  return guarded("enqueue", [&] {
    const Wired wired = static_cast<Wired>(state_.wired);
    check_wired(*state_.op, wired);
    launch({*state_.op, wired, state_.attributes, inputDesc, inputs, outputs, workspace, stream});
  });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  guarded("getFieldsToSerialize", [&] {
    std::string text = "is written with";
    for (int32_t i = 0; i < serialized_.nbFields; ++i)
      text += std::string(" ") + fields_[i].name + "=" + std::to_string(*static_cast<const int32_t*>(fields_[i].data));
    tell(text);
  });
  return &serialized_;
}

}  // namespace mscope::trt

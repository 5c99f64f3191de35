#include "trt/creator.h"

#include <cstring>

#include "trt/logger.h"

namespace mscope::trt {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace {

// One integer; ONNX attributes come as 32 or 64 bits, according to TensorRT's version.
int64_t integer_of(const PluginField& field) {
  if (!field.data || field.length < 1) throw Refusal(std::string("attribute ") + field.name + " has no value");
  if (field.length == 1 && field.type == PluginFieldType::kINT32) {
    int32_t value;
    std::memcpy(&value, field.data, sizeof value);
    return value;
  }
  if (field.length == 1 && field.type == PluginFieldType::kINT64) {
    int64_t value;
    std::memcpy(&value, field.data, sizeof value);
    return value;
  }
  throw Refusal(std::string("attribute ") + field.name + " has type " +
                std::to_string(static_cast<int32_t>(field.type)) + " and " + std::to_string(field.length) +
                " values: expected one integer");
}

}  // namespace

Creator::Creator(const Op& op, const char* space) : op_(op), space_(space) {
  for (int i = 0; i < op.attribute_count; ++i)
    attributes_[i] = {op.attributes[i].name, &op.attributes[i].standard, PluginFieldType::kINT32, 1};
  fields_.nbFields = op.attribute_count;
  fields_.fields = op.attribute_count ? attributes_ : nullptr;
}

State Creator::parse(const char* name, const nvinfer1::PluginFieldCollection* fc,
                     nvinfer1::TensorRTPhase phase) const {
  State state{&op_, space_, name ? name : ""};
  for (int i = 0; i < op_.attribute_count; ++i) state.attributes[i] = op_.attributes[i].standard;
  const bool runtime = phase == nvinfer1::TensorRTPhase::kRUNTIME;
  for (int32_t f = 0; fc && f < fc->nbFields; ++f) {
    const PluginField& field = fc->fields[f];
    if (!field.name) throw Refusal("an attribute has no name");
    int index = 0;
    while (index < op_.attribute_count && std::strcmp(op_.attributes[index].name, field.name) != 0) ++index;
    if (index < op_.attribute_count) {
      const Attribute& attribute = op_.attributes[index];
      const int64_t value = integer_of(field);
      if (value < attribute.least || value > attribute.most)
        throw Refusal(std::string("attribute ") + attribute.name + " is " + std::to_string(value) +
                      ": expected a value from " + std::to_string(attribute.least) + " to " +
                      std::to_string(attribute.most));
      state.attributes[index] = static_cast<int32_t>(value);
    } else if (runtime && std::strcmp(field.name, kInputsField) == 0) {
      state.wired = static_cast<int32_t>(integer_of(field));
    } else {
      throw Refusal(std::string("there is no attribute ") + field.name +
                    (runtime ? ": the engine is of another version of this plugin, build it again" : ""));
    }
  }
  // What an engine holds was written by getFieldsToSerialize after the inputs were known.
  if (runtime) check_wired(op_, static_cast<Wired>(state.wired));
  return state;
}

nvinfer1::IPluginV3* Creator::createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fc,
                                           nvinfer1::TensorRTPhase phase) noexcept {
  try {
    return new Plugin(parse(name, fc, phase));
  } catch (const std::exception& error) {
    try {
      log(Severity::error, std::string("mambascope ") + op_.name + (name ? std::string(" '") + name + "'" : "") +
                               ", createPlugin: " + error.what());
    } catch (...) {  // no memory for the message
    }
  } catch (...) {
  }
  return nullptr;
}

}  // namespace mscope::trt

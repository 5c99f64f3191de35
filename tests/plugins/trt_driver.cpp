// Plays TensorRT to the plugin library: finds creators, goes through the build phase, serialises, creates again for the
// runtime phase, runs. Needs no TensorRT. tests/trt_driver.py compiles it, always with the minimal header, so that it
// also drives a plugin that was compiled with an official one through ours.
#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "abi/tensorrt.h"

using namespace nvinfer1;

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

std::string messages;

// What TensorRT 10 and 11 hand to setLoggerFinder: their virtual functions, and the names that run-time type
// information gives them, differ. The names make them what logger.cpp looks for.
void append(int32_t severity, const char* text) { messages += "[" + std::to_string(severity) + "] " + text + "\n"; }

}  // namespace

namespace nvinfer1 {
class ILoggerFinder {  // as in TensorRT 10
 public:
  virtual void* findLogger() = 0;

 protected:
  virtual ~ILoggerFinder() = default;
};
}  // namespace nvinfer1

namespace {

struct Logger10 {
  virtual void log(int32_t severity, const char* text) noexcept { append(severity, text); }
  virtual ~Logger10() = default;
};
struct Finder10 : nvinfer1::ILoggerFinder {
  Logger10 logger;
  void* findLogger() override { return &logger; }
};

struct Logger11 : IVersionedInterface {
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILogger", 1, 0}; }
  virtual void log(int32_t severity, const char* text) noexcept { append(severity, text); }
};
struct Finder11 : IVersionedInterface {
  Logger11 logger;
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILoggerFinder", 1, 0}; }
  virtual void* findLogger() { return &logger; }
};

struct Foreign {  // of some other library: nothing of it may be called
  virtual void* anything() { __builtin_trap(); }
  virtual ~Foreign() = default;
};

// A size as TensorRT gives it in the build phase: a constant, or not known yet.
struct Value : apiv::VDimensionExpr {
  int64_t number = -1;
  bool isConstant() const override { return number >= 0; }
  int64_t getConstantValue() const override { return number; }
  bool isSizeTensor() const override { return false; }
};
struct Expression : IDimensionExpr {
  Value value;
  explicit Expression(int64_t number) {
    value.number = number;
    mImpl = &value;
  }
  ~Expression() noexcept override = default;
};
struct Expressions : apiv::VExprBuilder {
  std::deque<Expression> all;
  const IDimensionExpr* constant(int64_t number) override { return &all.emplace_back(number); }
  const IDimensionExpr* operation(DimensionOperation op, const IDimensionExpr& a, const IDimensionExpr& b) override {
    const bool known = op == DimensionOperation::kPROD && a.isConstant() && b.isConstant();
    return constant(known ? a.getConstantValue() * b.getConstantValue() : -1);
  }
  const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
    return constant(-1);
  }
};
struct ExpressionBuilder : IExprBuilder {
  Expressions expressions;
  ExpressionBuilder() { mImpl = &expressions; }
  ~ExpressionBuilder() noexcept override = default;
};

template <class Capability>
Capability* capability(IPluginV3* plugin, PluginCapabilityType type) {
  return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}
IPluginV3OneBuild* build_of(void* plugin) {
  return capability<IPluginV3OneBuild>(static_cast<IPluginV3*>(plugin), PluginCapabilityType::kBUILD);
}
IPluginV3OneRuntime* runtime_of(void* plugin) {
  return capability<IPluginV3OneRuntime>(static_cast<IPluginV3*>(plugin), PluginCapabilityType::kRUNTIME);
}

}  // namespace

// A tensor as the tests see it; `least` and `most` are its optimisation profile, equal where an axis is static.
struct DriverTensor {
  int32_t type, rank, format;
  int64_t least[8], size[8], most[8];
  void* data;
};

namespace {

Dims dims_of(const DriverTensor& tensor, const int64_t* sizes) {
  Dims dims = {};
  dims.nbDims = tensor.rank;
  for (int i = 0; i < tensor.rank; ++i) dims.d[i] = sizes[i];
  return dims;
}

PluginTensorDesc desc_of(const DriverTensor& tensor) {
  PluginTensorDesc desc = {};
  desc.dims = dims_of(tensor, tensor.size);
  desc.type = static_cast<DataType>(tensor.type);
  desc.format = static_cast<TensorFormat>(tensor.format);
  desc.scale = 1;
  return desc;
}

DynamicPluginTensorDesc dynamic_desc_of(const DriverTensor& tensor) {
  DynamicPluginTensorDesc desc = {};
  desc.desc = desc_of(tensor);
  for (int i = 0; i < tensor.rank; ++i)
    if (tensor.least[i] != tensor.most[i]) desc.desc.dims.d[i] = -1;
  desc.min = dims_of(tensor, tensor.least);
  desc.opt = dims_of(tensor, tensor.size);
  desc.max = dims_of(tensor, tensor.most);
  return desc;
}

}  // namespace

// 0: no finder, 10, 11: of that version, 1: of something else.
EXPORT void driver_set_logger(void* library, int version) {
  static Finder10 ten;
  static Finder11 eleven;
  static Foreign foreign;
  void* const finder = version == 10   ? static_cast<void*>(&ten)
                       : version == 11 ? static_cast<void*>(&eleven)
                       : version == 1  ? static_cast<void*>(&foreign)
                                       : nullptr;
  reinterpret_cast<void (*)(void*)>(dlsym(library, "setLoggerFinder"))(finder);
}

// What was logged since the last call.
EXPORT const char* driver_messages() {
  static std::string taken;
  taken.swap(messages);
  messages.clear();
  return taken.c_str();
}

EXPORT IPluginCreatorV3One* driver_creator(void* library, const char* name, const char* space) {
  int32_t count = 0;
  auto* const* creators =
      reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"))(count);
  for (int32_t i = 0; i < count; ++i) {
    if (std::strcmp(creators[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) continue;
    auto* const creator = static_cast<IPluginCreatorV3One*>(creators[i]);
    if (std::strcmp(creator->getPluginName(), name) == 0 && std::strcmp(creator->getPluginNamespace(), space) == 0 &&
        std::strcmp(creator->getPluginVersion(), "1") == 0)
      return creator;
  }
  return nullptr;
}

// Attributes as a parser makes them; `types` are PluginFieldType, `values` point to them.
EXPORT IPluginV3* driver_create(IPluginCreatorV3One* creator, const char* layer, int32_t count, const char** names,
                                const void** values, const int32_t* types, const int32_t* lengths, int32_t phase) {
  std::vector<PluginField> fields;
  for (int32_t i = 0; i < count; ++i)
    fields.emplace_back(names[i], values[i], static_cast<PluginFieldType>(types[i]), lengths[i]);
  PluginFieldCollection collection;
  collection.nbFields = count;
  collection.fields = fields.data();
  return creator->createPlugin(layer, &collection, static_cast<TensorRTPhase>(phase));
}

EXPORT void driver_destroy(IPluginV3* plugin) { delete plugin; }

// The build phase. 0, or the step that refused: 1 getNbOutputs, 2 getOutputDataTypes, 3 getOutputShapes (or what it
// said is not what `outputs` has), 4 supportsFormatCombination, 5 configurePlugin.
EXPORT int driver_build(IPluginV3* plugin, const DriverTensor* inputs, int32_t input_count,
                        const DriverTensor* outputs, int32_t output_count, int64_t* workspace) {
  IPluginV3OneBuild* const build = build_of(plugin);
  if (build->getNbOutputs() != output_count) return 1;
  std::vector<DataType> types, result_types(output_count);
  for (int32_t i = 0; i < input_count; ++i) types.push_back(static_cast<DataType>(inputs[i].type));
  if (build->getOutputDataTypes(result_types.data(), output_count, types.data(), input_count) != 0) return 2;
  for (int32_t i = 0; i < output_count; ++i)
    if (result_types[i] != static_cast<DataType>(outputs[i].type)) return 2;

  ExpressionBuilder builder;
  std::vector<DimsExprs> shapes(input_count), results(output_count);
  std::vector<DynamicPluginTensorDesc> all;
  for (int32_t i = 0; i < input_count; ++i) {
    all.push_back(dynamic_desc_of(inputs[i]));
    shapes[i].nbDims = inputs[i].rank;
    for (int axis = 0; axis < inputs[i].rank; ++axis)
      shapes[i].d[axis] = builder.expressions.constant(all[i].desc.dims.d[axis]);
  }
  for (int32_t i = 0; i < output_count; ++i) all.push_back(dynamic_desc_of(outputs[i]));
  if (build->getOutputShapes(shapes.data(), input_count, nullptr, 0, results.data(), output_count, builder) != 0)
    return 3;
  for (int32_t i = 0; i < output_count; ++i) {
    if (results[i].nbDims != outputs[i].rank) return 3;
    for (int axis = 0; axis < outputs[i].rank; ++axis) {
      const int64_t known = results[i].d[axis]->isConstant() ? results[i].d[axis]->getConstantValue() : -1;
      if (known != all[input_count + i].desc.dims.d[axis]) return 3;
    }
  }
  for (int32_t position = 0; position < input_count + output_count; ++position) {
    // "The override should not inspect inOut[pos + 1 ..], which will have invalid values."
    std::vector<DynamicPluginTensorDesc> so_far(all);
    for (size_t later = position + 1; later < so_far.size(); ++later)
      std::memset(static_cast<void*>(&so_far[later]), 0xa5, sizeof so_far[later]);
    if (!build->supportsFormatCombination(position, so_far.data(), input_count, output_count)) return 4;
  }
  if (build->configurePlugin(all.data(), input_count, all.data() + input_count, output_count) != 0) return 5;
  *workspace = static_cast<int64_t>(
      build->getWorkspaceSize(all.data(), input_count, all.data() + input_count, output_count));
  return 0;
}

// What an engine would hold, as "name=value name=value".
EXPORT const char* driver_serialized(IPluginV3* plugin) {
  static std::string text;
  text.clear();
  const PluginFieldCollection* const fields = runtime_of(plugin)->getFieldsToSerialize();
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    int32_t value;
    std::memcpy(&value, fields->fields[i].data, sizeof value);
    text += std::string(i ? " " : "") + fields->fields[i].name + "=" + std::to_string(value);
  }
  return text.c_str();
}

EXPORT const char* driver_identity(IPluginV3* plugin) {
  static std::string text;
  auto* const core = capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
  text = std::string(core->getPluginNamespace()) + "::" + core->getPluginName() + "/" + core->getPluginVersion() + " " +
         build_of(plugin)->getMetadataString();
  return text.c_str();
}

// The plugin of a loaded engine: its fields copied, the first one gone, made again and attached to a context.
EXPORT IPluginV3* driver_reload(IPluginCreatorV3One* creator, IPluginV3* plugin) {
  const PluginFieldCollection* const fields = runtime_of(plugin)->getFieldsToSerialize();
  std::deque<std::string> names;
  std::deque<int32_t> values;
  std::vector<PluginField> copies;
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    if (field.type != PluginFieldType::kINT32 || field.length != 1) return nullptr;
    names.emplace_back(field.name);
    std::memcpy(&values.emplace_back(), field.data, sizeof(int32_t));
    copies.emplace_back(names.back().c_str(), &values.back(), field.type, field.length);
  }
  delete plugin;
  PluginFieldCollection collection;
  collection.nbFields = static_cast<int32_t>(copies.size());
  collection.fields = copies.data();
  IPluginV3* const loaded = creator->createPlugin("loaded", &collection, TensorRTPhase::kRUNTIME);
  if (!loaded) return nullptr;
  IPluginV3* const attached = runtime_of(loaded)->attachToContext(nullptr);
  delete loaded;
  return attached;
}

EXPORT IPluginV3* driver_clone(IPluginV3* plugin) { return plugin->clone(); }

// 0, or 1 for onShapeChange and 2 for enqueue. With `announce` 0 the shapes are not told first.
EXPORT int driver_run(IPluginV3* plugin, const DriverTensor* inputs, int32_t input_count, const DriverTensor* outputs,
                      int32_t output_count, void* workspace, void* stream, int announce) {
  std::vector<PluginTensorDesc> in, out;
  std::vector<const void*> from;
  std::vector<void*> to;
  for (int32_t i = 0; i < input_count; ++i) in.push_back(desc_of(inputs[i])), from.push_back(inputs[i].data);
  for (int32_t i = 0; i < output_count; ++i) out.push_back(desc_of(outputs[i])), to.push_back(outputs[i].data);
  IPluginV3OneRuntime* const runtime = runtime_of(plugin);
  if (announce && runtime->onShapeChange(in.data(), input_count, out.data(), output_count) != 0) return 1;
  const auto queue = static_cast<cudaStream_t>(stream);
  return runtime->enqueue(in.data(), out.data(), from.data(), to.data(), workspace, queue) == 0 ? 0 : 2;
}

// Prints what tensorrt_layout.h cannot assert: the slot of every virtual function that crosses the border to TensorRT,
// and the strings by which its interfaces know each other. test_trt_headers.py compares the headers by it.
#include <cstdio>
#include <cstring>

#include "abi/tensorrt.h"

using namespace nvinfer1;

namespace {

// Itanium C++ ABI: a pointer to a virtual function is one more than its offset among the functions. AArch64 keeps the
// mark in the second word instead.
template <class Function>
long slot_of(Function function) {
  static_assert(sizeof function == 2 * sizeof(long));
  long words[2];
  std::memcpy(words, &function, sizeof words);
#if defined(__aarch64__)
  return words[0] / static_cast<long>(sizeof(void*));
#else
  return (words[0] - 1) / static_cast<long>(sizeof(void*));
#endif
}

#define SHOW(type, function) std::printf("%s::%s %ld\n", #type, #function, slot_of(&type::function))

struct Core : IPluginV3OneCore {
  const AsciiChar* getPluginName() const noexcept override { return ""; }
  const AsciiChar* getPluginVersion() const noexcept override { return ""; }
  const AsciiChar* getPluginNamespace() const noexcept override { return ""; }
};
struct Plugin : IPluginV3 {
  IPluginCapability* getCapabilityInterface(PluginCapabilityType) noexcept override { return nullptr; }
  IPluginV3* clone() noexcept override { return nullptr; }
};
struct Build : IPluginV3OneBuild {
  int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*,
                          int32_t) noexcept override {
    return 0;
  }
  int32_t getOutputDataTypes(DataType*, int32_t, const DataType*, int32_t) const noexcept override { return 0; }
  int32_t getOutputShapes(const DimsExprs*, int32_t, const DimsExprs*, int32_t, DimsExprs*, int32_t,
                          IExprBuilder&) noexcept override {
    return 0;
  }
  bool supportsFormatCombination(int32_t, const DynamicPluginTensorDesc*, int32_t, int32_t) noexcept override {
    return false;
  }
  int32_t getNbOutputs() const noexcept override { return 0; }
};
struct Runtime : IPluginV3OneRuntime {
  int32_t onShapeChange(const PluginTensorDesc*, int32_t, const PluginTensorDesc*, int32_t) noexcept override {
    return 0;
  }
  int32_t enqueue(const PluginTensorDesc*, const PluginTensorDesc*, const void* const*, void* const*, void*,
                  cudaStream_t) noexcept override {
    return 0;
  }
  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return nullptr; }
  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return nullptr; }
};
struct Creator : IPluginCreatorV3One {
  IPluginV3* createPlugin(const AsciiChar*, const PluginFieldCollection*, TensorRTPhase) noexcept override {
    return nullptr;
  }
  const PluginFieldCollection* getFieldNames() noexcept override { return nullptr; }
  const AsciiChar* getPluginName() const noexcept override { return ""; }
  const AsciiChar* getPluginVersion() const noexcept override { return ""; }
  const AsciiChar* getPluginNamespace() const noexcept override { return ""; }
};

template <class Interface>
void show(const char* name) {
  const Interface object;
  const InterfaceInfo info = object.getInterfaceInfo();
  std::printf("%s is '%s' %d.%d, language %d, %zu bytes\n", name, info.kind, info.major, info.minor,
              static_cast<int>(object.getAPILanguage()), sizeof(Interface));
}

}  // namespace

int main() {
  show<Plugin>("IPluginV3");
  show<Core>("IPluginV3OneCore");
  show<Build>("IPluginV3OneBuild");
  show<Runtime>("IPluginV3OneRuntime");
  show<Creator>("IPluginCreatorV3One");
  std::printf("kDEFAULT_FORMAT_COMBINATION_LIMIT %d\n", static_cast<int>(Build().getFormatCombinationLimit()));

  SHOW(IVersionedInterface, getAPILanguage);
  SHOW(IVersionedInterface, getInterfaceInfo);
  SHOW(IPluginV3, getCapabilityInterface);
  SHOW(IPluginV3, clone);
  SHOW(IPluginV3OneCore, getPluginName);
  SHOW(IPluginV3OneCore, getPluginVersion);
  SHOW(IPluginV3OneCore, getPluginNamespace);
  SHOW(IPluginV3OneBuild, configurePlugin);
  SHOW(IPluginV3OneBuild, getOutputDataTypes);
  SHOW(IPluginV3OneBuild, getOutputShapes);
  SHOW(IPluginV3OneBuild, supportsFormatCombination);
  SHOW(IPluginV3OneBuild, getNbOutputs);
  SHOW(IPluginV3OneBuild, getWorkspaceSize);
  SHOW(IPluginV3OneBuild, getValidTactics);
  SHOW(IPluginV3OneBuild, getNbTactics);
  SHOW(IPluginV3OneBuild, getTimingCacheID);
  SHOW(IPluginV3OneBuild, getFormatCombinationLimit);
  SHOW(IPluginV3OneBuild, getMetadataString);
  SHOW(IPluginV3OneRuntime, setTactic);
  SHOW(IPluginV3OneRuntime, onShapeChange);
  SHOW(IPluginV3OneRuntime, enqueue);
  SHOW(IPluginV3OneRuntime, attachToContext);
  SHOW(IPluginV3OneRuntime, getFieldsToSerialize);
  SHOW(IPluginCreatorV3One, createPlugin);
  SHOW(IPluginCreatorV3One, getFieldNames);
  SHOW(IPluginCreatorV3One, getPluginName);
  SHOW(IPluginCreatorV3One, getPluginVersion);
  SHOW(IPluginCreatorV3One, getPluginNamespace);
  SHOW(apiv::VDimensionExpr, isConstant);
  SHOW(apiv::VDimensionExpr, getConstantValue);
  SHOW(apiv::VExprBuilder, constant);
  SHOW(apiv::VExprBuilder, operation);
  std::printf("IDimensionExpr %zu bytes, IExprBuilder %zu bytes\n", sizeof(IDimensionExpr), sizeof(IExprBuilder));
#if !defined(MSCOPE_TENSORRT_MINIMAL)
  // What register.cpp and logger.cpp call by slot: these differ between TensorRT 10 and 11.
  using Register = bool (IPluginRegistry::*)(IPluginCreatorInterface&, AsciiChar const* const) noexcept;
  std::printf("version %d registerCreator %ld findLogger %ld log %ld\n", NV_TENSORRT_MAJOR,
              slot_of(static_cast<Register>(&IPluginRegistry::registerCreator)), slot_of(&ILoggerFinder::findLogger),
              slot_of(&ILogger::log));
#endif
}

// Hosts that only dlopen a plugin library (Triton's `plugins` option, DeepStream's `custom-lib-path`) expect it to
// register itself with the TensorRT that is in the process. With MSCOPE_TRT_REGISTER=1 in the environment it does. Not
// without: IPluginRegistry::loadLibrary, behind trtexec's --staticPlugins, refuses a library whose plugins are
// registered already.
#include <dlfcn.h>
#include <link.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "abi/tensorrt.h"
#include "trt/logger.h"
#include "trt/ops.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators) noexcept;

namespace mscope::trt {
namespace {

// IPluginRegistry lost its oldest functions in TensorRT 11, so that registerCreator(IPluginCreatorInterface&,
// namespace) has another slot; tests/plugins/test_trt_headers.py compares with the official headers.
constexpr int kNoSlot = -1, kRegisterSlot10 = 12, kRegisterSlot11 = 8;
constexpr int kFirstRtx = 10700;  // 1.7, the oldest TensorRT-RTX that this was tried with

struct Found {
  std::string path;
  bool rtx = false;
};

int look(dl_phdr_info* info, size_t, void* result) {
  const char* const slash = std::strrchr(info->dlpi_name, '/');
  const char* const name = slash ? slash + 1 : info->dlpi_name;
  const bool rtx = std::strncmp(name, "libtensorrt_rtx.so.", 19) == 0;
  if (!rtx && std::strncmp(name, "libnvinfer.so.", 14) != 0) return 0;
  *static_cast<Found*>(result) = {info->dlpi_name, rtx};
  return 1;
}

int register_slot(int version, bool rtx) {
  if (rtx) return version >= kFirstRtx ? kRegisterSlot11 : kNoSlot;
  const int major = version / 10000;
  return major == 10 ? kRegisterSlot10 : major == 11 ? kRegisterSlot11 : kNoSlot;
}

void register_all() {
  Found found;
  dl_iterate_phdr(look, &found);
  if (found.path.empty()) throw std::string("no TensorRT is loaded in this process yet");
  void* const library = dlopen(found.path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  const auto version_of = library ? reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion")) : nullptr;
  const auto registry_of = library ? reinterpret_cast<void* (*)()>(dlsym(library, "getPluginRegistry")) : nullptr;
  if (!version_of || !registry_of) throw found.path + " has no plugin registry";
  const int version = version_of(), slot = register_slot(version, found.rtx);
  if (slot == kNoSlot) throw found.path + " has version " + std::to_string(version) + ", whose registry is not known";
  void* const registry = registry_of();
  if (!registry) throw found.path + " gives no plugin registry";
  using Register = bool (*)(void*, nvinfer1::IPluginCreatorInterface*, const char*);
  const void* const* const functions = *static_cast<const void* const* const*>(registry);
  const auto add = reinterpret_cast<Register>(const_cast<void*>(functions[slot]));
  int32_t count = 0;
  auto* const* const creators = getCreators(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
    if (!add(registry, creator, creator->getPluginNamespace()))
      throw found.path + " refused " + creator->getPluginName() + ": a plugin of that name is registered already";
  }
}

__attribute__((constructor)) void register_where_asked() noexcept {
  const char* const asked = std::getenv("MSCOPE_TRT_REGISTER");
  if (!asked || std::strcmp(asked, "1") != 0) return;
  try {
    register_all();
  } catch (const std::string& reason) {
    log(Severity::error, "mambascope: MSCOPE_TRT_REGISTER=1 is set and the plugins could not be registered: " + reason);
  } catch (...) {
  }
}

}  // namespace
}  // namespace mscope::trt

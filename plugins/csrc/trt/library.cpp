// What the library exports: TensorRT's entry points (IPluginRegistry::loadLibrary, trtexec --staticPlugins), and ours
// for mscope.plugins.trt.
#include <deque>
#include <string>
#include <vector>

#include "cuda/api.h"
#include "trt/creator.h"
#include "trt/logger.h"

#define MSCOPE_EXPORT extern "C" __attribute__((visibility("default")))

namespace mscope::trt {
namespace {

std::deque<Creator>& creators() {
  static std::deque<Creator>* const all = [] {  // never destroyed: TensorRT may ask while the process ends
    auto* const made = new std::deque<Creator>;
    for (const char* space : kNamespaces)
      for (const Op& op : kOps) made->emplace_back(op, space);
    return made;
  }();
  return *all;
}

std::string quoted(const char* text) { return std::string("\"") + text + "\""; }

template <class Items, class Describe>
std::string listed(const Items* items, int count, const Describe& describe) {
  std::string text = "[";
  for (int i = 0; i < count; ++i) text += (i ? ", " : "") + describe(items[i]);
  return text + "]";
}

std::string describe() {
  const auto tensor = [](const Tensor& t) {
    return "{\"name\": " + quoted(t.name) + ", \"shape\": " + quoted(t.shape) +
           ", \"type\": " + quoted(t.kind == Kind::float32 ? "float32" : "T") +
           ", \"optional\": " + (t.optional ? "true" : "false") + "}";
  };
  const auto attribute = [](const Attribute& a) {
    return "{\"name\": " + quoted(a.name) + ", \"default\": " + std::to_string(a.standard) + ", \"least\": " +
           std::to_string(a.least) + ", \"most\": " + std::to_string(a.most) + "}";
  };
  const auto op = [&](const Op& o) {
    return "{\"name\": " + quoted(o.name) + ", \"inputs\": " + listed(o.inputs, o.input_count, tensor) +
           ", \"outputs\": " + listed(o.outputs, o.output_count, tensor) + ", \"attributes\": " +
           listed(o.attributes, o.attribute_count, attribute) + "}";
  };
  return "{\"version\": " + quoted(kPluginVersion) + ", \"namespaces\": " +
         listed(kNamespaces, std::size(kNamespaces), quoted) + ", \"headers\": " + quoted(MSCOPE_TENSORRT_HEADERS) +
         ", \"targets\": " + quoted(mscope_cuda_targets()) + ", \"types\": [\"float32\", \"float16\", \"bfloat16\"]" +
         ", \"ops\": " + listed(kOps, std::size(kOps), op) + "}";
}

}  // namespace
}  // namespace mscope::trt

MSCOPE_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators) noexcept {
  try {
    static const auto* const pointers = [] {
      auto* const made = new std::vector<nvinfer1::IPluginCreatorInterface*>;
      for (mscope::trt::Creator& creator : mscope::trt::creators()) made->push_back(&creator);
      return made;
    }();
    nbCreators = static_cast<int32_t>(pointers->size());
    return pointers->data();
  } catch (...) {
    nbCreators = 0;
    return nullptr;
  }
}

MSCOPE_EXPORT void setLoggerFinder(void* finder) noexcept { mscope::trt::set_logger_finder(finder); }

// The table of ops.h and what the library was built with, as JSON; null where there is no memory. The string is static.
MSCOPE_EXPORT const char* mscope_trt_describe() noexcept {
  try {
    static const std::string* const text = new std::string(mscope::trt::describe());
    return text->c_str();
  } catch (...) {
    return nullptr;
  }
}

// TensorRT 11 gave ILoggerFinder and ILogger a base class, IVersionedInterface, and with it other slots for their
// virtual functions, under the same names. A library that was compiled for one and is loaded by the other calls the
// wrong function. So neither header's declaration is used here: the run-time type information of the finder says which
// it is, and the functions are called by their slots. Where it says neither, none is called.
#include "trt/logger.h"

#include <cxxabi.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <typeinfo>

namespace mscope::trt {
namespace {

// Slots of ILoggerFinder::findLogger() and of ILogger::log(severity, message): both are their class's first own
// function, which in 11 (and TensorRT-RTX) comes behind the two functions and the two destructors of
// IVersionedInterface.
constexpr int kUnknown = -1, kSlot10 = 0, kSlot11 = 4;

std::atomic<void*> current_finder{nullptr};
std::atomic<int> current_slot{kUnknown};

// Itanium C++ ABI: an object begins with the address of its functions, before which stands its type information. Called
// by hand, because the compiler would resolve a virtual call to a class that nothing here derives from.
const void* const* functions_of(const void* object) { return *static_cast<const void* const* const*>(object); }

int slot_of(const void* finder) {
  const std::type_info* type = static_cast<const std::type_info*>(functions_of(finder)[-1]);
  int slot = kUnknown;
  while (type) {
    if (std::strcmp(type->name(), "N8nvinfer119IVersionedInterfaceE") == 0) return kSlot11;
    if (std::strcmp(type->name(), "N8nvinfer113ILoggerFinderE") == 0) slot = kSlot10;
    const auto* const derived = dynamic_cast<const abi::__si_class_type_info*>(type);
    type = derived ? derived->__base_type : nullptr;
  }
  return slot;
}

bool log_to_tensorrt(Severity severity, const char* message) {
  void* const finder = current_finder.load();
  const int slot = current_slot.load();
  if (!finder || slot == kUnknown) return false;
  using FindLogger = void* (*)(void*);
  using Log = void (*)(void*, int32_t, const char*);
  void* const logger = reinterpret_cast<FindLogger>(const_cast<void*>(functions_of(finder)[slot]))(finder);
  if (!logger) return false;
  reinterpret_cast<Log>(const_cast<void*>(functions_of(logger)[slot]))(logger, static_cast<int32_t>(severity), message);
  return true;
}

}  // namespace

void set_logger_finder(void* finder) noexcept {
  current_finder.store(nullptr);
  current_slot.store(finder ? slot_of(finder) : kUnknown);
  current_finder.store(finder);
}

void log(Severity severity, const std::string& message) noexcept {
  try {
    if (log_to_tensorrt(severity, message.c_str())) return;
  } catch (...) {  // a logger that throws must not end the process
  }
  if (severity <= Severity::warning) std::fprintf(stderr, "%s\n", message.c_str());
}

}  // namespace mscope::trt

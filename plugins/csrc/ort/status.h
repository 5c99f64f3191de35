// Errors: exceptions inside, ONNX Runtime statuses at its boundary.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "abi/onnxruntime.h"

namespace mscope {
namespace ort {

// What a user can put right: wrong shapes, types, attributes.
class InvalidArgument : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws what a call into the runtime reports.
inline void check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw std::runtime_error(message);
}

// Whether a call succeeded, where a failure is an answer.
inline bool succeeded(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return true;
  api.ReleaseStatus(status);
  return false;
}

// Memory from one of the runtime's allocators, never null. Not by the allocator's own function: that throws where it has
// none, and an exception of the runtime's must not meet the C++ library that is linked into this one.
inline void* allocate(const OrtApi& api, OrtAllocator* allocator, size_t bytes) {
  void* data = nullptr;
  check(api, api.AllocatorAlloc(allocator, bytes, &data));
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

// Runs a callback's body; nothing is thrown through the C boundary.
template <class Body>
OrtStatus* guarded(const OrtApi& api, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const InvalidArgument& error) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ORT_FAIL, "mambascope: out of memory");
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  } catch (...) {
    return api.CreateStatus(ORT_FAIL, "mambascope: unknown failure");
  }
}

}  // namespace ort
}  // namespace mscope

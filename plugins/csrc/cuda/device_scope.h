// Makes a device current for a scope: the caller's framework may have another one current on this thread.
#pragma once

#include <cuda_runtime.h>

namespace mscope {

// The driver's cuCtxGetCurrent and cuCtxSetCurrent; null where it does not say them.
struct ThreadContext {
  int (*get)(void** context) = nullptr;
  int (*set)(void* context) = nullptr;

  static const ThreadContext& functions() {
    static const ThreadContext found = [] {
      ThreadContext f;
      void *get = nullptr, *set = nullptr;
      if (ask("cuCtxGetCurrent", &get) && ask("cuCtxSetCurrent", &set)) {
        f.get = reinterpret_cast<int (*)(void**)>(get);
        f.set = reinterpret_cast<int (*)(void*)>(set);
      }
      return f;
    }();
    return found;
  }

 private:
  static bool ask(const char* name, void** function) {
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion(name, function, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t error = cudaGetDriverEntryPoint(name, function, cudaEnableDefault, &result);
#endif
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess && *function != nullptr;
  }
};

// What is put back is the thread's context, which may be none and need not be a device's primary one: cudaSetDevice
// would make a primary context for a device that the process does not use, some hundred megabytes of its memory.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    status_ = cudaGetDevice(&previous_);
    if (status_ != cudaSuccess) return;
    const ThreadContext& thread = ThreadContext::functions();
    known_ = thread.get != nullptr && thread.get(&context_) == 0;
    // Without a context the device is only what this copy of the CUDA runtime was told last.
    if (previous_ == device && !(known_ && context_ == nullptr)) return;
    status_ = cudaSetDevice(device);
    changed_ = status_ == cudaSuccess;
  }
  ~DeviceScope() {
    if (!changed_) return;
    if (known_)
      ThreadContext::functions().set(context_);
    else
      cudaSetDevice(previous_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  cudaError_t status() const { return status_; }

 private:
  int previous_ = 0;
  void* context_ = nullptr;
  bool known_ = false, changed_ = false;
  cudaError_t status_;
};

}  // namespace mscope

// The CUDA runtime, played by a test: the kernels' objects as nvcc made them are linked with this in libcudart's place.
//
// Every launch is held to a device's rules (grid, block, shared memory that was asked for) and noted; a failure stays the
// thread's last error until that is asked for, as the real one's does. Nothing runs, unless a test says what runs it.
#include <stdint.h>
#include <stdio.h>

#include <functional>
#include <map>
#include <string>
#include <utility>

#define EXPORT extern "C" __attribute__((visibility("default")))

struct dim3 {
  unsigned x, y, z;
};

namespace {

enum { kInvalidValue = 1, kInvalidConfiguration = 9, kInvalidDevice = 101, kInvalidDeviceFunction = 98 };
enum { kMultiprocessors = 16, kSharedPerMultiprocessor = 81, kSharedPerBlockOptin = 97 };  // cudaDeviceAttr
constexpr int kMaxDynamicShared = 8;                                                        // cudaFuncAttribute
constexpr int kUnasked = 48 * 1024;

struct Device {
  int multiprocessors, shared_per_multiprocessor, shared_per_block;
};
// An H100, an Orin and a T4; a device of one multiprocessor, and one far too large.
constexpr Device kDevices[] = {{132, 228 << 10, 227 << 10}, {16, 164 << 10, 163 << 10}, {40, 64 << 10, 64 << 10},
                               {1, 64 << 10, 64 << 10}, {4096, 64 << 10, 64 << 10}};
constexpr int kCount = sizeof kDevices / sizeof *kDevices;

thread_local int current = 0, last_error = 0;
std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> all;
  return all;
}
std::map<std::pair<const void*, int>, int> granted;
std::string notes;
void (*before_launch)() = nullptr;
int (*runs_launch)(const char* kernel, unsigned blocks, unsigned threads, size_t shared, void** arguments) = nullptr;

int failed(int error) {
  if (error) last_error = error;
  return error;
}

}  // namespace

EXPORT void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*,
                                   int*) {
  kernels()[host] = name;
}
// Of <<< >>>, which says nothing of its own launch's failure: not used.
EXPORT unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { return kInvalidConfiguration; }
EXPORT int __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return failed(kInvalidConfiguration); }
EXPORT int __cudaGetKernel(void**, const void*) { return failed(kInvalidDeviceFunction); }
EXPORT int __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, void*) { return failed(kInvalidConfiguration); }

EXPORT int cudaGetLastError() { return std::exchange(last_error, 0); }
EXPORT const char* cudaGetErrorString(int error) {
  return error == kInvalidDevice ? "invalid device ordinal" : error == kInvalidValue ? "invalid argument" : "another";
}
EXPORT int cudaGetDeviceCount(int* count) {
  *count = kCount;
  return 0;
}
EXPORT int cudaGetDevice(int* device) {
  *device = current;
  return 0;
}
EXPORT int cudaSetDevice(int device) {
  if (device < 0 || device >= kCount) return failed(kInvalidDevice);
  current = device;
  return 0;
}
EXPORT int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  if (device < 0 || device >= kCount) return failed(kInvalidDevice);
  const Device& asked = kDevices[device];
  switch (attribute) {
    case kMultiprocessors: *value = asked.multiprocessors; return 0;
    case kSharedPerMultiprocessor: *value = asked.shared_per_multiprocessor; return 0;
    case kSharedPerBlockOptin: *value = asked.shared_per_block; return 0;
  }
  return failed(kInvalidValue);
}
EXPORT int cudaFuncGetAttributes(void*, const void* function) {
  return failed(kernels().count(function) ? 0 : kInvalidDeviceFunction);
}
EXPORT int cudaFuncSetAttribute(const void* function, int attribute, int value) {
  if (!kernels().count(function)) return failed(kInvalidDeviceFunction);
  if (attribute != kMaxDynamicShared || value < 0 || value > kDevices[current].shared_per_block)
    return failed(kInvalidValue);
  granted[{function, current}] = value;
  return 0;
}
EXPORT int cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared, void* stream) {
  if (auto* const other = std::exchange(before_launch, nullptr)) other();
  const auto kernel = kernels().find(function);
  if (kernel == kernels().end()) return failed(kInvalidDeviceFunction);
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return failed(kInvalidConfiguration);
  if (!block.x || !block.y || !block.z || uint64_t{block.x} * block.y * block.z > 1024)
    return failed(kInvalidConfiguration);
  const auto asked = granted.find({function, current});
  if (shared > static_cast<size_t>(asked == granted.end() ? kUnasked : asked->second)) return failed(kInvalidValue);
  char line[64];
  snprintf(line, sizeof line, " %d %u %u %zu %zu\n", current, grid.x, block.x, shared,
           reinterpret_cast<size_t>(stream));
  notes += kernel->second + line;
  return runs_launch ? failed(runs_launch(kernel->second.c_str(), grid.x, block.x, shared, arguments)) : 0;
}

// "kernel device blocks threads shared_bytes stream" of every launch since the last call; valid until the next.
EXPORT const char* fake_launches() {
  static std::string told;
  told = std::exchange(notes, {});
  return told.c_str();
}
// What another thread does between this one's next preparation of a launch and the launch.
EXPORT void fake_before_next_launch(void (*other)()) { before_launch = other; }
// Who runs launches from now on, at once; null: nobody.
EXPORT void fake_run_launches(int (*runs)(const char*, unsigned, unsigned, size_t, void**)) { runs_launch = runs; }
EXPORT const char* fake_kernels() {
  static std::string names;
  names.clear();
  for (const auto& entry : kernels()) names += entry.second + "\n";
  return names.c_str();
}

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

// A thread's device is its context's; without one it is what cudaSetDevice said last, and the first thing that needs a
// context makes the primary one of that device and leaves it current.
thread_local int chosen = 0, last_error = 0;
thread_local void* context = nullptr;
char primaries[kCount];  // a primary context is the address of its device's
bool made[kCount];       // by whomever
constexpr int kOtherContext = 3;  // the device of a context that is not primary, from fake_other_context
char other_context;

int device_of(const void* c) {
  return c == &other_context ? kOtherContext : static_cast<int>(static_cast<const char*>(c) - primaries);
}
int current() { return context ? device_of(context) : chosen; }
void make_current(int device) {
  chosen = device;
  made[device] = true;
  context = &primaries[device];
}
int in_context() {
  if (!context) make_current(chosen);
  return device_of(context);
}
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
  *device = current();
  return 0;
}
EXPORT int cudaSetDevice(int device) {
  if (device < 0 || device >= kCount) return failed(kInvalidDevice);
  make_current(device);
  return 0;
}
EXPORT int cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                            int* result) {
  static int (*const get)(void**) = [](void** c) { return *c = context, 0; };
  static int (*const set)(void*) = [](void* c) { return context = c, 0; };
  *function = std::string(name) == "cuCtxGetCurrent"   ? reinterpret_cast<void*>(get)
              : std::string(name) == "cuCtxSetCurrent" ? reinterpret_cast<void*>(set)
                                                       : nullptr;
  *result = *function ? 0 : 1;
  return 0;
}
EXPORT int cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long flags, int* result) {
  return cudaGetDriverEntryPointByVersion(name, function, 0, flags, result);
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
  in_context();
  return failed(kernels().count(function) ? 0 : kInvalidDeviceFunction);
}
EXPORT int cudaFuncSetAttribute(const void* function, int attribute, int value) {
  if (!kernels().count(function)) return failed(kInvalidDeviceFunction);
  if (attribute != kMaxDynamicShared || value < 0 || value > kDevices[in_context()].shared_per_block)
    return failed(kInvalidValue);
  granted[{function, in_context()}] = value;
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
  const int device = in_context();
  const auto asked = granted.find({function, device});
  if (shared > static_cast<size_t>(asked == granted.end() ? kUnasked : asked->second)) return failed(kInvalidValue);
  char line[64];
  snprintf(line, sizeof line, " %d %u %u %zu %zu\n", device, grid.x, block.x, shared,
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
// Of this thread from now on: no context, or one that is no device's primary one (of device kOtherContext).
EXPORT void fake_no_context() {
  context = nullptr;
  chosen = 0;
}
EXPORT void fake_other_context() { context = &other_context; }
// -1: none; -2: the one that is not primary; else a device's primary one.
EXPORT int fake_context() { return !context ? -1 : context == &other_context ? -2 : device_of(context); }
// Devices that were given a primary context since the last call, one bit each.
EXPORT unsigned fake_contexts_made() {
  unsigned bits = 0;
  for (int i = 0; i < kCount; ++i) bits |= std::exchange(made[i], false) << i;
  return bits;
}
EXPORT const char* fake_kernels() {
  static std::string names;
  names.clear();
  for (const auto& entry : kernels()) names += entry.second + "\n";
  return names.c_str();
}

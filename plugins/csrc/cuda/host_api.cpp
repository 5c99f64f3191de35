// The kernels' C interface (cuda/api.h) over the host run: what tests link a plugin or an op library with in place of
// libmscope_cuda. Not in what is shipped.
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>
#include <string>

#include "cuda/api.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {
int host_scan(const MscopeScanParams* p, int dtype, const MscopeMachine* machine, int order);
int host_conv(const MscopeConvParams* p, int dtype, int order);
int host_plan(const MscopeScanParams* p, int dtype, const MscopeMachine* machine, int64_t* numbers);
}

namespace {

constexpr int kPlanNumbers = 13;
MscopeMachine machine = {132, 228 << 10, 227 << 10};
int expected_device = 0;
void* expected_stream = nullptr;
bool any_stream = false;
std::set<const void*> workspaces, in_use;
std::chrono::milliseconds patience{0};
int taken_twice = 0;
std::mutex table, host_run;  // the host run is one machine
std::condition_variable another_scan;

bool as_expected(int device, void* stream) {
  return device == expected_device && (any_stream ? stream != nullptr : stream == expected_stream);
}

}  // namespace

EXPORT void host_set_machine(const MscopeMachine* chosen) { machine = *chosen; }

// Every launch must be for this device and stream; any other is refused.
EXPORT void host_expect(int device, void* stream) {
  expected_device = device, expected_stream = stream, any_stream = false;
}
// The same for a device and whatever stream its owner has, but not the default one.
EXPORT void host_expect_any_stream(int device) { expected_device = device, any_stream = true; }

// Scans wait so long for another one that comes with the same workspace meanwhile; returns how many have, since the last
// call. On a stream the launches of both would mix.
EXPORT int host_wait_for_another(int milliseconds) {
  const std::lock_guard<std::mutex> hold(table);
  patience = std::chrono::milliseconds(milliseconds);
  const int count = taken_twice;
  taken_twice = 0;
  return count;
}

// How many different workspaces scans were given since the last call.
EXPORT int host_workspaces() {
  const std::lock_guard<std::mutex> hold(table);
  const int count = static_cast<int>(workspaces.size());
  workspaces.clear();
  return count;
}

const char* mscope_cuda_targets(void) { return "host"; }

int mscope_cuda_scan_workspace(const MscopeScanParams* p, int dtype, int device, int64_t* bytes) {
  if (device != expected_device) return MSCOPE_BAD_POINTER;
  int64_t numbers[kPlanNumbers] = {};
  const int status = host_plan(p, dtype, &machine, numbers);
  *bytes = p->batch > 0 ? numbers[kPlanNumbers - 1] : 0;
  return status;
}

int mscope_cuda_scan(const MscopeScanParams* p, int dtype, int device, void* stream) {
  if (!as_expected(device, stream)) return MSCOPE_BAD_POINTER;
  bool first = true;
  if (p->workspace != nullptr) {
    std::unique_lock<std::mutex> hold(table);
    workspaces.insert(p->workspace);
    first = in_use.insert(p->workspace).second;
    if (!first) ++taken_twice;
    another_scan.notify_all();
    another_scan.wait_for(hold, patience, [] { return taken_twice > 0; });
  }
  int status;
  {
    const std::lock_guard<std::mutex> hold(host_run);
    status = host_scan(p, dtype, &machine, 0);
  }
  const std::lock_guard<std::mutex> hold(table);
  if (first) in_use.erase(p->workspace);
  return status;
}

int mscope_cuda_conv_silu(const MscopeConvParams* p, int dtype, int device, void* stream) {
  if (!as_expected(device, stream)) return MSCOPE_BAD_POINTER;
  const std::lock_guard<std::mutex> hold(host_run);
  return host_conv(p, dtype, 0);
}

const char* mscope_cuda_message(int status) {
  static thread_local std::string text;
  text = "status " + std::to_string(status);
  return text.c_str();
}

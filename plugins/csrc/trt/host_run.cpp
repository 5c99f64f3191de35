// The plugin over the kernels' host run (cuda/host_run.cpp) in place of a device: what tests/plugins/test_trt_host.py
// drives as TensorRT would. Not in the library that is shipped.
#include "abi/tensorrt.h"
#include "cuda/api.h"
#include "trt/launch.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {
int host_scan(const MscopeScanParams* p, int dtype, const MscopeMachine* machine, int order);
int host_conv(const MscopeConvParams* p, int dtype, int order);
int host_plan(const MscopeScanParams* p, int dtype, const MscopeMachine* machine, int64_t* numbers);
}

namespace {

constexpr int kPlanNumbers = 13, kDevice = 3;
MscopeMachine machine = {132, 228 << 10, 227 << 10};
bool there_is_a_device = true;

// The plugin must pass on the device that is current and the stream that it was given.
bool as_expected(int device, void* stream) { return device == kDevice && stream == &machine; }

}  // namespace

int mscope::trt::current_device() {
  if (!there_is_a_device) throw Refusal("there is no CUDA device");
  return kDevice;
}

EXPORT void host_set_machine(const MscopeMachine* chosen) { machine = *chosen; }
EXPORT void host_set_device(int present) { there_is_a_device = present != 0; }
EXPORT void* host_stream() { return &machine; }
EXPORT int64_t host_workspace_bound(int64_t batch, int64_t length, int64_t channels, int64_t states,
                                    int64_t directions) {
  using namespace mscope::trt;
  Sizes sizes = {};
  sizes.of[kBatch] = batch, sizes.of[kLength] = length, sizes.of[kChannels] = channels, sizes.of[kStates] = states;
  return static_cast<int64_t>(workspace_bytes(kOps[directions == 2 ? 2 : 1], sizes));
}

const char* mscope_cuda_targets(void) { return "host"; }

int mscope_cuda_scan_workspace(const MscopeScanParams* p, int dtype, int device, int64_t* bytes) {
  if (device != kDevice) return MSCOPE_BAD_POINTER;
  int64_t numbers[kPlanNumbers] = {};
  const int status = host_plan(p, dtype, &machine, numbers);
  *bytes = p->batch > 0 ? numbers[kPlanNumbers - 1] : 0;
  return status;
}

int mscope_cuda_scan(const MscopeScanParams* p, int dtype, int device, void* stream) {
  return as_expected(device, stream) ? host_scan(p, dtype, &machine, 0) : static_cast<int>(MSCOPE_BAD_POINTER);
}

int mscope_cuda_conv_silu(const MscopeConvParams* p, int dtype, int device, void* stream) {
  return as_expected(device, stream) ? host_conv(p, dtype, 0) : static_cast<int>(MSCOPE_BAD_POINTER);
}

const char* mscope_cuda_message(int status) {
  static thread_local std::string text;
  text = "status " + std::to_string(status);
  return text.c_str();
}

// What the plugin needs beside cuda/host_api.cpp to run without a device: what tests/plugins/test_trt_host.py drives as
// TensorRT would. Not in the library that is shipped.
#include "abi/tensorrt.h"
#include "trt/launch.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void host_expect(int device, void* stream);

namespace {

constexpr int kDevice = 3;
char stream;
bool there_is_a_device = true;

// The plugin must pass on the device that is current and the stream that it was given.
[[maybe_unused]] const bool expected = (host_expect(kDevice, &stream), true);

}  // namespace

int mscope::trt::current_device() {
  if (!there_is_a_device) throw Refusal("there is no CUDA device");
  return kDevice;
}

EXPORT void host_set_device(int present) { there_is_a_device = present != 0; }
EXPORT void* host_stream() { return &stream; }
EXPORT int64_t host_workspace_bound(int64_t batch, int64_t length, int64_t channels, int64_t states,
                                    int64_t directions) {
  using namespace mscope::trt;
  Sizes sizes = {};
  sizes.of[kBatch] = batch, sizes.of[kLength] = length, sizes.of[kChannels] = channels, sizes.of[kStates] = states;
  return static_cast<int64_t>(workspace_bytes(kOps[directions == 2 ? 2 : 1], sizes));
}

#include "cuda/api.h"

#include <cuda_runtime.h>

#include <mutex>

#include "cuda/device_scope.h"
#include "cuda/dispatch.h"
#include "cuda/resample.h"
#include "cuda/select.h"

#if !defined(MSCOPE_CUDA_TARGETS)
#error "the builder defines MSCOPE_CUDA_TARGETS, the list of what is compiled for"
#endif

namespace {

using mscope::DeviceScope;

cudaError_t query(int device, MscopeMachine* machine) {
  const struct {
    cudaDeviceAttr attribute;
    int32_t* value;
  } wanted[] = {{cudaDevAttrMultiProcessorCount, &machine->multiprocessors},
                {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &machine->shared_per_multiprocessor},
                {cudaDevAttrMaxSharedMemoryPerBlockOptin, &machine->shared_per_block}};
  for (const auto& item : wanted) {
    const cudaError_t error = cudaDeviceGetAttribute(item.value, item.attribute, device);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// Three attribute queries cost as much as a launch: each device is asked once.
cudaError_t machine_of(int device, MscopeMachine* machine) {
  constexpr int kDevices = 64;
  static std::mutex mutex;
  static MscopeMachine known[kDevices] = {};
  if (device < 0 || device >= kDevices) return cudaErrorInvalidDevice;
  const std::lock_guard<std::mutex> lock(mutex);
  if (known[device].multiprocessors == 0) {
    MscopeMachine asked = {};
    const cudaError_t error = query(device, &asked);
    if (error != cudaSuccess) return error;
    known[device] = asked;
  }
  *machine = known[device];
  return cudaSuccess;
}

}  // namespace

// Not in the unnamed namespace, which nvcc names by this file's path: the library's hash would tell where it was built.
__global__ void load_probe() {}

int mscope_abi_version(void) { return MSCOPE_ABI_VERSION; }

int64_t mscope_cuda_struct_bytes(int which) {
  const int64_t bytes[] = {sizeof(MscopeScanParams), sizeof(MscopeConvParams), sizeof(MscopeResampleParams),
                           sizeof(MscopeSelectParams)};
  return which >= 0 && which < 4 ? bytes[which] : 0;
}

const char* mscope_cuda_targets(void) { return MSCOPE_CUDA_TARGETS; }

int mscope_cuda_device_count(int* count) {
  *count = 0;
  return cudaGetDeviceCount(count);
}

int mscope_cuda_supports(int device) {
  const DeviceScope scope(device);
  if (scope.status() != cudaSuccess) return scope.status();
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, load_probe);
}

int mscope_cuda_scan_workspace(const MscopeScanParams* p, int dtype, int device, int64_t* bytes) {
  MscopeMachine machine;
  const cudaError_t error = machine_of(device, &machine);
  if (error != cudaSuccess) return error;
  mscope::ScanPlan plan;
  const int status = mscope::plan_for(*p, dtype, machine, plan);
  *bytes = status == MSCOPE_OK && p->batch > 0 ? mscope::workspace_bytes(plan) : 0;
  return status;
}

int mscope_cuda_scan(const MscopeScanParams* p, int dtype, int device, void* stream) {
  const DeviceScope scope(device);
  if (scope.status() != cudaSuccess) return scope.status();
  MscopeMachine machine;
  const cudaError_t error = machine_of(device, &machine);
  if (error != cudaSuccess) return error;
  return mscope::run_scan(*p, dtype, machine, static_cast<cudaStream_t>(stream));
}

int mscope_cuda_conv_silu(const MscopeConvParams* p, int dtype, int device, void* stream) {
  const DeviceScope scope(device);
  if (scope.status() != cudaSuccess) return scope.status();
  return mscope::run_conv(*p, dtype, static_cast<cudaStream_t>(stream));
}

const char* mscope_cuda_message(int status) {
  switch (status) {
    case MSCOPE_OK:
      return "success";
    case MSCOPE_BAD_SIZE:
      return "a size is out of range (batch from 0, the others from 1, none above 2^30)";
    case MSCOPE_BAD_DTYPE:
      return "the dtype is none of float32 (0), float16 (1), bfloat16 (2)";
    case MSCOPE_BAD_POINTER:
      return "a required pointer is null";
    case MSCOPE_BAD_WIDTH:
      return "the convolution's width is none of 2, 3, 4";
    case MSCOPE_SMALL_WORKSPACE:
      return "the workspace is smaller than mscope_cuda_scan_workspace says";
    case MSCOPE_NO_SHARED_MEMORY:
      return "the rank and the number of states together need more shared memory than a block can have";
    default:
      return cudaGetErrorString(static_cast<cudaError_t>(status));
  }
}

#include "ort/cuda/kernel.h"

#include "cuda/api.h"

namespace mscope {
namespace ort {

static_assert(static_cast<int>(Storage::f32) == MSCOPE_FLOAT32 && static_cast<int>(Storage::f16) == MSCOPE_FLOAT16 &&
                  static_cast<int>(Storage::bf16) == MSCOPE_BFLOAT16,
              "dtype() takes one for the other");

CudaKernel::Place CudaKernel::place_of(OrtKernelContext* context, const OrtValue* out) const {
  Place place = {};
  // The device that the output was allocated on is the session's: no other question to CUDA is needed.
  check(api, api.GetTensorMemoryInfo(out, &place.memory));
  check(api, api.MemoryInfoGetId(place.memory, &place.device));
  check(api, api.KernelContext_GetGPUComputeStream(context, &place.stream));
  return place;
}

void CudaKernel::require(int status, const char* what) const {
  if (status != MSCOPE_OK) throw std::runtime_error(node + ": " + what + " failed: " + mscope_cuda_message(status));
}

void CudaKernel::launch(OrtKernelContext* context, const OrtValue* out, const MscopeConvParams& p) const {
  if (p.batch == 0) return;
  const Place place = place_of(context, out);
  require(mscope_cuda_conv_silu(&p, dtype(), place.device, place.stream), "the convolution's launch");
}

void CudaKernel::launch(OrtKernelContext* context, const OrtValue* out, MscopeScanParams p) {
  if (p.batch == 0) return;
  const Place place = place_of(context, out);
  require(mscope_cuda_scan_workspace(&p, dtype(), place.device, &p.workspace_bytes), "the scan's plan");
  std::unique_lock<std::mutex> held;
  if (p.workspace_bytes > 0) {
    StreamScratch& scratch = scratch_of(place);
    held = scratch.hold();
    p.workspace = scratch.at_least(api, context, place.memory, p.workspace_bytes);
  }
  require(mscope_cuda_scan(&p, dtype(), place.device, place.stream), "the scan's launch");
}

StreamScratch& CudaKernel::scratch_of(const Place& place) {
  const std::lock_guard<std::mutex> hold(lock_);
  for (const auto& scratch : scratch_)
    if (scratch->is_of(place.device, place.stream)) return *scratch;
  scratch_.push_back(StreamScratch::of(place.device, place.stream));
  return *scratch_.back();
}

}  // namespace ort
}  // namespace mscope

// The library for ONNX Runtime's CPU provider, and what of it only a CPU has.

#include "ort/cpu/kernel.h"

namespace mscope {
namespace ort {
namespace {

const OpSpec* const kOps[] = {&kConvOp, &kScanOp, &kBidirectionalScanOp, &kMixerOp};

}  // namespace

const Library kLibrary = {"CPUExecutionProvider", kOps, sizeof kOps / sizeof *kOps};

}  // namespace ort
}  // namespace mscope

#define MSCOPE_EXPORT extern "C" __attribute__((visibility("default")))

// The instruction set that kernels created from now on use; "" where MSCOPE_ISA names one that is not here.
MSCOPE_EXPORT const char* mscope_ort_isa() noexcept {
  const mscope::inference::Kernels* const kernels = mscope::inference::kernels();
  return kernels != nullptr ? kernels->isa : "";
}

// Forces it ("scalar", "neon", "avx2", "avx512"; "" or null: the best again). 0, or -1 where it is not here.
MSCOPE_EXPORT int mscope_ort_force_isa(const char* name) noexcept { return mscope::inference::force_isa(name) ? 0 : -1; }

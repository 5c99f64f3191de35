// The library for ONNX Runtime's CUDA provider. VimMixer is not in it: the runtime then takes it apart, into the ops
// below and a product of its own (docs/ops.md).

#include "cuda/api.h"
#include "ort/cuda/kernel.h"

// Tests build this library for the CPU provider, over the kernels' host run.
#if !defined(MSCOPE_ORT_PROVIDER)
#define MSCOPE_ORT_PROVIDER "CUDAExecutionProvider"
#endif

namespace mscope {
namespace ort {
namespace {

const OpSpec* const kOps[] = {&kConvOp, &kScanOp, &kBidirectionalScanOp};

}  // namespace

const Library kLibrary = {MSCOPE_ORT_PROVIDER, kOps, sizeof kOps / sizeof *kOps};

}  // namespace ort
}  // namespace mscope

// What the library holds code for, as "75 80 ... ptx120".
extern "C" __attribute__((visibility("default"))) const char* mscope_ort_targets() noexcept {
  return mscope_cuda_targets();
}

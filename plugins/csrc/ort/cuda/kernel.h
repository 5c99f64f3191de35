// The base of the kernels for ONNX Runtime's CUDA provider: tensors are addresses on a device, and what is launched goes
// on the stream that the runtime gives.
#pragma once

#include <stdint.h>

#include <memory>
#include <mutex>
#include <vector>

#include "cuda/dense.h"
#include "ort/contract.h"
#include "ort/cuda/scratch.h"

namespace mscope {
namespace ort {

extern const OpSpec kConvOp, kScanOp, kBidirectionalScanOp;

class CudaKernel : public Kernel {
 public:
  using Kernel::Kernel;

 protected:
  // Shapes of a node's inputs, as far as they are declared.
  template <size_t COUNT>
  void declare(const OrtKernelInfo* info, Shape (&shapes)[COUNT]) const {
    for (size_t i = 0; i < COUNT; ++i) shapes[i] = declared(info, i);
  }
  // Addresses and shapes of a call's inputs; null and unknown where one is absent.
  template <size_t COUNT>
  void read(OrtKernelContext* context, Shape (&shapes)[COUNT], const void* (&data)[COUNT]) const {
    for (size_t i = 0; i < COUNT; ++i) {
      const Tensor tensor = input(context, i);
      data[i] = tensor.data;
      shapes[i] = tensor.shape;
    }
  }

  int dtype() const { return static_cast<int>(storage); }

  // Queue the op whose output is `out`. Throw what the kernels report.
  void launch(OrtKernelContext* context, const OrtValue* out, const MscopeConvParams& p) const;
  void launch(OrtKernelContext* context, const OrtValue* out, MscopeScanParams p);

 private:
  struct Place {
    const OrtMemoryInfo* memory;
    int device;
    void* stream;
  };
  // Where the output lies, and the stream of this run.
  Place place_of(OrtKernelContext* context, const OrtValue* out) const;
  void require(int status, const char* what) const;
  // The scratch memory of a stream; kept, so that it lives at least as long as this kernel.
  StreamScratch& scratch_of(const Place& place);

  std::mutex lock_;  // runs of one session may overlap
  std::vector<std::shared_ptr<StreamScratch>> scratch_;
};

}  // namespace ort
}  // namespace mscope

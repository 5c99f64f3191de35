// The base of the kernels for ONNX Runtime's CPU provider: the instruction set in use, threads, and memory.
#pragma once

#include <stdint.h>

#include <memory>
#include <new>

#include "cpu/inference.h"
#include "ort/kernel.h"

namespace mscope {
namespace ort {

extern const OpSpec kConvOp, kScanOp, kBidirectionalScanOp, kMixerOp;

// Aligned memory that lives as long as a kernel, for packed parameters.
class Buffer {
 public:
  float* allocate(int64_t floats) {
    memory_.reset(static_cast<float*>(::operator new(sizeof(float) * static_cast<size_t>(floats), kAlignment)));
    return memory_.get();
  }
  const float* get() const { return memory_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(float* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<float, Delete> memory_;
};

// Memory for one call, from the runtime's own allocator, which keeps and plans it.
class Scratch {
 public:
  Scratch(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {}
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* allocate(int64_t floats);

 private:
  static constexpr int kMax = 4;
  const OrtApi& api_;
  OrtKernelContext* context_;
  OrtAllocator* allocator_ = nullptr;
  void* blocks_[kMax] = {};
  int count_ = 0;
};

class CpuKernel : public Kernel {
 public:
  CpuKernel(const OrtApi& api, const OrtKernelInfo* info, const OpSpec& spec, Storage storage);

 protected:
  // Runs body(problem, task) for every task on the session's threads.
  template <class Problem>
  void parallel(OrtKernelContext* context, const Problem& problem, int64_t tasks,
                void (*body)(const Problem&, int64_t)) const {
    struct Job {
      const Problem& problem;
      void (*body)(const Problem&, int64_t);
    } job{problem, body};
    if (tasks == 1) return body(problem, 0);
    if (tasks <= 0) return;
    check(api, api.KernelContext_ParallelFor(
                   context,
                   [](void* data, size_t task) {
                     const Job& all = *static_cast<const Job*>(data);
                     all.body(all.problem, static_cast<int64_t>(task));
                   },
                   static_cast<size_t>(tasks), 0, &job));
  }

  const inference::Kernels& kernels;
};

}  // namespace ort
}  // namespace mscope

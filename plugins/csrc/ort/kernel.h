// The frame of an op: its description, one OrtCustomOp for each storage type, and the base of its kernels.
#pragma once

#include <stdint.h>

#include <atomic>
#include <memory>
#include <new>
#include <string>

#include "abi/onnxruntime.h"
#include "cpu/inference.h"
#include "ort/shapes.h"

namespace mscope {
namespace ort {

using inference::Storage;

// One input or output. `stored`: marked T in the contract, of the op's storage type; float32 otherwise.
struct Port {
  const char* name;
  bool stored;
  bool optional;
};

class Kernel;

struct OpSpec {
  const char* name;
  const Port* inputs;
  size_t input_count;
  const Port* outputs;
  size_t output_count;
  Kernel* (*create)(const OrtApi&, const OrtKernelInfo*, const OpSpec&, Storage);
  // Sets the outputs' shapes while a graph is loaded.
  void (*infer)(const OrtApi&, OrtShapeInferContext*);
};

extern const OpSpec kConvOp, kScanOp, kBidirectionalScanOp, kMixerOp;

// How often kernels were created and run in this process: the proof that a session uses them (docs/kernels.md).
struct Counters {
  std::atomic<uint64_t> kernels{0}, calls{0};
};
Counters& counters();

// A tensor at hand: null where an optional one is absent.
struct Tensor {
  const void* data = nullptr;
  Shape shape;
  explicit operator bool() const { return data != nullptr; }
};

Tensor tensor_of(const OrtApi& api, const OrtValue* value);

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

class Kernel {
 public:
  Kernel(const OrtApi& api, const OrtKernelInfo* info, const OpSpec& spec, Storage storage);
  virtual ~Kernel() = default;
  virtual void compute(OrtKernelContext* context) = 0;

  const OrtApi& api;

 protected:
  // While a kernel is created: what is known of input `index`, and its value where that is a constant.
  Shape declared(const OrtKernelInfo* info, size_t index) const;
  bool present(const OrtKernelInfo* info, size_t index) const;
  Tensor constant(const OrtKernelInfo* info, size_t index) const;
  int64_t attribute(const OrtKernelInfo* info, const char* name, int64_t otherwise) const;

  // While it runs.
  Tensor input(OrtKernelContext* context, size_t index) const;
  void* output(OrtKernelContext* context, size_t index, const int64_t* extents, size_t rank) const;
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

  const OpSpec& spec;
  const Storage storage;
  const inference::Kernels& kernels;
  std::string node;  // "SelectiveScan 'name'", for messages
};

}  // namespace ort
}  // namespace mscope

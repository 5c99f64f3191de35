// The frame of an op, whatever runs it: its description, and the base of its kernels.
#pragma once

#include <stdint.h>

#include <atomic>
#include <string>

#include "abi/onnxruntime.h"
#include "abi/ops.h"
#include "ort/shapes.h"

namespace mscope {
namespace ort {

constexpr int64_t bytes_of(Storage storage) { return storage == Storage::f32 ? 4 : 2; }

// One input or output. `stored`: marked T in the contract, of the op's storage type; float32 otherwise.
struct Port {
  const char* name;
  bool stored;
  bool optional;
};

class Kernel;
struct OpSpec;

using Create = Kernel* (*)(const OrtApi&, const OrtKernelInfo*, const OpSpec&, Storage);
// Sets the outputs' shapes while a graph is loaded.
using Infer = void (*)(const OrtApi&, OrtShapeInferContext*);

struct OpSpec {
  const char* name;
  const Port* inputs;
  size_t input_count;
  const Port* outputs;
  size_t output_count;
  Create create;
  Infer infer;
  bool gaps = false;  // an optional input may be left out before one that is given
};

// What a library has, and for which of ONNX Runtime's execution providers. Each library defines this once.
struct Library {
  const char* provider;
  const OpSpec* const* ops;
  size_t op_count;
};
extern const Library kLibrary;

// How often kernels were created and run in this process: the proof that a session uses them (docs/kernels.md).
struct Counters {
  std::atomic<uint64_t> kernels{0}, calls{0};
};
Counters& counters();

// A tensor at hand: null where an optional one is absent. Its data lies where the provider keeps it.
struct Tensor {
  const void* data = nullptr;
  Shape shape;
  explicit operator bool() const { return data != nullptr; }
};

Tensor tensor_of(const OrtApi& api, const OrtValue* value);

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
  // An attribute that is 0 or 1; throws where it is another number.
  bool flag(const OrtKernelInfo* info, const char* name, bool otherwise) const;

  // While it runs.
  Tensor input(OrtKernelContext* context, size_t index) const;
  // null, and a null pointer in `value`, where the output is not wanted.
  void* output(OrtKernelContext* context, size_t index, const int64_t* extents, size_t rank,
               OrtValue** value = nullptr) const;

  const OpSpec& spec;
  const Storage storage;
  std::string node;  // "SelectiveScan 'name'", for messages
};

}  // namespace ort
}  // namespace mscope

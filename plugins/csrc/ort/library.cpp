// The entry points of a library of ops: RegisterCustomOps for ONNX Runtime, and mscope_ort_* for this project's Python
// side. Linked once into the library for the CPU and once into the one for CUDA (kLibrary says which it is).

#include <stdint.h>
#include <stdlib.h>

#include <mutex>
#include <new>
#include <string>

#include "abi/onnxruntime.h"
#include "ort/kernel.h"
#include "ort/status.h"

#define MSCOPE_EXPORT extern "C" __attribute__((visibility("default")))

namespace mscope {
namespace ort {
namespace {

constexpr const char* kDomain = "mambascope";
constexpr int kOpVersion = 2;

// An op for one storage type: ONNX Runtime takes several of one name and picks by the tensors' types.
struct CustomOp : OrtCustomOp {
  const OpSpec* spec = nullptr;
  Storage storage = Storage::f32;
};

const CustomOp& self(const OrtCustomOp* op) { return *static_cast<const CustomOp*>(op); }

ONNXTensorElementDataType element_type(Storage storage) {
  switch (storage) {
    case Storage::f16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case Storage::bf16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case Storage::f32: break;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

ONNXTensorElementDataType type_of(const CustomOp& op, const Port& port) {
  return port.stored ? element_type(op.storage) : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

OrtCustomOpInputOutputCharacteristic presence_of(const Port& port) {
  return port.optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}

const OrtApi* the_api = nullptr;  // set once, before any callback that has no other way to it

// Before 1.24 the runtime's shape inference of custom ops reads the type of an input that was left out, and crashes.
// Asking for that interface would tell it too, but the runtime complains on stderr where it is not there.
bool infers_gaps(const char* version) {
  char* rest = nullptr;
  const long major = strtol(version, &rest, 10), minor = *rest == '.' ? strtol(rest + 1, nullptr, 10) : 0;
  return major > 1 || (major == 1 && minor >= 24);
}

void describe(CustomOp& op, const OpSpec& spec, Storage storage, bool infers) {
  op.spec = &spec;
  op.storage = storage;
  op.version = MSCOPE_ORT_API_VERSION;
  op.GetName = [](const OrtCustomOp* o) { return self(o).spec->name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return kLibrary.provider; };
  op.GetInputTypeCount = [](const OrtCustomOp* o) { return self(o).spec->input_count; };
  op.GetInputType = [](const OrtCustomOp* o, size_t i) { return type_of(self(o), self(o).spec->inputs[i]); };
  op.GetOutputTypeCount = [](const OrtCustomOp* o) { return self(o).spec->output_count; };
  op.GetOutputType = [](const OrtCustomOp* o, size_t i) { return type_of(self(o), self(o).spec->outputs[i]); };
  op.GetInputCharacteristic = [](const OrtCustomOp* o, size_t i) { return presence_of(self(o).spec->inputs[i]); };
  op.GetOutputCharacteristic = [](const OrtCustomOp* o, size_t i) { return presence_of(self(o).spec->outputs[i]); };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetStartVersion = [](const OrtCustomOp*) { return kOpVersion; };
  op.GetEndVersion = [](const OrtCustomOp*) { return kOpVersion; };
  op.CreateKernelV2 = [](const OrtCustomOp* o, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    *kernel = nullptr;
    return guarded(*api, [&] { *kernel = self(o).spec->create(*api, info, *self(o).spec, self(o).storage); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    Kernel& k = *static_cast<Kernel*>(kernel);
    counters().calls.fetch_add(1, std::memory_order_relaxed);
    return guarded(k.api, [&] { k.compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  if (!infers) return;
  op.InferOutputShapeFn = [](const OrtCustomOp* o, OrtShapeInferContext* context) -> OrtStatusPtr {
    return guarded(*the_api, [&] { self(o).spec->infer(*the_api, context); });
  };
}

// Domain and ops are made at the first registration and never freed: sessions keep pointers to them, and one may outlive
// every place where they could be released.
OrtCustomOpDomain* domain_of(const OrtApi& api, const char* version) {
  static std::mutex lock;
  static OrtCustomOpDomain* domain = nullptr;
  const std::lock_guard<std::mutex> hold(lock);
  if (domain != nullptr) return domain;
  the_api = &api;
  OrtCustomOpDomain* made = nullptr;
  check(api, api.CreateCustomOpDomain(kDomain, &made));
  for (size_t i = 0; i < kLibrary.op_count; ++i) {
    for (Storage storage : {Storage::f32, Storage::f16, Storage::bf16}) {
      CustomOp* const op = new CustomOp();
      describe(*op, *kLibrary.ops[i], storage, infers_gaps(version) || !kLibrary.ops[i]->gaps);
      check(api, api.CustomOpDomain_Add(made, op));
    }
  }
  return domain = made;
}

}  // namespace
}  // namespace ort
}  // namespace mscope

// Called by ONNX Runtime when a session registers this library.
MSCOPE_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace mscope::ort;
  const OrtApi* const api = base->GetApi(MSCOPE_ORT_API_VERSION);
  if (api == nullptr) {
    // Version 1 of the interface is in every runtime, and has what it takes to say so.
    const OrtApi* const oldest = base->GetApi(1);
    if (oldest == nullptr) return nullptr;  // cannot be, and there is nothing to report it with
    std::string message = "mambascope: this ONNX Runtime (";
    message += base->GetVersionString();
    message += ") does not have version " + std::to_string(MSCOPE_ORT_API_VERSION) +
               " of the C interface: install onnxruntime 1.17 or newer, or run without the native library";
    return oldest->CreateStatus(ORT_FAIL, message.c_str());
  }
  return guarded(*api, [&] { check(*api, api->AddCustomOpDomain(options, domain_of(*api, base->GetVersionString()))); });
}

// Kernels created so far in this process, and runs of them. A session that creates none does not use this library.
MSCOPE_EXPORT uint64_t mscope_ort_kernels() noexcept { return mscope::ort::counters().kernels.load(); }
MSCOPE_EXPORT uint64_t mscope_ort_calls() noexcept { return mscope::ort::counters().calls.load(); }

// Which header the library was compiled with: "minimal" (this project's) or "official".
MSCOPE_EXPORT const char* mscope_ort_header() noexcept { return MSCOPE_ORT_HEADER; }

#include "ort/kernel.h"

namespace mscope {
namespace ort {
namespace {

std::string node_name(const OrtApi& api, const OrtKernelInfo* info, const char* op) {
  size_t size = 0;
  std::string name;
  // The first call asks for the size; it reports a failure for the null buffer in some versions.
  succeeded(api, api.KernelInfo_GetNodeName(info, nullptr, &size));
  if (size > 1) {
    name.resize(size);
    if (!succeeded(api, api.KernelInfo_GetNodeName(info, &name[0], &size))) name.clear();
    else name.resize(size - 1);
  }
  return name.empty() ? std::string(op) : std::string(op) + " '" + name + "'";
}

Shape shape_of(const OrtApi& api, const OrtTensorTypeAndShapeInfo* info) {
  Shape shape;
  size_t rank = 0;
  check(api, api.GetDimensionsCount(info, &rank));
  int64_t extents[8] = {};
  check(api, api.GetDimensions(info, extents, rank < 8 ? rank : 8));
  shape.known = true;
  shape.rank = static_cast<int>(rank);
  for (int i = 0; i < shape.rank && i < Shape::kMaxRank; ++i) shape.extent[i] = extents[i] < 0 ? kUnknown : extents[i];
  return shape;
}

}  // namespace

Counters& counters() {
  static Counters all;
  return all;
}

Tensor tensor_of(const OrtApi& api, const OrtValue* value) {
  Tensor tensor;
  if (value == nullptr) return tensor;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, api.GetTensorTypeAndShape(value, &info));
  try {
    tensor.shape = shape_of(api, info);
  } catch (...) {
    api.ReleaseTensorTypeAndShapeInfo(info);
    throw;
  }
  api.ReleaseTensorTypeAndShapeInfo(info);
  void* data = nullptr;
  // The C interface has only the mutable accessor at this version; inputs are not written to.
  check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  static const char empty = 0;  // a tensor without elements is present all the same
  tensor.data = data != nullptr ? data : &empty;
  return tensor;
}

Kernel::Kernel(const OrtApi& runtime, const OrtKernelInfo* info, const OpSpec& op, Storage stored)
    : api(runtime), spec(op), storage(stored), node(node_name(runtime, info, op.name)) {
  counters().kernels.fetch_add(1, std::memory_order_relaxed);
}

Shape Kernel::declared(const OrtKernelInfo* info, size_t index) const {
  size_t count = 0;
  check(api, api.KernelInfo_GetInputCount(info, &count));
  OrtTypeInfo* type = nullptr;
  // An optional input that is absent has no type; the runtime reports that as a failure.
  if (index >= count || !succeeded(api, api.KernelInfo_GetInputTypeInfo(info, index, &type))) return Shape{};
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  Shape shape;
  try {
    check(api, api.CastTypeInfoToTensorInfo(type, &tensor));
    if (tensor != nullptr) shape = shape_of(api, tensor);
  } catch (...) {
    api.ReleaseTypeInfo(type);
    throw;
  }
  api.ReleaseTypeInfo(type);
  // A tensor of unknown rank is reported as one of rank 0, which the contract has nowhere.
  if (shape.rank == 0) shape.known = false;
  return shape;
}

bool Kernel::present(const OrtKernelInfo* info, size_t index) const {
  size_t count = 0;
  check(api, api.KernelInfo_GetInputCount(info, &count));
  OrtTypeInfo* type = nullptr;
  if (index >= count || !succeeded(api, api.KernelInfo_GetInputTypeInfo(info, index, &type))) return false;
  api.ReleaseTypeInfo(type);
  return true;
}

Tensor Kernel::constant(const OrtKernelInfo* info, size_t index) const {
  if (!present(info, index)) return Tensor{};
  int is_constant = 0;
  const OrtValue* value = nullptr;
  if (!succeeded(api, api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value))) return Tensor{};
  return is_constant != 0 ? tensor_of(api, value) : Tensor{};
}

bool Kernel::flag(const OrtKernelInfo* info, const char* name, bool otherwise) const {
  int64_t value = 0;
  if (!succeeded(api, api.KernelInfoGetAttribute_int64(info, name, &value))) return otherwise;
  if (value != 0 && value != 1)
    throw InvalidArgument(node + ": attribute " + name + " is " + std::to_string(value) + ", expected 0 or 1");
  return value == 1;
}

Tensor Kernel::input(OrtKernelContext* context, size_t index) const {
  size_t count = 0;
  check(api, api.KernelContext_GetInputCount(context, &count));
  if (index >= count) return Tensor{};
  const OrtValue* value = nullptr;
  check(api, api.KernelContext_GetInput(context, index, &value));
  return tensor_of(api, value);
}

void* Kernel::output(OrtKernelContext* context, size_t index, const int64_t* extents, size_t rank,
                     OrtValue** value) const {
  OrtValue* made = nullptr;
  check(api, api.KernelContext_GetOutput(context, index, extents, rank, &made));
  if (value != nullptr) *value = made;
  if (made == nullptr) return nullptr;
  void* data = nullptr;
  check(api, api.GetTensorMutableData(made, &data));
  return data;
}

}  // namespace ort
}  // namespace mscope

// Shape inference while a graph is loaded: what is declared of an input, and the outputs' shapes made from it. An output
// of a known shape lets ONNX Runtime plan its memory ahead.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "ort/status.h"

namespace mscope {
namespace ort {

class DeclaredShape {
 public:
  DeclaredShape(const OrtApi& api, OrtShapeInferContext* context, size_t input) : api_(api) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    if (!succeeded(api, api.ShapeInferContext_GetInputTypeShape(context, input, &info)) || info == nullptr) return;
    // The runtime keeps `info`, and what it points to, for as long as the context lives.
    size_t rank = 0;
    if (!succeeded(api, api.GetDimensionsCount(info, &rank)) || rank > kMaxRank) return;
    if (!succeeded(api, api.GetDimensions(info, extents_, rank))) return;
    if (!succeeded(api, api.GetSymbolicDimensions(info, symbols_, rank))) return;
    if (!succeeded(api, api.GetTensorElementType(info, &type_))) return;
    rank_ = rank;
  }

  size_t rank() const { return rank_; }
  int64_t extent(size_t axis) const { return extents_[axis]; }
  const char* symbol(size_t axis) const { return symbols_[axis]; }

  // Declares output `index` as this shape, of rank 3, with another last axis.
  void set_output(OrtShapeInferContext* context, size_t index, int64_t last, const char* symbol) const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api_, api_.CreateTensorTypeAndShapeInfo(&info));
    const int64_t extents[kMaxRank] = {extents_[0], extents_[1], last};
    const char* symbols[kMaxRank] = {text(symbols_[0]), text(symbols_[1]), text(symbol)};
    OrtStatus* status = api_.SetTensorElementType(info, type_);
    if (status == nullptr) status = api_.SetDimensions(info, extents, kMaxRank);
    if (status == nullptr) status = api_.SetSymbolicDimensions(info, symbols, kMaxRank);
    if (status == nullptr) status = api_.ShapeInferContext_SetOutputTypeShape(context, index, info);
    api_.ReleaseTensorTypeAndShapeInfo(info);
    check(api_, status);
  }

 private:
  static constexpr size_t kMaxRank = 3;
  static const char* text(const char* symbol) { return symbol != nullptr ? symbol : ""; }

  const OrtApi& api_;
  size_t rank_ = 0;  // 0: not known
  int64_t extents_[kMaxRank] = {};
  const char* symbols_[kMaxRank] = {};
  ONNXTensorElementDataType type_ = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
};

}  // namespace ort
}  // namespace mscope

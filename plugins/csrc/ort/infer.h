// Shape inference while a graph is loaded: what is declared of an input, and the outputs' shapes made from it. An output
// of a known shape lets ONNX Runtime plan its memory ahead.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>

#include "ort/shapes.h"
#include "ort/status.h"

namespace mscope {
namespace ort {

// An extent, or -1 and the symbol that stands for it, "" for none.
struct DeclaredAxis {
  int64_t extent;
  std::string symbol;
};

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
  DeclaredAxis axis(size_t axis) const { return {extents_[axis], symbols_[axis] != nullptr ? symbols_[axis] : ""}; }

  // The first two axes as one, B * L. Tensors of one symbol are of one size to ONNX Runtime, which plans memory by it.
  DeclaredAxis rows() const {
    const DeclaredAxis batch = axis(0), tokens = axis(1);
    if (batch.extent >= 0 && tokens.extent >= 0) return {times(batch.extent, tokens.extent), ""};
    // As the exporter writes it: 50*batch.
    const std::string first = tokens.extent >= 0 ? std::to_string(tokens.extent) : tokens.symbol;
    const std::string second = batch.extent >= 0 ? std::to_string(batch.extent) : batch.symbol;
    return {-1, first.empty() || second.empty() ? std::string() : first + "*" + second};
  }

  // Declares output `index`, of this tensor's type.
  void set_output(OrtShapeInferContext* context, size_t index, const DeclaredAxis (&axes)[3]) const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api_, api_.CreateTensorTypeAndShapeInfo(&info));
    int64_t extents[kMaxRank];
    const char* symbols[kMaxRank];
    for (size_t i = 0; i < kMaxRank; ++i) {
      extents[i] = axes[i].extent;
      symbols[i] = axes[i].symbol.c_str();
    }
    OrtStatus* status = api_.SetTensorElementType(info, type_);
    if (status == nullptr) status = api_.SetDimensions(info, extents, kMaxRank);
    if (status == nullptr) status = api_.SetSymbolicDimensions(info, symbols, kMaxRank);
    if (status == nullptr) status = api_.ShapeInferContext_SetOutputTypeShape(context, index, info);
    api_.ReleaseTensorTypeAndShapeInfo(info);
    check(api_, status);
  }

 private:
  static constexpr size_t kMaxRank = 3;

  const OrtApi& api_;
  size_t rank_ = 0;  // 0: not known
  int64_t extents_[kMaxRank] = {};
  const char* symbols_[kMaxRank] = {};
  ONNXTensorElementDataType type_ = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
};

}  // namespace ort
}  // namespace mscope

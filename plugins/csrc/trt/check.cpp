#include "trt/check.h"

namespace mscope::trt {

using nvinfer1::DataType;

Shape shape_of(const nvinfer1::Dims& dims) {
  Shape shape;
  shape.rank = dims.nbDims;
  for (int i = 0; i < dims.nbDims && i < nvinfer1::Dims::MAX_DIMS; ++i) shape.size[i] = dims.d[i];
  return shape;
}

Shape shape_of(const nvinfer1::DimsExprs& dims) {
  Shape shape;
  shape.rank = dims.nbDims;
  for (int i = 0; i < dims.nbDims && i < nvinfer1::Dims::MAX_DIMS; ++i)
    shape.size[i] = dims.d[i] && dims.d[i]->isConstant() ? dims.d[i]->getConstantValue() : kUnknown;
  return shape;
}

std::string text_of(const Shape& shape) {
  std::string text = "(";
  for (int i = 0; i < shape.rank && i < nvinfer1::Dims::MAX_DIMS; ++i) {
    if (i > 0) text += ", ";
    text += shape.size[i] < 0 ? "?" : std::to_string(shape.size[i]);
  }
  return text + ")";
}

void check_wired(const Op& op, Wired wired) {
  for (int i = 0; i < op.input_count; ++i)
    if (!op.inputs[i].optional && !is_wired(wired, i))
      throw Refusal(std::string("input ") + op.inputs[i].name + " is missing");
  if (wired >> op.input_count != 0)
    throw Refusal("there are more inputs than the " + std::to_string(op.input_count) + " that the op has");
  if (op.kind == OpKind::conv && is_wired(wired, kConvWeightB) != is_wired(wired, kConvBiasB))
    throw Refusal("weight_b and bias_b come together: one is given and the other is not");
}

int64_t extent_of(const Axis& axis, const Sizes& sizes) {
  int64_t extent = axis.product ? 1 : axis.number;
  for (int s = 0; s < kSymbols; ++s) {
    if (axis.times[s] == 0) continue;
    if (sizes.of[s] == kUnknown) return kUnknown;
    const int64_t term = axis.times[s] * sizes.of[s];
    extent = axis.product ? extent * term : extent + term;
  }
  return extent;
}

namespace {

// ", N = 16, R = 12", with the input that each size was read from.
std::string known_sizes(const Axis& axis, const Sizes& sizes, const Op& op, const Shape* shapes, const int* sources) {
  std::string text;
  for (int s = 0; s < kSymbols; ++s) {
    if (axis.times[s] == 0 || sources[s] < 0) continue;
    text += std::string(", ") + kLetters[s] + " = " + std::to_string(sizes.of[s]) + " from " + op.inputs[sources[s]].name +
            " " + text_of(shapes[sources[s]]);
  }
  return text;
}

void check_rank(const Tensor& tensor, const Shape& shape) {
  if (shape.rank != tensor.rank)
    throw Refusal(std::string(tensor.name) + " has " + std::to_string(shape.rank) + " axes, " + text_of(shape) +
                  ": expected " + std::to_string(tensor.rank) + ", " + tensor.shape);
}

}  // namespace

Sizes resolve(const Op& op, const Shape* shapes, Wired wired) {
  Sizes sizes;
  int sources[kSymbols];
  for (int s = 0; s < kSymbols; ++s) sizes.of[s] = kUnknown, sources[s] = -1;
  for (int i = 0; i < op.input_count; ++i) {
    if (!is_wired(wired, i)) continue;
    check_rank(op.inputs[i], shapes[i]);
    for (int axis = 0; axis < op.inputs[i].rank; ++axis) {
      const int symbol = op.inputs[i].axes[axis].symbol();
      if (symbol < 0 || sources[symbol] >= 0 || shapes[i].size[axis] < 0) continue;
      sizes.of[symbol] = shapes[i].size[axis];
      sources[symbol] = i;
    }
  }
  if (op.kind == OpKind::conv) sizes.of[kDirections] = is_wired(wired, kConvWeightB) ? 2 : 1;
  for (int s = 0; s < kSymbols; ++s)
    if (sources[s] >= 0 && (sizes.of[s] < kRanges[s].least || sizes.of[s] > kRanges[s].most))
      throw Refusal(std::string(op.inputs[sources[s]].name) + " has shape " + text_of(shapes[sources[s]]) + ": " +
                    kLetters[s] + " of its axes " + op.inputs[sources[s]].shape + " must be from " +
                    std::to_string(kRanges[s].least) + " to " + std::to_string(kRanges[s].most));
  for (int i = 0; i < op.input_count; ++i) {
    if (!is_wired(wired, i)) continue;
    const Tensor& tensor = op.inputs[i];
    for (int axis = 0; axis < tensor.rank; ++axis) {
      const int64_t expected = extent_of(tensor.axes[axis], sizes), got = shapes[i].size[axis];
      if (expected == kUnknown || got < 0) continue;
      if (tensor.axes[axis].or_more ? got < expected : got != expected)
        throw Refusal(std::string(tensor.name) + " has shape " + text_of(shapes[i]) + ": its axis " +
                      std::to_string(axis) + " of " + tensor.shape + " must be " + std::to_string(expected) +
                      (tensor.axes[axis].or_more ? " or more" : "") +
                      known_sizes(tensor.axes[axis], sizes, op, shapes, sources));
    }
  }
  return sizes;
}

void check_outputs(const Op& op, const Sizes& sizes, const Shape* outputs, int count) {
  for (int i = 0; i < count; ++i) {
    const Tensor& tensor = op.outputs[i];
    check_rank(tensor, outputs[i]);
    for (int axis = 0; axis < tensor.rank; ++axis) {
      const int64_t got = outputs[i].size[axis], expected = extent_of(tensor.axes[axis], sizes);
      if (expected != kUnknown && got >= 0 && got != expected)
        throw Refusal(std::string("output ") + tensor.name + " has shape " + text_of(outputs[i]) + ": its axis " +
                      std::to_string(axis) + " of " + tensor.shape + " must be " + std::to_string(expected));
    }
  }
}

bool is_storage(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

bool fits(const Tensor& tensor, DataType type, DataType storage) {
  return tensor.kind == Kind::float32 ? type == DataType::kFLOAT : is_storage(type) && type == storage;
}

const char* name_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return "float32";
    case DataType::kHALF:
      return "float16";
    case DataType::kBF16:
      return "bfloat16";
    case DataType::kINT8:
      return "int8";
    case DataType::kINT32:
      return "int32";
    case DataType::kINT64:
      return "int64";
    case DataType::kBOOL:
      return "bool";
    default:
      return "of another type";
  }
}

void check_types(const Op& op, const DataType* types, Wired wired) {
  const DataType storage = types[0];
  if (!is_storage(storage))
    throw Refusal(std::string(op.inputs[0].name) + " is " + name_of(storage) +
                  ": expected float32, float16 or bfloat16");
  for (int i = 0; i < op.input_count; ++i) {
    const Tensor& tensor = op.inputs[i];
    if (!is_wired(wired, i) || fits(tensor, types[i], storage)) continue;
    if (tensor.kind == Kind::float32)
      throw Refusal(std::string(tensor.name) + " is " + name_of(types[i]) + ": expected float32, whatever " +
                    op.inputs[0].name + " is");
    throw Refusal(std::string(tensor.name) + " is " + name_of(types[i]) + ": expected " + name_of(storage) + ", as " +
                  op.inputs[0].name + " is");
  }
}

}  // namespace mscope::trt

// Shapes and types of an op's tensors against its row of the table. What does not fit is refused with both sides named.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "abi/tensorrt.h"
#include "trt/ops.h"

namespace mscope::trt {

// Something that the op cannot do with what it was given; the text is for the user.
class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

constexpr int64_t kUnknown = -1;

// One tensor's shape; sizes that are settled at run time are kUnknown.
struct Shape {
  int32_t rank = 0;
  int64_t size[nvinfer1::Dims::MAX_DIMS] = {};
};
Shape shape_of(const nvinfer1::Dims& dims);
Shape shape_of(const nvinfer1::DimsExprs& dims);
std::string text_of(const Shape& shape);

// Which of an op's inputs are wired, one bit each.
using Wired = uint32_t;
constexpr bool is_wired(Wired wired, int input) { return (wired >> input & 1) != 0; }

// Throws where an input that must be there is not, there are too many, or a pair is incomplete.
void check_wired(const Op& op, Wired wired);

// The op's sizes, kUnknown where no shape settles one. `shapes` has op.input_count entries; the wired ones are read.
struct Sizes {
  int64_t of[kSymbols];
  int64_t operator[](Symbol symbol) const { return of[symbol]; }
};
Sizes resolve(const Op& op, const Shape* shapes, Wired wired);

// The same with outputs, whose shapes must be what the inputs make them.
void check_outputs(const Op& op, const Sizes& sizes, const Shape* outputs, int count);

// What an output's axis is, kUnknown where the sizes do not settle it.
int64_t extent_of(const Axis& axis, const Sizes& sizes);

// Whether a tensor of this kind may have this type, given the op's storage type (the type of its first input).
bool fits(const Tensor& tensor, nvinfer1::DataType type, nvinfer1::DataType storage);
bool is_storage(nvinfer1::DataType type);
const char* name_of(nvinfer1::DataType type);

// Throws where a wired input has a type that it may not have.
void check_types(const Op& op, const nvinfer1::DataType* types, Wired wired);

}  // namespace mscope::trt

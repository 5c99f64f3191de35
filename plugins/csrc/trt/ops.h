// What the plugins are called and what they take: the ops of docs/ops.md as one table, from which the creators, the
// checks, the messages and mscope_trt_describe() are made. tests/plugins/test_trt_table.py holds it to
// mscope.core.contract.
#pragma once

#include <cstddef>
#include <cstdint>

#include "abi/ops.h"

namespace mscope::trt {

// The version that TensorRT's ONNX parser looks for where a node does not name one. It stays as it is when the contract
// changes (OP_VERSION in mscope.core.contract): then nodes need no attribute for it, and an engine of another contract
// comes here to be refused in our words (creator.cpp) instead of "plugin not found".
constexpr const char* kPluginVersion = "1";

// TensorRT's ONNX parser looks a node's op type up in the namespace that the node's attribute plugin_namespace names,
// else in the empty one, and from 10.10 on also in the one that is called like the node's domain. Every creator is in
// both, so that a node of domain `mambascope` is found by all of them.
constexpr const char* kNamespaces[] = {"mambascope", ""};

// Sizes, by the letters of docs/ops.md. No input has K, the directions: it counts those that are wired.
enum Symbol : int { kBatch, kLength, kChannels, kStates, kRank, kWidth, kDirections, kSymbols };
constexpr char kLetters[kSymbols + 1] = "BLCNRWK";
struct Range {
  int64_t least, most;
};
constexpr int64_t kLargest = int64_t{1} << 30;
constexpr Range kRanges[kSymbols] = {{0, kLargest}, {1, kLargest}, {1, kLargest}, {1, kLargest}, {1, kLargest}, {2, 4}, {1, 2}};

constexpr int kMaxAxes = 3;

// A sum of sizes, as "C" or "R+2N", or their product, as "BL", or a number; "C+" is that or more.
struct Axis {
  int8_t times[kSymbols] = {};
  int8_t number = 0;
  bool product = false;
  bool or_more = false;

  // The symbol, where the axis is just that one; else -1.
  constexpr int symbol() const {
    int found = -1;
    if (number != 0 || product) return -1;
    for (int s = 0; s < kSymbols; ++s) {
      if (times[s] == 0) continue;
      if (found >= 0 || times[s] != 1 || or_more) return -1;
      found = s;
    }
    return found;
  }
};

enum class Kind { storage, float32 };  // float32, float16 or bfloat16, the same for the whole op; or always float32

struct Tensor {
  const char* name;
  const char* shape;  // its axes as text, which the constructor reads
  Kind kind;
  bool optional;
  int rank = 0;
  Axis axes[kMaxAxes] = {};

  constexpr Tensor(const char* name_, const char* shape_, Kind kind_ = Kind::storage, bool optional_ = false)
      : name(name_), shape(shape_), kind(kind_), optional(optional_) {
    int times = 0;
    for (const char* c = shape; *c; ++c) {
      if (*c == ' ') {
        axes[rank++].number = static_cast<int8_t>(times);
        times = 0;
      } else if (*c >= '0' && *c <= '9') {
        times = 10 * times + (*c - '0');
      } else if (*c == '+') {
        axes[rank].or_more = c[1] == '\0' || c[1] == ' ';
      } else {
        int symbol = 0;
        while (kLetters[symbol] != *c) ++symbol;  // another letter does not compile
        axes[rank].times[symbol] = static_cast<int8_t>(times > 0 ? times : 1);
        if (c != shape && c[-1] >= 'A' && c[-1] <= 'Z') axes[rank].product = true;
        times = 0;
      }
    }
    axes[rank++].number = static_cast<int8_t>(times);
  }
};

struct Attribute {
  const char* name;
  int32_t standard, least, most;
};

// What a plugin writes into an engine beside its attributes: which inputs are wired, one bit each. TensorRT does not
// tell enqueue how many there are.
constexpr const char* kInputsField = "inputs";

enum class OpKind { conv, scan, bidirectional };

struct Op {
  OpKind kind;
  const char* name;
  const Tensor* inputs;
  int input_count;
  const Tensor* outputs;
  int output_count;
  const Attribute* attributes;
  int attribute_count;
};
constexpr int kMaxInputs = 11, kMaxOutputs = 1, kMaxAttributes = 2;

constexpr Tensor kConvTensors[] = {
    {"xz", "B L C+"},
    {"weight", "C W"},
    {"bias", "C"},
    {"weight_b", "C W", Kind::storage, true},
    {"bias_b", "C", Kind::storage, true},
};
constexpr Tensor kConvOutputs[] = {{"x", "K BL C"}};

constexpr Tensor kScanTensors[] = {
    {"x", "B L C"},
    {"delta", "B L C"},
    {"A", "C N", Kind::float32},
    {"B", "B L N"},
    {"C", "B L N"},
    {"D", "C", Kind::float32},
    {"z", "B L C", Kind::storage, true},
    {"delta_bias", "C", Kind::float32, true},
};
constexpr Tensor kScanOutputs[] = {{"y", "B L C"}};
constexpr Attribute kScanAttributes[] = {{"reverse", 0, 0, 1}, {"delta_softplus", 1, 0, 1}};
enum ScanAttribute { kScanReverse, kScanSoftplus };

constexpr Tensor kBidirectionalTensors[] = {
    {"xz", "B L 2C"},
    {"x", "2 BL C"},
    {"dbc", "2 BL R+2N"},
    {"dt_weight", "C R"},
    {"dt_bias", "C", Kind::float32},
    {"A", "C N", Kind::float32},
    {"D", "C", Kind::float32},
    {"dt_weight_b", "C R"},
    {"dt_bias_b", "C", Kind::float32},
    {"A_b", "C N", Kind::float32},
    {"D_b", "C", Kind::float32},
};

template <size_t INPUTS, size_t OUTPUTS>
constexpr Op op(OpKind kind, const char* name, const Tensor (&inputs)[INPUTS], const Tensor (&outputs)[OUTPUTS],
                const Attribute* attributes = nullptr, int attribute_count = 0) {
  static_assert(INPUTS <= kMaxInputs && OUTPUTS <= kMaxOutputs);
  return {kind, name, inputs, static_cast<int>(INPUTS), outputs, static_cast<int>(OUTPUTS), attributes,
          attribute_count};
}

static_assert(sizeof kConvTensors / sizeof(Tensor) == kConvInputs && sizeof kScanTensors / sizeof(Tensor) == kScanInputs &&
              sizeof kBidirectionalTensors / sizeof(Tensor) == kBidirectionalInputs);

constexpr Op kOps[] = {
    op(OpKind::conv, "CausalConv1dSiLU", kConvTensors, kConvOutputs),
    op(OpKind::scan, "SelectiveScan", kScanTensors, kScanOutputs, kScanAttributes, 2),
    op(OpKind::bidirectional, "BidirectionalSelectiveScan", kBidirectionalTensors, kScanOutputs),
};

}  // namespace mscope::trt

// What the plugins are called and what they take: the ops of docs/ops.md as one table, from which the creators, the
// checks, the messages and mscope_trt_describe() are made. tests/plugins/test_trt_table.py holds it to
// mscope.core.contract.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mscope::trt {

constexpr const char* kPluginVersion = "1";

// TensorRT's ONNX parser looks a node's op type up in the namespace that the node's attribute plugin_namespace names,
// else in the empty one, and from 10.10 on also in the one that is called like the node's domain. Every creator is in
// both, so that a node of domain `mambascope` is found by all of them.
constexpr const char* kNamespaces[] = {"mambascope", ""};

// Sizes, by the letters of docs/ops.md.
enum Symbol : int { kBatch, kLength, kChannels, kStates, kRank, kWidth, kSymbols };
constexpr char kLetters[kSymbols + 1] = "BLCNRW";
struct Range {
  int64_t least, most;
};
constexpr int64_t kLargest = int64_t{1} << 30;
constexpr Range kRanges[kSymbols] = {{0, kLargest}, {1, kLargest}, {1, kLargest}, {1, kLargest}, {1, kLargest}, {2, 4}};

constexpr int kMaxAxes = 3;

// A sum of sizes, as "C" or "R+2N"; "C+" is that or more.
struct Axis {
  int8_t times[kSymbols] = {};
  bool or_more = false;

  // The symbol, where the axis is just that one; else -1.
  constexpr int symbol() const {
    int found = -1;
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
        ++rank;
      } else if (*c >= '0' && *c <= '9') {
        times = 10 * times + (*c - '0');
      } else if (*c == '+') {
        axes[rank].or_more = c[1] == '\0' || c[1] == ' ';
      } else {
        int symbol = 0;
        while (kLetters[symbol] != *c) ++symbol;  // another letter does not compile
        axes[rank].times[symbol] = static_cast<int8_t>(times > 0 ? times : 1);
        times = 0;
      }
    }
    ++rank;
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
constexpr int kMaxInputs = 13, kMaxOutputs = 2, kMaxAttributes = 2;

constexpr Tensor kConvInputs[] = {
    {"xz", "B L C+"},
    {"weight", "C W"},
    {"bias", "C"},
    {"weight_b", "C W", Kind::storage, true},
    {"bias_b", "C", Kind::storage, true},
};
constexpr Tensor kConvOutputs[] = {{"x_forward", "B L C"}, {"x_backward", "B L C", Kind::storage, true}};
enum ConvInput { kConvXz, kConvWeight, kConvBias, kConvWeightB, kConvBiasB };
// TensorRT asks for the number of outputs before it tells the inputs, and compares it with the node's. So a node
// without the backward direction must say outputs = 1; this attribute is the plugin's own and not in docs/ops.md.
constexpr Attribute kConvAttributes[] = {{"outputs", 2, 1, 2}};
enum ConvAttribute { kConvOutputCount };

constexpr Tensor kScanInputs[] = {
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
enum ScanInput { kScanX, kScanDelta, kScanA, kScanB, kScanC, kScanD, kScanZ, kScanDeltaBias };
constexpr Attribute kScanAttributes[] = {{"reverse", 0, 0, 1}, {"delta_softplus", 1, 0, 1}};
enum ScanAttribute { kScanReverse, kScanSoftplus };

constexpr Tensor kBidirectionalInputs[] = {
    {"xz", "B L 2C"},
    {"x_forward", "B L C"},
    {"x_backward", "B L C"},
    {"dbc_forward", "B L R+2N"},
    {"dbc_backward", "B L R+2N"},
    {"dt_weight", "C R"},
    {"dt_bias", "C", Kind::float32},
    {"A", "C N", Kind::float32},
    {"D", "C", Kind::float32},
    {"dt_weight_b", "C R"},
    {"dt_bias_b", "C", Kind::float32},
    {"A_b", "C N", Kind::float32},
    {"D_b", "C", Kind::float32},
};
// The second direction's x, dbc and parameters follow the first one's.
enum BidirectionalInput { kBidirectionalXz, kBidirectionalX, kBidirectionalDbc = 3, kBidirectionalParameters = 5 };
enum BidirectionalParameter { kDtWeight, kDtBias, kDecay, kSkip, kParametersADirection };

template <size_t INPUTS, size_t OUTPUTS>
constexpr Op op(OpKind kind, const char* name, const Tensor (&inputs)[INPUTS], const Tensor (&outputs)[OUTPUTS],
                const Attribute* attributes = nullptr, int attribute_count = 0) {
  static_assert(INPUTS <= kMaxInputs && OUTPUTS <= kMaxOutputs);
  return {kind, name, inputs, static_cast<int>(INPUTS), outputs, static_cast<int>(OUTPUTS), attributes,
          attribute_count};
}

constexpr Op kOps[] = {
    op(OpKind::conv, "CausalConv1dSiLU", kConvInputs, kConvOutputs, kConvAttributes, 1),
    op(OpKind::scan, "SelectiveScan", kScanInputs, kScanOutputs, kScanAttributes, 2),
    op(OpKind::bidirectional, "BidirectionalSelectiveScan", kBidirectionalInputs, kScanOutputs),
};

}  // namespace mscope::trt

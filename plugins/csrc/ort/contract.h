// The ops that more than one provider has, as far as no provider is in it: inputs and outputs, the check of their shapes,
// and the inference of the outputs'. docs/ops.md is the contract.
#pragma once

#include <string>

#include "abi/ops.h"
#include "ort/kernel.h"

namespace mscope {
namespace ort {

constexpr int64_t kMinTaps = 2, kMaxTaps = 4;

OpSpec conv_spec(Create create);
OpSpec scan_spec(Create create);
OpSpec bidirectional_spec(Create create);

// Throws InvalidArgument where the shapes of a node's inputs do not fit together, as far as they are known.
void check_conv(const std::string& node, const Shape (&inputs)[kConvInputs]);
void check_scan(const std::string& node, const Shape (&inputs)[kScanInputs]);
void check_bidirectional(const std::string& node, const Shape (&inputs)[kBidirectionalInputs]);

// 2 with weight_b and bias_b, 1 without; throws where one of them comes alone.
int conv_directions(const std::string& node, bool weight_b, bool bias_b);

}  // namespace ort
}  // namespace mscope

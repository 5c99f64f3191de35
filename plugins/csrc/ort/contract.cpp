#include "ort/contract.h"

#include "ort/infer.h"

namespace mscope {
namespace ort {
namespace {

constexpr Port kConvPorts[kConvInputs] = {{"xz", true, false},
                                          {"weight", true, false},
                                          {"bias", true, false},
                                          {"weight_b", true, true},
                                          {"bias_b", true, true}};
constexpr Port kScanPorts[kScanInputs] = {{"x", true, false}, {"delta", true, false}, {"A", false, false},
                                          {"B", true, false}, {"C", true, false},     {"D", false, false},
                                          {"z", true, true},  {"delta_bias", false, true}};
constexpr Port kBidirectionalPorts[kBidirectionalInputs] = {
    {"xz", true, false},          {"x", true, false},          {"dbc", true, false},
    {"dt_weight", true, false},   {"dt_bias", false, false},   {"A", false, false},   {"D", false, false},
    {"dt_weight_b", true, false}, {"dt_bias_b", false, false}, {"A_b", false, false}, {"D_b", false, false}};
constexpr Port kConvOutput[] = {{"x", true, false}}, kScanOutput[] = {{"y", true, false}};

void infer_conv(const OrtApi& api, OrtShapeInferContext* context) {
  const DeclaredShape xz(api, context, kConvXz), weight(api, context, kConvWeight);
  size_t inputs = 0;
  check(api, api.ShapeInferContext_GetInputCount(context, &inputs));
  if (xz.rank() != 3 || weight.rank() != 2) return;
  xz.set_output(context, 0, {{inputs > kConvWeightB ? 2 : 1, ""}, xz.rows(), weight.axis(0)});
}

void infer_scan(const OrtApi& api, OrtShapeInferContext* context) {
  const DeclaredShape x(api, context, kScanX);
  if (x.rank() == 3) x.set_output(context, 0, {x.axis(0), x.axis(1), x.axis(2)});
}

void infer_bidirectional(const OrtApi& api, OrtShapeInferContext* context) {
  const DeclaredShape xz(api, context, kBidirectionalXz), x(api, context, kBidirectionalX);
  if (xz.rank() == 3 && x.rank() == 3) xz.set_output(context, 0, {xz.axis(0), xz.axis(1), x.axis(2)});
}

}  // namespace

OpSpec conv_spec(Create create) {
  return {"CausalConv1dSiLU", kConvPorts, kConvInputs, kConvOutput, 1, create, infer_conv};
}

OpSpec scan_spec(Create create) {
  return {"SelectiveScan", kScanPorts, kScanInputs, kScanOutput, 1, create, infer_scan, true};
}

OpSpec bidirectional_spec(Create create) {
  return {"BidirectionalSelectiveScan", kBidirectionalPorts, kBidirectionalInputs, kScanOutput, 1, create,
          infer_bidirectional};
}

int conv_directions(const std::string& node, bool weight_b, bool bias_b) {
  if (weight_b != bias_b)
    throw InvalidArgument(node + ": got " + (weight_b ? "weight_b" : "bias_b") + " without " +
                          (weight_b ? "bias_b" : "weight_b") + ", expected both or neither");
  return weight_b ? 2 : 1;
}

void check_conv(const std::string& node, const Shape (&s)[kConvInputs]) {
  const Shape &weight = s[kConvWeight], &xz = s[kConvXz];
  const int64_t C = weight.at(0), W = weight.at(1), row = xz.at(2);
  std::string context;
  if (weight.known) context = ", with C and W from weight " + to_text(weight.extent, weight.rank);
  const ShapeCheck shapes(node, context);
  shapes.expect("weight", weight, {kUnknown, kUnknown}, "(C, W)");
  if (W != kUnknown && (W < kMinTaps || W > kMaxTaps))
    shapes.refuse("weight has " + std::to_string(W) + " taps, expected W from 2 to 4");
  shapes.expect("bias", s[kConvBias], {C}, "(C)");
  shapes.expect("xz", xz, {kUnknown, kUnknown, kUnknown}, "(B, L, C + Cz)");
  if (row != kUnknown && C != kUnknown && row < C)
    shapes.refuse("xz has shape " + to_text(xz.extent, 3) + ", expected at least C = " + std::to_string(C) +
                  " channels");
  if (xz.at(1) == 0) shapes.refuse("xz has no tokens, expected L of at least 1");
  shapes.expect("weight_b", s[kConvWeightB], {C, W}, "(C, W)");
  shapes.expect("bias_b", s[kConvBiasB], {C}, "(C)");
}

void check_scan(const std::string& node, const Shape (&s)[kScanInputs]) {
  const Shape &x = s[kScanX], &A = s[kScanA];
  const int64_t B = x.at(0), L = x.at(1), C = A.at(0), N = A.at(1);
  std::string context;
  if (A.known) context += ", with C and N from A " + to_text(A.extent, A.rank);
  if (x.known) context += ", B and L from x " + to_text(x.extent, x.rank);
  const ShapeCheck shapes(node, context);
  shapes.expect("A", A, {kUnknown, kUnknown}, "(C, N)");
  shapes.expect("x", x, {kUnknown, kUnknown, C}, "(B, L, C)");
  if (L == 0) shapes.refuse("x has no tokens, expected L of at least 1");
  if (C == 0 || N == 0) shapes.refuse("A has shape " + to_text(A.extent, 2) + ", expected C and N of at least 1");
  shapes.expect("delta", s[kScanDelta], {B, L, C}, "(B, L, C)");
  shapes.expect("B", s[kScanB], {B, L, N}, "(B, L, N)");
  shapes.expect("C", s[kScanC], {B, L, N}, "(B, L, N)");
  shapes.expect("D", s[kScanD], {C}, "(C)");
  shapes.expect("z", s[kScanZ], {B, L, C}, "(B, L, C)");
  shapes.expect("delta_bias", s[kScanDeltaBias], {C}, "(C)");
}

void check_bidirectional(const std::string& node, const Shape (&s)[kBidirectionalInputs]) {
  const Shape &xz = s[kBidirectionalXz], &A = s[kBidirectionalParameters + kDecay],
              &dt_weight = s[kBidirectionalParameters + kDtWeight];
  const int64_t B = xz.at(0), L = xz.at(1), C = A.at(0), N = A.at(1), R = dt_weight.at(1);
  std::string context;
  if (A.known) context += ", with C and N from A " + to_text(A.extent, A.rank);
  if (dt_weight.known) context += ", R from dt_weight " + to_text(dt_weight.extent, dt_weight.rank);
  if (xz.known) context += ", B and L from xz " + to_text(xz.extent, xz.rank);
  const ShapeCheck shapes(node, context);
  shapes.expect("A", A, {kUnknown, kUnknown}, "(C, N)");
  if (C == 0 || N == 0) shapes.refuse("A has shape " + to_text(A.extent, 2) + ", expected C and N of at least 1");
  shapes.expect("dt_weight", dt_weight, {C, kUnknown}, "(C, R)");
  if (R == 0) shapes.refuse("dt_weight has shape " + to_text(dt_weight.extent, 2) + ", expected R of at least 1");
  shapes.expect("xz", xz, {kUnknown, kUnknown, times(2, C)}, "(B, L, 2C)");
  if (L == 0) shapes.refuse("xz has no tokens, expected L of at least 1");
  const int64_t columns = plus(R, times(2, N)), rows = times(B, L);
  shapes.expect("x", s[kBidirectionalX], {2, rows, C}, "(2, B L, C)");
  shapes.expect("dbc", s[kBidirectionalDbc], {2, rows, columns}, "(2, B L, R + 2N)");
  for (int first = kBidirectionalParameters; first < kBidirectionalInputs; first += kParametersADirection) {
    const auto expect = [&](int parameter, std::initializer_list<int64_t> extents, const char* symbols) {
      shapes.expect(kBidirectionalPorts[first + parameter].name, s[first + parameter], extents, symbols);
    };
    expect(kDtWeight, {C, R}, "(C, R)");
    expect(kDtBias, {C}, "(C)");
    expect(kDecay, {C, N}, "(C, N)");
    expect(kSkip, {C}, "(C)");
  }
}

}  // namespace ort
}  // namespace mscope

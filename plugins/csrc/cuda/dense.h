// The parameters of a launch from dense, row-major tensors, which is what TensorRT and ONNX Runtime hand over: the
// layout of docs/ops.md in one place. Inputs come in the contract's order (abi/ops.h), null where they are absent.
#pragma once

#include <stdint.h>

#include "abi/ops.h"
#include "cuda/params.h"

namespace mscope {

// Of one call; what an op does not have is not read. `row`: elements of a row of xz.
struct DenseSizes {
  int64_t batch, length, channels, states, rank, width, row;
};

// (B, L, row) from element `start` on.
inline MscopeRows dense_rows(const void* data, int dtype, int64_t length, int64_t row, int64_t start = 0) {
  if (data == nullptr) return {};
  const int64_t bytes = dtype == MSCOPE_FLOAT32 ? 4 : 2;
  // Without overflow: the rows of an empty batch may have any length, as no memory stands behind them.
  const auto batch = static_cast<int64_t>(static_cast<uint64_t>(row) * static_cast<uint64_t>(length));
  return {static_cast<const char*>(data) + start * bytes, row, batch};
}

// CausalConv1dSiLU into x, (K, B L, C).
inline MscopeConvParams dense_conv(const DenseSizes& s, int dtype, const void* const* inputs, void* x) {
  MscopeConvParams p = {};
  p.batch = s.batch;
  p.length = s.length;
  p.channels = s.channels;
  p.width = s.width;
  p.x = dense_rows(inputs[kConvXz], dtype, s.length, s.row);
  p.weight = inputs[kConvWeight];
  p.bias = inputs[kConvBias];
  p.y = dense_rows(x, dtype, s.length, s.channels);
  if (inputs[kConvWeightB] != nullptr) {
    p.weight_b = inputs[kConvWeightB];
    p.bias_b = inputs[kConvBiasB];
    p.y_b = dense_rows(x, dtype, s.length, s.channels, s.batch * s.length * s.channels);
  }
  return p;
}

// SelectiveScan into y, (B, L, C); without its workspace.
inline MscopeScanParams dense_scan(const DenseSizes& s, int dtype, const void* const* inputs, bool reverse,
                                   bool softplus, void* y) {
  const auto floats = [&](int input) { return static_cast<const float*>(inputs[input]); };
  const auto rows = [&](int input, int64_t row) { return dense_rows(inputs[input], dtype, s.length, row); };
  MscopeScanParams p = {};
  p.batch = s.batch;
  p.length = s.length;
  p.channels = s.channels;
  p.states = s.states;
  p.directions = 1;
  p.delta_softplus = softplus ? 1 : 0;
  MscopeScanDirection& d = p.direction[0];
  d.x = rows(kScanX, s.channels);
  d.delta = rows(kScanDelta, s.channels);
  d.B = rows(kScanB, s.states);
  d.C = rows(kScanC, s.states);
  d.A = floats(kScanA);
  d.D = floats(kScanD);
  d.dt_bias = floats(kScanDeltaBias);
  d.reverse = reverse ? 1 : 0;
  p.z = rows(kScanZ, s.channels);
  p.y = dense_rows(y, dtype, s.length, s.channels);
  return p;
}

// BidirectionalSelectiveScan into y, (B, L, C); without its workspace.
inline MscopeScanParams dense_bidirectional(const DenseSizes& s, int dtype, const void* const* inputs, void* y) {
  const int64_t columns = s.rank + 2 * s.states;
  MscopeScanParams p = {};
  p.batch = s.batch;
  p.length = s.length;
  p.channels = s.channels;
  p.states = s.states;
  p.rank = s.rank;
  p.directions = 2;
  p.delta_softplus = 1;
  for (int i = 0; i < 2; ++i) {
    MscopeScanDirection& d = p.direction[i];
    const void* const* const own = inputs + kBidirectionalParameters + i * kParametersADirection;
    const int64_t first = i * s.batch * s.length;  // row of this direction in (2, B L, any)
    const auto dbc = [&](int64_t column) {
      return dense_rows(inputs[kBidirectionalDbc], dtype, s.length, columns, first * columns + column);
    };
    d.x = dense_rows(inputs[kBidirectionalX], dtype, s.length, s.channels, first * s.channels);
    d.delta = dbc(0);
    d.B = dbc(s.rank);
    d.C = dbc(s.rank + s.states);
    d.dt_weight = own[kDtWeight];
    d.dt_bias = static_cast<const float*>(own[kDtBias]);
    d.A = static_cast<const float*>(own[kDecay]);
    d.D = static_cast<const float*>(own[kSkip]);
    d.reverse = i;
  }
  p.z = dense_rows(inputs[kBidirectionalXz], dtype, s.length, s.row, s.channels);
  p.y = dense_rows(y, dtype, s.length, s.channels);
  return p;
}

}  // namespace mscope

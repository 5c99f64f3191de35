// The C interface of libmscope_train: forward and backward of the ops `SelectiveScan` and `CausalConv1dSiLU` (one direction)
// in float32 on the CPU, for training. docs/ops.md is the contract of the mathematics; mscope/plugins/cpu.py mirrors the
// structs below: a change of these needs a new ABI_VERSION in mscope/plugins/build.py.
//
// Tensors are tokens-major: the value of (sequence b, token t, channel c) lies at p[(b * length + t) * stride + c], where
// `stride` counts floats from one token to the next, so that a slice along the last axis of a wider tensor is read in place.
// Outputs and gradients are contiguous. Results do not depend on the number of threads.
#pragma once

#include <stdint.h>

extern "C" {

struct MscopeScan {
  const float* x;           // (B, L, C)
  const float* delta;       // (B, L, C) before bias and softplus
  const float* A;           // (C, N) contiguous, negative
  const float* B;           // (B, L, N)
  const float* C;           // (B, L, N)
  const float* D;           // (C)
  const float* z;           // (B, L, C), or null: no gate
  const float* delta_bias;  // (C), or null
  int64_t x_stride, delta_stride, B_stride, C_stride, z_stride;
  int64_t batch, length, channels, states;
  int32_t reverse;         // 1: from the last token to the first
  int32_t delta_softplus;  // 1: delta goes through softplus
};

struct MscopeScanGrads {
  const float* y;     // in: (B, L, C) contiguous
  float* x;           // out: shapes as above, all contiguous and overwritten
  float* delta;
  float* A;
  float* B;
  float* C;
  float* D;
  float* z;           // null where there is no z
  float* delta_bias;  // null where it is not wanted
};

struct MscopeConv {
  const float* x;       // (B, L, C)
  const float* weight;  // (C, W) contiguous
  const float* bias;    // (C)
  int64_t x_stride;
  int64_t batch, length, channels, width;
  int32_t reverse;  // 1: anti-causal
  int32_t unused;
};

struct MscopeConvGrads {
  const float* y;  // in: (B, L, C) contiguous
  float* x;        // out, contiguous, overwritten
  float* weight;
  float* bias;
};

enum MscopeStatus { MSCOPE_OK = 0, MSCOPE_BAD_ARGUMENT = 1, MSCOPE_NO_MEMORY = 2 };

// The instruction set in use; `set` takes scalar, neon, avx2, avx512 or auto, and fails for what this machine lacks.
const char* mscope_train_isa();
int32_t mscope_train_set_isa(const char* name);

int32_t mscope_train_scan_forward(const MscopeScan* scan, float* y, int32_t threads);
int32_t mscope_train_scan_backward(const MscopeScan* scan, const MscopeScanGrads* grads, int32_t threads);
int32_t mscope_train_conv_forward(const MscopeConv* conv, float* y, int32_t threads);
int32_t mscope_train_conv_backward(const MscopeConv* conv, const MscopeConvGrads* grads, int32_t threads);

}  // extern "C"

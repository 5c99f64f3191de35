// What a launch is told: sizes, strides, pointers. Plain C, shared by the kernels, the C interface, its Python binding
// (mscope/plugins/cuda_arguments.py mirrors the structs; cuda.py compares their sizes on loading) and the TensorRT
// plugin.
//
// docs/ops.md is the contract of the ops. Strides count elements; the last axis is always contiguous.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum MscopeDtype { MSCOPE_FLOAT32 = 0, MSCOPE_FLOAT16 = 1, MSCOPE_BFLOAT16 = 2 };

// Zero is success, positive values are cudaError_t, negative ones are ours.
enum MscopeStatus {
  MSCOPE_OK = 0,
  MSCOPE_BAD_SIZE = -1,     // a size is negative, zero where it may not be, or above 2^30
  MSCOPE_BAD_DTYPE = -2,    // not one of MscopeDtype
  MSCOPE_BAD_POINTER = -3,  // a required pointer is null
  MSCOPE_BAD_WIDTH = -4,    // a convolution width outside 2..4
  MSCOPE_SMALL_WORKSPACE = -5,
  MSCOPE_NO_SHARED_MEMORY = -6  // rank or states so large that not even 16 tokens fit into a block's shared memory
};

// Element (b, t, i) is data[b * batch + t * row + i].
struct MscopeRows {
  const void* data;
  int64_t row, batch;
};

// One direction's inputs. A, D, dt_bias are float32; everything else has the launch's dtype.
struct MscopeScanDirection {
  struct MscopeRows x;      // (B, L, C)
  struct MscopeRows delta;  // rank = 0: delta (B, L, C); else dt (B, L, rank), projected by dt_weight
  struct MscopeRows B, C;   // (B, L, N)
  const void* dt_weight;    // (C, rank), contiguous; null for rank = 0
  const float* dt_bias;     // (C), may be null
  const float* A;           // (C, N), contiguous, as the contract has it: the kernel multiplies by log2(e)
  const float* D;           // (C)
  int64_t reverse;          // 1: from the last token to the first
};

// One direction: SelectiveScan. Two: BidirectionalSelectiveScan, the first direction with reverse = 0, the second
// with 1.
struct MscopeScanParams {
  int64_t batch, length, channels, states, rank;
  int64_t directions;
  int64_t delta_softplus;
  struct MscopeScanDirection direction[2];
  struct MscopeRows z;  // (B, L, C); data null: no gate
  struct MscopeRows y;  // (B, L, C), written; overlaps no input
  void* workspace;      // at least mscope_cuda_scan_workspace bytes, 16-byte aligned
  int64_t workspace_bytes;
};

// CausalConv1dSiLU; either direction may be absent (its weight null), not both.
struct MscopeConvParams {
  int64_t batch, length, channels, width;
  struct MscopeRows x;    // (B, L, C), a view into xz
  const void* weight;     // (C, W)
  const void* bias;       // (C)
  const void* weight_b;   // (C, W)
  const void* bias_b;     // (C)
  struct MscopeRows y;    // (B, L, C), written
  struct MscopeRows y_b;  // (B, L, C), written
};

// What the launch plan depends on. The library reads it off the device; tests make machines up.
struct MscopeMachine {
  int32_t multiprocessors;
  int32_t shared_per_multiprocessor;  // bytes
  int32_t shared_per_block;           // bytes, the opt-in maximum
};

#ifdef __cplusplus
}
#endif

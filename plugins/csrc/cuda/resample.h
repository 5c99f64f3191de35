// What the resampling of a picture is told. Plain C, as params.h; mscope/plugins/cuda_resample.py mirrors it.
#pragma once

#include "cuda/params.h"

#ifdef __cplusplus
extern "C" {
#endif

// One axis: output i is the sum over t < count[i] of weights[t * outputs + i] * input[first[i] + t], with weights of
// 22 fractional bits. All of it in device memory.
struct MscopeResampleAxis {
  int64_t taps;            // rows of `weights`, at least every count
  const int32_t* first;    // (outputs)
  const int32_t* count;    // (outputs)
  const int32_t* weights;  // (taps, outputs)
};

// Channels are interleaved in `pixels` and `scratch`, planar in `out`.
struct MscopeResampleParams {
  const uint8_t* pixels;  // (rows, columns, channels), rows `row_bytes` apart
  int64_t rows, columns, row_bytes, channels;
  int64_t out_rows, out_columns;
  struct MscopeResampleAxis across, down;
  int64_t down_first;   // which pass comes first; between them numbers are rounded, so that it shows
  uint8_t* scratch;     // (rows, out_columns, channels), or (out_rows, columns, channels) where down comes first
  const float* levels;  // (channels, 256): what a resampled byte becomes
  float* out;           // (channels, out_rows, out_columns), written
};

#ifdef __cplusplus
}
#endif

// A picture of bytes to the network's float32 input, bit for bit as Pillow resamples it (libImaging/Resample.c): two
// passes, each a sum of products with integer weights, rounded and clipped to a byte. What a byte becomes afterwards
// (mean, standard deviation) is looked up, so that no arithmetic of the device is in the result.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/resample.h"

namespace mscope {

constexpr int kResampleThreads = 256;
constexpr int kWeightBits = 22;  // Pillow's PRECISION_BITS

// One pass: across (each row by itself) or down.
struct ResamplePass {
  const uint8_t* from;
  int64_t row_bytes;  // of `from`
  int64_t inputs;     // along the axis
  int32_t rows, columns;  // of what the pass makes
  int32_t down;
  MscopeResampleAxis axis;
  uint8_t* to;          // null in the last pass
  const float* levels;  // of the last pass
  float* out;           // of the last pass
};

// A thread makes one pixel; neighbouring threads make neighbouring columns. An input that lies outside is left out,
// whatever the tables say.
template <int CHANNELS>
MSCOPE_KERNEL(kResampleThreads)
resample_kernel(MSCOPE_CONSTANT ResamplePass p) {
  const unsigned index = blockIdx.x * kResampleThreads + threadIdx.x;
  const unsigned columns = static_cast<unsigned>(p.columns), rows = static_cast<unsigned>(p.rows);
  const unsigned row = index / columns, column = index % columns;
  if (row >= rows) return;
  const unsigned output = p.down ? row : column, outputs = p.down ? rows : columns;
  const int64_t stride = p.down ? p.row_bytes : CHANNELS;
  int sum[CHANNELS];
  MSCOPE_UNROLL
  for (int c = 0; c < CHANNELS; ++c) sum[c] = 1 << (kWeightBits - 1);
  const int first = __ldg(p.axis.first + output);
  int count = __ldg(p.axis.count + output);
  if (count > p.axis.taps) count = static_cast<int>(p.axis.taps);
  if (first < 0 || first >= p.inputs) count = 0;
  if (count > p.inputs - first) count = static_cast<int>(p.inputs - first);
  const uint8_t* from = p.from + first * stride + (p.down ? int64_t{column} * CHANNELS : row * p.row_bytes);
  const int32_t* weight = p.axis.weights + output;
  for (int t = 0; t < count; ++t) {
    const int w = __ldg(weight);
    MSCOPE_UNROLL
    for (int c = 0; c < CHANNELS; ++c) sum[c] += w * __ldg(from + c);
    weight += outputs;
    from += stride;
  }
  MSCOPE_UNROLL
  for (int c = 0; c < CHANNELS; ++c) {
    const int level = sum[c] >> kWeightBits;
    const int byte = level < 0 ? 0 : level > 255 ? 255 : level;
    if (p.to != nullptr) {
      p.to[static_cast<int64_t>(index) * CHANNELS + c] = static_cast<uint8_t>(byte);
    } else {
      p.out[static_cast<int64_t>(c) * rows * columns + index] = __ldg(p.levels + c * 256 + byte);
    }
  }
}

template <int CHANNELS>
int launch_resample(const ResamplePass& pass, cudaStream_t stream) {
  const int64_t pixels = int64_t{pass.rows} * pass.columns;
  return launch(resample_kernel<CHANNELS>, Grid{(pixels + kResampleThreads - 1) / kResampleThreads, kResampleThreads},
                stream, pass);
}

inline int run_resample(const MscopeResampleParams& p, cudaStream_t stream) {
  // An index of a pixel has 32 bits, also one of the last block's threads.
  const int64_t limit = int64_t{1} << 30;
  for (const int64_t size : {p.rows, p.columns, p.out_rows, p.out_columns, p.across.taps, p.down.taps}) {
    if (size < 1 || size > limit) return MSCOPE_BAD_SIZE;
  }
  if (p.channels != 1 && p.channels != 3) return MSCOPE_BAD_SIZE;
  if (p.row_bytes < p.columns * p.channels) return MSCOPE_BAD_SIZE;
  const int64_t rows = p.down_first ? p.out_rows : p.rows, columns = p.down_first ? p.columns : p.out_columns;
  if (rows * columns > limit || p.out_rows * p.out_columns > limit) return MSCOPE_BAD_SIZE;
  if (!p.pixels || !p.scratch || !p.levels || !p.out) return MSCOPE_BAD_POINTER;
  for (const MscopeResampleAxis* axis : {&p.across, &p.down}) {
    if (!axis->first || !axis->count || !axis->weights) return MSCOPE_BAD_POINTER;
  }
  ResamplePass pass = {};
  pass.from = p.pixels;
  pass.row_bytes = p.row_bytes;
  pass.down = p.down_first != 0;
  pass.rows = static_cast<int32_t>(rows);
  pass.columns = static_cast<int32_t>(columns);
  pass.inputs = pass.down ? p.rows : p.columns;
  pass.axis = pass.down ? p.down : p.across;
  pass.to = p.scratch;
  const auto run = p.channels == 1 ? launch_resample<1> : launch_resample<3>;
  const int status = run(pass, stream);
  if (status != MSCOPE_OK) return status;
  pass.from = p.scratch;
  pass.row_bytes = columns * p.channels;
  pass.down = !pass.down;
  pass.rows = static_cast<int32_t>(p.out_rows);
  pass.columns = static_cast<int32_t>(p.out_columns);
  pass.inputs = pass.down ? p.rows : p.columns;
  pass.axis = pass.down ? p.down : p.across;
  pass.to = nullptr;
  pass.levels = p.levels;
  pass.out = p.out;
  return run(pass, stream);
}

}  // namespace mscope

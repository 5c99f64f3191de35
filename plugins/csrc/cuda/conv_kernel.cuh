// Depthwise convolution and SiLU, both directions in one pass over x.
//
// A thread makes four tokens of one channel in each direction from the ten x around them, all of whose loads are in
// flight at once; neighbouring threads take neighbouring channels. The six x shared with the next four tokens come from
// the multiprocessor's cache: the block's eight rows of threads take consecutive tokens.
#pragma once

#include "cuda/lane.cuh"
#include "cuda/params.h"
#include "cuda/plan.h"
#include "cuda/scan_stage.cuh"

namespace mscope {

// The taps end-aligned among kConvTaps: tap kConvTaps - 1 meets the token itself.
template <class T>
MSCOPE_DEVICE void load_taps(const void* weight, int channel, int width, float (&taps)[kConvTaps]) {
  const T* from = static_cast<const T*>(weight) + static_cast<int64_t>(channel) * width;
  MSCOPE_UNROLL
  for (int k = 0; k < kConvTaps; ++k) {
    const int j = k - (kConvTaps - width);
    taps[k] = j >= 0 ? fetch(from + j) : 0.0f;
  }
}

// Output `i` of a thread: REVERSE counts the taps from the other side. A tap that is not there is left out, not
// multiplied by zero: x may hold an infinity.
template <class T, bool REVERSE>
MSCOPE_DEVICE void write_direction(const MscopeConvParams& p, const MscopeRows& to, const void* weight,
                                   const void* bias, int64_t batch, int first, int channel,
                                   const float (&x)[kConvTokens + 2 * (kConvTaps - 1)]) {
  float taps[kConvTaps];
  const int width = static_cast<int>(p.width);
  load_taps<T>(weight, channel, width, taps);
  const float start = fetch(static_cast<const T*>(bias) + channel);
  MSCOPE_UNROLL
  for (int i = 0; i < kConvTokens; ++i) {
    if (first + i >= p.length) break;
    float y = start;
    MSCOPE_UNROLL
    for (int k = 0; k < kConvTaps; ++k) {
      const int at = REVERSE ? i + 2 * (kConvTaps - 1) - k : i + k;
      if (k >= kConvTaps - width) y = fmaf(taps[k], x[at], y);
    }
    narrow(silu(Lane(y)).v, const_cast<T*>(row_of<T>(to, batch, first + i))[channel]);
  }
}

// Blocks of kConvChannels x (kConvThreads / kConvChannels) threads in a row along x: channels, then tokens, then
// images.
template <class T>
MSCOPE_KERNEL(kConvThreads)
conv_kernel(MSCOPE_CONSTANT MscopeConvParams p) {
  constexpr int kRows = kConvThreads / kConvChannels, kReach = kConvTaps - 1;
  const unsigned groups = static_cast<unsigned>((p.channels + kConvChannels - 1) / kConvChannels);
  const unsigned tiles = static_cast<unsigned>((p.length + kRows * kConvTokens - 1) / (kRows * kConvTokens));
  const int channel =
      static_cast<int>(blockIdx.x % groups) * kConvChannels + static_cast<int>(threadIdx.x % kConvChannels);
  const unsigned rest = blockIdx.x / groups;
  const int first =
      (static_cast<int>(rest % tiles) * kRows + static_cast<int>(threadIdx.x / kConvChannels)) * kConvTokens;
  const int64_t batch = rest / tiles;
  if (channel >= p.channels || first >= p.length) return;

  float x[kConvTokens + 2 * kReach];
  MSCOPE_UNROLL
  for (int i = 0; i < kConvTokens + 2 * kReach; ++i) {
    const int token = first - kReach + i;
    x[i] = token >= 0 && token < p.length ? fetch(row_of<T>(p.x, batch, token) + channel) : 0.0f;
  }
  if (p.weight != nullptr) write_direction<T, false>(p, p.y, p.weight, p.bias, batch, first, channel, x);
  if (p.weight_b != nullptr) write_direction<T, true>(p, p.y_b, p.weight_b, p.bias_b, batch, first, channel, x);
}

}  // namespace mscope

// How the training kernels walk the channels: one vector's worth at a time. Included by `training_*_isa.cpp` only.
#pragma once

#include <stdint.h>

#include "scan/vec.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {

constexpr int64_t W = Vec::width;

// The channels of one vector: the first one, and how many of the lanes are in use.
struct Block {
  int64_t channel;
  int lanes;

  MSCOPE_INLINE Vec load(const float* row) const {
    return lanes == W ? Vec::load(row + channel) : Vec::load(row + channel, lanes);
  }
  MSCOPE_INLINE Vec load_or_zero(const float* row) const { return row != nullptr ? load(row) : Vec(0.0f); }
  MSCOPE_INLINE void store(Vec value, float* row) const {
    if (lanes == W)
      value.store(row + channel);
    else
      value.store(row + channel, lanes);
  }
};

MSCOPE_INLINE Block block_at(int64_t channel, int64_t channels) {
  return {channel, static_cast<int>(channels - channel < W ? channels - channel : W)};
}

MSCOPE_INLINE int64_t padded(int64_t channels) { return (channels + W - 1) / W * W; }

MSCOPE_INLINE void add_to(float* sum, Vec value) { (Vec::load(sum) + value).store(sum); }

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

// CausalConv1dSiLU: depthwise convolution and SiLU, both directions from one pass over x.

#include <stddef.h>

#include "cpu/inference_exp.h"
#include "cpu/inference_kernels.h"
#include "cpu/inference_storage.h"
#include "scan/denormals.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {
namespace {

using inference::ConvProblem;
using inference::Storage;

// A tile is small enough that two threads share even 50 tokens evenly, and large enough that loading a block's taps once a
// tile costs nothing.
constexpr int64_t kTileTokens = 16;
constexpr int64_t kTileChannels = 128;
constexpr int kMaxUnrolledTaps = 4;

int64_t tiles(int64_t extent, int64_t tile) { return (extent + tile - 1) / tile; }

// One block of channels, one direction, tokens [first, last). TAPS = 0: any number of taps, read from memory.
template <class T, int TAPS>
MSCOPE_INLINE void conv_block(T type, const ConvProblem& p, int direction, int64_t image, int64_t first, int64_t last,
                              int64_t channel, int count, const Exponential<Vec>& e) {
  using Element = typename T::type;
  const int64_t taps = TAPS > 0 ? TAPS : p.taps;
  const bool backward = p.direction[direction].backward;
  const int64_t step = backward ? 1 : -1;
  const float* const packed = p.direction[direction].packed + channel / Vec::width * (taps + 1) * Vec::width;
  const Element* const x = static_cast<const Element*>(p.x) + image * p.tokens * p.x_row + channel;
  Element* const y = static_cast<Element*>(p.direction[direction].y) + image * p.tokens * p.channels + channel;
  Vec weight[TAPS > 0 ? TAPS : 1];
  for (int j = 0; j < TAPS; ++j) weight[j] = Vec::load(packed + j * Vec::width);
  const Vec bias = Vec::load(packed + taps * Vec::width);
  for (int64_t t = first; t < last; ++t) {
    Vec sum = bias;
    // The last tap reads x_t itself; those that reach over the sequence's end multiply zeros.
    const int64_t reach = backward ? p.tokens - 1 - t : t;
    if (TAPS > 0 && reach >= TAPS - 1) {
      for (int j = 0; j < TAPS; ++j) sum = fma(weight[j], load(type, x + (t + step * (TAPS - 1 - j)) * p.x_row, count), sum);
    } else {
      for (int64_t j = reach >= taps - 1 ? 0 : taps - 1 - reach; j < taps; ++j)
        sum = fma(Vec::load(packed + j * Vec::width), load(type, x + (t + step * (taps - 1 - j)) * p.x_row, count), sum);
    }
    store(type, y + t * p.channels, silu(e, sum), count);
  }
}

template <class T>
void conv_tile(T type, const ConvProblem& p, int64_t task) {
  const FlushDenormals flush;
  const Exponential<Vec> e;
  const int64_t channel_tiles = tiles(p.channels, kTileChannels), token_tiles = tiles(p.tokens, kTileTokens);
  const int64_t channel = task % channel_tiles * kTileChannels;
  const int64_t token = task / channel_tiles % token_tiles * kTileTokens;
  const int64_t image = task / channel_tiles / token_tiles;
  const int64_t last_token = token + kTileTokens < p.tokens ? token + kTileTokens : p.tokens;
  const int64_t last_channel = channel + kTileChannels < p.channels ? channel + kTileChannels : p.channels;
  for (int64_t c = channel; c < last_channel; c += Vec::width) {
    const int count = static_cast<int>(last_channel - c < Vec::width ? last_channel - c : Vec::width);
    for (int d = 0; d < p.directions; ++d) {
      if (p.taps == kMaxUnrolledTaps) conv_block<T, kMaxUnrolledTaps>(type, p, d, image, token, last_token, c, count, e);
      else conv_block<T, 0>(type, p, d, image, token, last_token, c, count, e);
    }
  }
}

}  // namespace

int64_t conv_tasks(const ConvProblem& p) {
  return p.batch * tiles(p.tokens, kTileTokens) * tiles(p.channels, kTileChannels);
}

void conv_task(const ConvProblem& p, int64_t task) {
  static_assert(kTileChannels % Vec::width == 0, "blocks of channels must not cross a tile");
  switch (p.storage) {
    case Storage::f32: return conv_tile(Float32{}, p, task);
    case Storage::f16: return conv_tile(Float16{}, p, task);
    case Storage::bf16: return conv_tile(Bfloat16{}, p, task);
  }
}

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

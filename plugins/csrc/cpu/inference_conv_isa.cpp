// CausalConv1dSiLU: depthwise convolution and SiLU, both directions from one pass over x.

#include <stddef.h>

#include "cpu/inference_conv.h"
#include "cpu/inference_kernels.h"
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

int64_t tiles(int64_t extent, int64_t tile) { return (extent + tile - 1) / tile; }

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
    for (int d = 0; d < p.directions; ++d) conv_block(type, type, p, d, image, token, last_token, c, count, e);
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

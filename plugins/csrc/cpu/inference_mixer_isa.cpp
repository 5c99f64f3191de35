// The first phase of VimMixer: convolution, SiLU and x_proj of a tile of tokens, one direction. The second is the scan.
//
// The product is skinny, R + 2N columns, so that a panel of it stays in registers over a slice of its depth, next to one
// vector of weights and a token's value: of 32 registers 24 sums, of 16 twelve. Its rows are still in the first cache from
// the convolution.

#include <stddef.h>

#include "cpu/inference_conv.h"
#include "cpu/inference_kernels.h"
#include "scan/denormals.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {
namespace {

using inference::ProjectProblem;
using inference::Storage;

constexpr int kWidth = Vec::width;
#if MSCOPE_ISA_ID == MSCOPE_ISA_ID_avx512 || MSCOPE_ISA_ID == MSCOPE_ISA_ID_neon
constexpr int kRows = 8;
#else
constexpr int kRows = 4;
#endif
constexpr int kVectors = 3;
// Tokens of a tile: two threads share even 50 tokens, both directions, evenly.
constexpr int kTileTokens = 8;
// Sums of this many products are added up apart: fewer roundings, and these rows of the weights stay in the caches.
constexpr int64_t kDepth = 192;

int64_t parts(int64_t extent, int64_t most) { return (extent + most - 1) / most; }

// out (ROWS, VECTORS) += or = x (ROWS, depth) times weight (depth, VECTORS).
template <int ROWS, int VECTORS>
__attribute__((noinline)) void panel(const float* x, int64_t x_row, const float* weight, int64_t columns, int64_t depth,
                                     bool first, float* out) {
  Vec sum[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; ++j) sum[i][j] = Vec(0.0f);
  for (int64_t k = 0; k < depth; ++k) {
    Vec w[VECTORS];
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; ++j) w[j] = Vec::load(weight + k * columns + j * kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const Vec value(x[i * x_row + k]);
#pragma GCC unroll 3
      for (int j = 0; j < VECTORS; ++j) sum[i][j] = fma(value, w[j], sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; ++j) {
      float* const to = out + i * columns + j * kWidth;
      (first ? sum[i][j] : Vec::load(to) + sum[i][j]).store(to);
    }
}

using Panel = void (*)(const float*, int64_t, const float*, int64_t, int64_t, bool, float*);
constexpr Panel kPanels[8][kVectors] = {
    {panel<1, 1>, panel<1, 2>, panel<1, 3>}, {panel<2, 1>, panel<2, 2>, panel<2, 3>},
    {panel<3, 1>, panel<3, 2>, panel<3, 3>}, {panel<4, 1>, panel<4, 2>, panel<4, 3>},
#if MSCOPE_ISA_ID == MSCOPE_ISA_ID_avx512 || MSCOPE_ISA_ID == MSCOPE_ISA_ID_neon
    {panel<5, 1>, panel<5, 2>, panel<5, 3>}, {panel<6, 1>, panel<6, 2>, panel<6, 3>},
    {panel<7, 1>, panel<7, 2>, panel<7, 3>}, {panel<8, 1>, panel<8, 2>, panel<8, 3>},
#endif
};

// x_proj of `rows` tokens: x (rows, channels) to dbc (rows, columns).
void product(const float* x, int64_t rows, int64_t channels, const float* weight, int64_t columns, float* dbc) {
  const int64_t vectors = columns / kWidth, panels = parts(vectors, kVectors);
  for (int64_t k = 0; k < channels; k += kDepth) {
    const int64_t depth = channels - k < kDepth ? channels - k : kDepth;
    for (int64_t i = 0; i < panels; ++i) {
      const int64_t from = vectors * i / panels, count = vectors * (i + 1) / panels - from;
      const float* const w = weight + k * columns + from * kWidth;
      for (int64_t row = 0; row < rows; row += kRows) {
        const int64_t height = rows - row < kRows ? rows - row : kRows;
        kPanels[height - 1][count - 1](x + row * channels + k, channels, w, columns, depth, k == 0,
                                       dbc + row * columns + from * kWidth);
      }
    }
  }
}

template <class T>
void project_tile(T type, const ProjectProblem& p, int64_t task) {
  const FlushDenormals flush;
  const Exponential<Vec> e;
  const int64_t tiles = parts(p.conv.tokens, kTileTokens);
  const int64_t tile = task % tiles, image = task / tiles % p.conv.batch, direction = task / tiles / p.conv.batch;
  const int64_t first = p.conv.tokens * tile / tiles, last = p.conv.tokens * (tile + 1) / tiles;
  const int64_t channels = p.conv.channels, columns = p.columns;
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int count = static_cast<int>(channels - c < kWidth ? channels - c : kWidth);
    conv_block(type, Float32{}, p.conv, static_cast<int>(direction), image, first, last, c, count, e);
  }
  const int64_t row = image * p.conv.tokens + first;
  product(static_cast<const float*>(p.conv.direction[direction].y) + row * channels, last - first, channels,
          p.weight[direction], columns, p.dbc[direction] + row * columns);
}

}  // namespace

int64_t project_tasks(const ProjectProblem& p) { return p.conv.batch * parts(p.conv.tokens, kTileTokens) * 2; }

void project_task(const ProjectProblem& p, int64_t task) {
  switch (p.conv.storage) {
    case Storage::f32: return project_tile(Float32{}, p, task);
    case Storage::f16: return project_tile(Float16{}, p, task);
    case Storage::bf16: return project_tile(Bfloat16{}, p, task);
  }
}

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

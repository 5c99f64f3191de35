// The CPU kernels of the ops in docs/ops.md, for inference: plain structs of sizes, strides and pointers, no framework.
//
// A problem is split into tasks that may run in any order and on any thread; results do not depend on either. A task of
// the scan is one block of `width` channels of one image, both directions of it; a task of the convolution is a tile of
// tokens and channels.
#pragma once

#include <stdint.h>

#include "abi/ops.h"

namespace mscope {
namespace inference {

using mscope::Storage;

// CausalConv1dSiLU. `packed`: per block of channels, the taps (taps, width) then the bias (width); see pack_conv.
struct ConvDirection {
  const float* packed;
  void* y;        // (batch, tokens, channels)
  bool backward;  // anti-causal: a tap reads the tokens that follow
};
struct ConvProblem {
  Storage storage;
  int64_t batch, tokens, channels, taps;
  const void* x;
  int64_t x_row;  // elements from one token to the next
  int directions;
  ConvDirection direction[2];
};

// The first phase of VimMixer: the convolution, into float32 whatever x is stored as, and x_proj of it; two directions.
struct ProjectProblem {
  ConvProblem conv;
  int64_t columns;         // of dbc: R + 2N, padded to whole vectors
  const float* weight[2];  // see pack_x_proj
  float* dbc[2];           // (batch, tokens, columns)
};

// SelectiveScan and BidirectionalSelectiveScan; and the second phase of VimMixer, where x, dt, B and C are float32.
struct ScanDirection {
  const float* packed;  // see pack_scan
  const void* x;
  int64_t x_row;
  // rank = 0: delta (batch, tokens, channels). Otherwise dt (batch, tokens, rank), to be multiplied by dt_weight.
  const void* delta;
  int64_t delta_row;
  const void* B;
  const void* C;
  int64_t B_row, C_row;
  bool reverse;
};
struct ScanProblem {
  Storage storage;  // of z and y
  Storage inner;    // of the directions' x, delta, B and C: the same, or f32
  int64_t batch, tokens, channels, states, rank;
  bool softplus;
  int directions;  // their outputs are averaged
  ScanDirection direction[2];
  const void* z;  // null: no gate
  int64_t z_row;
  void* y;       // (batch, tokens, channels)
  float* sum;    // two directions and 16-bit storage: scratch (batch, tokens, channels), as y would round the first one
  float* state;  // states > kStatesInPlace: scratch, scan_tasks() * states * width
};

constexpr int64_t kStatesInPlace = 64;

// The kernels of one instruction set.
struct Kernels {
  const char* isa;
  int64_t width;  // channels of a block
  int64_t (*conv_tasks)(const ConvProblem&);
  void (*conv)(const ConvProblem&, int64_t task);
  int64_t (*project_tasks)(const ProjectProblem&);
  void (*project)(const ProjectProblem&, int64_t task);
  int64_t (*scan_tasks)(const ScanProblem&);
  void (*scan)(const ScanProblem&, int64_t task);
};

// The kernels in use: of the instruction set that was forced, else of the one that MSCOPE_ISA names, else the best that
// this machine runs. Null where MSCOPE_ISA names one that it does not run.
const Kernels* kernels();
// Forces an instruction set for kernels created from now on; null, "" and "auto" end that. False: unknown, or not here.
bool force_isa(const char* name);

// Parameters as the kernels read them: block by block of `width` channels, padded, transposed, float32. Made once, when an
// op's kernel is created, where the parameters are constants. `floats` is what the packed form takes.
int64_t packed_conv_floats(int64_t width, int64_t channels, int64_t taps);
void pack_conv(int64_t width, Storage storage, int64_t channels, int64_t taps, const void* weight, const void* bias,
               float* packed);

// x_proj (channels, columns) as (channels, columns padded to whole vectors).
int64_t padded_columns(int64_t width, int64_t columns);
void pack_x_proj(int64_t width, Storage storage, int64_t channels, int64_t columns, const void* weight, float* packed);

// A block: A log2(e) (states, width), dt_weight (rank, width), delta bias, D, and the largest delta whose decays the fast
// exponential takes (each (width)). dt_weight is null where rank is 0, delta_bias where there is none.
int64_t packed_scan_floats(int64_t width, int64_t channels, int64_t states, int64_t rank);
void pack_scan(int64_t width, Storage storage, int64_t channels, int64_t states, int64_t rank, const float* A,
               const void* dt_weight, const float* delta_bias, const float* D, float* packed);

float to_float(Storage storage, const void* values, int64_t index);

}  // namespace inference
}  // namespace mscope

// How a scan is laid over a machine: pure arithmetic, so that it is tested without a GPU. docs/cuda.md derives the
// numbers.
#pragma once

#include <stdint.h>

#include "cuda/params.h"

namespace mscope {

constexpr int kConvThreads = 256;
constexpr int kConvChannels = 32;  // a warp reads 32 neighbouring channels
constexpr int kConvTokens = 4;     // a thread's outputs in each direction
constexpr int kConvTaps = 4;

// LANES threads share a channel, each with STATES of its states in registers. More than LANES * STATES states go
// through them in turns.
//   wide   one state a thread: four times the threads, for when there are fewer recurrences than the machine has lanes
//   dense  four states a thread: half the instructions a state
//   small  dense for up to eight states
enum class Layout : int32_t { wide = 0, dense = 1, small = 2 };
constexpr int layout_lanes(Layout layout) { return layout == Layout::wide ? 16 : 4; }
constexpr int layout_states(Layout layout) { return layout == Layout::wide ? 1 : layout == Layout::dense ? 4 : 2; }

// The kernels' launch bounds: threads of a block, and how many such blocks a multiprocessor's registers must hold. One
// wide block has a multiprocessor to itself, with 128 registers a thread; three dense ones leave 80, which is what
// keeps everything in registers.
constexpr int kWideThreads = 512, kDenseThreads = 256;
constexpr int max_threads(int lanes) { return lanes == layout_lanes(Layout::wide) ? kWideThreads : kDenseThreads; }
constexpr int min_blocks(int lanes) { return lanes == layout_lanes(Layout::wide) ? 1 : 3; }
template <int LANES>
constexpr int kRowsInFlight = LANES == layout_lanes(Layout::wide) ? 8 : 4;  // four registers each

struct ScanPlan {
  Layout layout;
  int32_t threads, scan_threads;
  int32_t block_log2;  // channels of a block, as a power of two
  int32_t groups;      // blocks along the channels
  int32_t chunk;       // tokens staged in shared memory at a time, a multiple of the layout's lanes
  // A long sequence is cut into segments that are scanned side by side, after a pass that finds the state at their
  // edges.
  int32_t segments, segment_tokens;
  int32_t rank_quads, padded_states;  // a staged row: dt in fours, then B, then C, zeros behind each
  int32_t row_floats, weight_floats;  // strides of a staged row and of a channel's dt weights
  int32_t vector_rows;                // 1: every row of dt, B and C can be read four elements at a time
  int32_t shared_bytes, shared_limit;  // of a block, and the most that one may have
  int64_t blocks;
  int64_t stash_floats, carry_floats;  // the workspace: sums of the first direction to pass, and states at the edges
};

namespace plan_detail {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

// Whether counting elements, and anything a few times as many, stays within int64_t. None is above 2^30.
constexpr bool countable(int64_t batch, int64_t length, int64_t channels, int64_t states = 1) {
  const int64_t most = int64_t{1} << 58, rows = batch * length;
  return rows == 0 || (channels <= most / rows && states <= most / (rows * channels));
}

// Rows that eight threads read at once, 16 bytes each, meet no common bank where the stride is 4 modulo 8 floats.
constexpr int64_t conflict_free(int64_t floats) { return floats % 8 == 0 ? floats + 4 : floats; }

inline bool aligned(const MscopeRows& rows, int64_t element_bytes) {
  return reinterpret_cast<uintptr_t>(rows.data) % (4 * element_bytes) == 0 && rows.row % 4 == 0 && rows.batch % 4 == 0;
}

inline bool vector_rows(const MscopeScanParams& p, int64_t element_bytes) {
  if (p.rank % 4 != 0 || p.states % 4 != 0) return false;
  for (int64_t i = 0; i < p.directions; ++i) {
    const MscopeScanDirection& d = p.direction[i];
    if (!aligned(d.B, element_bytes) || !aligned(d.C, element_bytes)) return false;
    if (p.rank > 0 && !aligned(d.delta, element_bytes)) return false;
  }
  return true;
}

inline int64_t fixed_floats(const ScanPlan& plan, const MscopeScanParams& p) {
  const int64_t channels = p.directions << plan.block_log2;
  const bool in_turns = plan.padded_states > layout_lanes(plan.layout) * layout_states(plan.layout);
  return channels * (plan.weight_floats + (in_turns ? plan.padded_states : 0));
}

inline int64_t token_floats(const ScanPlan& plan, const MscopeScanParams& p) {
  return p.directions * (plan.row_floats + (int64_t{2} << plan.block_log2));
}

// The multiple of `step`, up to `most`, that takes the fewest token times for `tokens` tokens. The two directions wait
// for each other at the end of a chunk, so a short last chunk costs as much as a full one; a chunk's barriers and loads
// cost about eight tokens.
inline int64_t best_chunk(int64_t tokens, int64_t most, int64_t step) {
  if (tokens <= most) return round_up(tokens, step);
  int64_t best = most, least = INT64_MAX;
  for (int64_t chunk = most; 2 * chunk > most; chunk -= step) {
    const int64_t cost = ceil_div(tokens, chunk) * (chunk + 8);
    if (cost < least) least = cost, best = chunk;
  }
  return best;
}

// Lays `segments` segments out in `layout`; 0 or a status.
inline int lay_out(ScanPlan& plan, const MscopeScanParams& p, const MscopeMachine& machine) {
  plan.padded_states =
      static_cast<int32_t>(round_up(p.states, int64_t{layout_lanes(plan.layout)} * layout_states(plan.layout)));
  plan.rank_quads = static_cast<int32_t>(ceil_div(p.rank, 4));
  plan.weight_floats = static_cast<int32_t>(p.rank > 0 ? conflict_free(4 * int64_t{plan.rank_quads}) : 0);
  const int64_t row = conflict_free(4 * int64_t{plan.rank_quads} + 2 * int64_t{plan.padded_states});
  const int64_t parallel = p.batch * plan.segments;

  if (plan.layout == Layout::wide) {  // one block a multiprocessor, 4 or 8 channels each
    plan.block_log2 = parallel * ceil_div(p.channels, 4) <= machine.multiprocessors ? 2 : 3;
  } else {  // the more channels a block, the fewer times a row of dt, B and C is read
    plan.block_log2 = 3;
    const int64_t blocks16 = parallel * ceil_div(p.channels, 16), blocks32 = parallel * ceil_div(p.channels, 32);
    if (p.channels > 8 && blocks16 >= 2 * int64_t{machine.multiprocessors}) plan.block_log2 = 4;
    if (p.channels > 16 && blocks32 >= 8 * int64_t{machine.multiprocessors}) plan.block_log2 = 5;
  }
  plan.scan_threads = static_cast<int32_t>((p.directions * layout_lanes(plan.layout)) << plan.block_log2);
  // Threads that do not scan still load, project and gate: what a small grid waits for is the latency of those.
  const int64_t least = plan.layout == Layout::wide ? kWideThreads : kDenseThreads / 2;
  plan.threads = static_cast<int32_t>(greater(plan.scan_threads, least));
  plan.groups = static_cast<int32_t>(ceil_div(p.channels, int64_t{1} << plan.block_log2));
  plan.blocks = parallel * plan.groups;
  if (row > (int64_t{1} << 20) || plan.blocks >= (int64_t{1} << 31)) return MSCOPE_BAD_SIZE;
  plan.row_floats = static_cast<int32_t>(row);

  // Shared memory for as many blocks a multiprocessor as there are, or as its registers hold.
  const int64_t held =
      min_blocks(layout_lanes(plan.layout)) * int64_t{max_threads(layout_lanes(plan.layout))} / plan.threads;
  const int64_t wanted = greater(1, lesser(ceil_div(plan.blocks, machine.multiprocessors), held));
  const int64_t reserved = 1024;  // the driver keeps as much of every block
  const int64_t fixed = 4 * fixed_floats(plan, p), token = 4 * token_floats(plan, p);
  const int64_t room = lesser(machine.shared_per_block, machine.shared_per_multiprocessor / wanted - reserved);
  const int64_t step = layout_lanes(plan.layout);
  const int64_t most = greater(16, lesser((room - fixed) / token / step * step, 256));
  plan.chunk = static_cast<int32_t>(best_chunk(lesser(plan.segment_tokens, p.length), most, step));
  if (fixed + plan.chunk * token > machine.shared_per_block) return MSCOPE_NO_SHARED_MEMORY;
  plan.shared_bytes = static_cast<int32_t>(fixed + plan.chunk * token);
  plan.shared_limit = machine.shared_per_block;
  plan.stash_floats = p.directions == 2 && plan.segment_tokens > plan.chunk && p.length > plan.chunk
                          ? p.batch * p.length * p.channels
                          : 0;
  plan.carry_floats = plan.segments > 1 ? parallel * p.directions * p.channels * (p.states + 1) : 0;
  return MSCOPE_OK;
}

}  // namespace plan_detail

inline int plan_scan(const MscopeScanParams& p, int64_t element_bytes, const MscopeMachine& machine, ScanPlan& plan) {
  using namespace plan_detail;
  const int64_t limit = int64_t{1} << 30;
  if (p.batch < 0 || p.length < 1 || p.channels < 1 || p.states < 1 || p.rank < 0) return MSCOPE_BAD_SIZE;
  if (p.batch > limit || p.length > limit || p.channels > limit || p.states > limit || p.rank > limit)
    return MSCOPE_BAD_SIZE;
  if (!countable(p.batch, p.length, p.channels, p.states)) return MSCOPE_BAD_SIZE;
  if (p.directions != 1 && p.directions != 2) return MSCOPE_BAD_SIZE;
  plan = ScanPlan{};
  plan.vector_rows = vector_rows(p, element_bytes);

  // Warps in the dense layout, eight channels each, before any cut of the sequence.
  const int64_t warps = p.batch * p.directions * ceil_div(p.channels, 8);
  // Segments double the exponentials, so they pay from about three on; enough for eight warps a multiprocessor, each of
  // 256 tokens at least.
  int64_t segments = 1;
  if (p.length >= 1024 && warps > 0) {
    segments = lesser(p.length / 256, 8 * int64_t{machine.multiprocessors} / warps);
    if (segments < 3) segments = 1;
  }
  plan.segment_tokens = static_cast<int32_t>(round_up(ceil_div(p.length, segments), 16));
  plan.segments = static_cast<int32_t>(ceil_div(p.length, plan.segment_tokens));
  // At one dense warp for every two schedulers (a multiprocessor has four), four times the warps at 12 instead of 27
  // instructions a token take as long.
  const bool few = warps * plan.segments <= 2 * int64_t{machine.multiprocessors};
  plan.layout = p.states <= 8 ? Layout::small : few && plan.segments == 1 ? Layout::wide : Layout::dense;
  return lay_out(plan, p, machine);
}

inline int64_t workspace_bytes(const ScanPlan& plan) {
  return 4 * (plan_detail::round_up(plan.stash_floats, 4) + plan.carry_floats);
}

inline int64_t conv_blocks(const MscopeConvParams& p) {
  constexpr int64_t tokens = kConvThreads / kConvChannels * kConvTokens;
  return plan_detail::ceil_div(p.channels, kConvChannels) * plan_detail::ceil_div(p.length, tokens) * p.batch;
}

}  // namespace mscope

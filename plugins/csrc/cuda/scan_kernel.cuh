// The selective scan, one direction or both. A block takes some channels of one image through its segment of the
// tokens, a chunk at a time, in four phases with a barrier between: stage rows, make steps (scan_stage.cuh), scan, gate
// and write.
//
// Both directions run in one block, the first from the front, the second from the back. Whichever reaches a chunk first
// leaves its sum in a float32 stash, the other adds to it, gates and writes: no atomics, and the same order every time.
#pragma once

#include "cuda/scan_stage.cuh"

namespace mscope {

// Sums v[i] over the LANES threads of a channel; thread `lane` gets the sum of v[lane] in v[0]. Each step exchanges
// half of what is left, which takes LANES - 1 shuffles for LANES sums where one butterfly a sum would take LANES
// log2(LANES). Written as a recursion, so that every index is known when compiling and v stays in registers.
template <int HALF, int LANES>
MSCOPE_DEVICE void sum_for_lane(float (&v)[LANES], int lane) {
  const bool upper = (lane & HALF) != 0;
  MSCOPE_UNROLL
  for (int i = 0; i < HALF; ++i) {
    const float keep = upper ? v[i + HALF] : v[i];
    const float give = upper ? v[i] : v[i + HALF];
    v[i] = keep + __shfl_xor_sync(0xffffffffu, give, HALF);
  }
  if constexpr (HALF > 1) sum_for_lane<HALF / 2>(v, lane);
}

template <int STATES>
MSCOPE_DEVICE void load_states(const float* from, float (&to)[STATES]) {
  if (STATES == 4) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    to[0] = v.x, to[1 % STATES] = v.y, to[2 % STATES] = v.z, to[3 % STATES] = v.w;
  } else if (STATES == 2) {
    const float2 v = *reinterpret_cast<const float2*>(from);
    to[0] = v.x, to[1 % STATES] = v.y;
  } else {
    MSCOPE_UNROLL
    for (int n = 0; n < STATES; ++n) to[n] = from[n];
  }
}

// A thread's share of its channel: which, and where its numbers lie.
struct ScanThread {
  int direction, in_block, lane;
  int64_t channel;
  bool real;  // a channel behind the last one scans zeros: its warp needs it for the shuffles
};

// A log2(e) of states [first, first + STATES); -1 where there is none, so that nothing overflows.
template <int STATES>
MSCOPE_DEVICE void load_decay(const MscopeScanParams& p, const ScanThread& me, int first, Lane (&a2)[STATES]) {
  const float* A = p.direction[me.direction].A + me.channel * p.states;
  MSCOPE_UNROLL
  for (int n = 0; n < STATES; ++n) a2[n] = me.real && first + n < p.states ? fetch(A + first + n) * kLog2E : -1.0f;
}

// LANES tokens of STATES states; part[i] takes this thread's share of C . h of token i, or adds it to what is there.
// Returns the sum of the steps, where that is asked for.
template <int LANES, int STATES, bool SUMMARY, bool ADD>
MSCOPE_DEVICE float scan_group(Lane (&h)[STATES], const Lane (&a2)[STATES], const float* row, int row_floats,
                               int c_offset, const float2* step, int step_stride, float (&part)[LANES]) {
  float elapsed = 0.0f;
  MSCOPE_UNROLL
  for (int i = 0; i < LANES; ++i) {
    const float2 now = step[i * step_stride];
    float B[STATES], C[STATES] = {};
    load_states(row + i * row_floats, B);
    if (!SUMMARY) load_states(row + i * row_floats + c_offset, C);
    const Token<Lane> token{Lane(now.x), Lane(now.x * now.y)};
    const Lane y = advance(h, token, &a2[0].v, 1, B, C);
    if (SUMMARY) elapsed += now.x;
    if (!SUMMARY) part[i] = ADD ? part[i] + y.v : y.v;
  }
  return elapsed;
}

// The shares of LANES tokens become their y, each in the place of its step.
template <int LANES>
MSCOPE_DEVICE void write_group(float (&part)[LANES], int lane, float2* step, int step_stride) {
  sum_for_lane<LANES / 2>(part, lane);
  __syncwarp();  // every thread of the channel has read these steps
  step[lane * step_stride].x = part[0];
}

// What a segment passes on: for each channel its states at the segment's end, started from zero, and the sum of its
// steps, which says how much of what came before is left. Stored as [batch][segment][direction][channel][states | sum].
MSCOPE_DEVICE float* carry_of(const MscopeScanParams& p, const ScanPlan& plan, const ScanBlock& block, int segment,
                              const ScanThread& me) {
  float* carries = static_cast<float*>(p.workspace) + (plan.stash_floats + 3) / 4 * 4;
  const int64_t row = ((block.batch * plan.segments + segment) * p.directions + me.direction) * p.channels + me.channel;
  return carries + row * (p.states + 1);
}

// The states that the segments before this one (in the order of the scan) leave behind.
template <int STATES>
MSCOPE_DEVICE void enter_segment(const MscopeScanParams& p, const ScanPlan& plan, const ScanBlock& block,
                                 const ScanThread& me, int first, const Lane (&a2)[STATES], Lane (&h)[STATES]) {
  MSCOPE_UNROLL
  for (int n = 0; n < STATES; ++n) h[n] = 0.0f;
  if (plan.segments == 1 || !me.real) return;
  const bool reverse = p.direction[me.direction].reverse != 0;
  const int before = reverse ? plan.segments - 1 - block.segment : block.segment;
  MSCOPE_NO_UNROLL
  for (int i = 0; i < before; ++i) {
    const float* carry = carry_of(p, plan, block, reverse ? plan.segments - 1 - i : i, me);
    const float elapsed = carry[p.states];
    MSCOPE_UNROLL
    for (int n = 0; n < STATES; ++n) {
      if (first + n < p.states) h[n] = fma(exp2_decay(Lane(elapsed) * a2[n]), h[n], Lane(carry[first + n]));
    }
  }
}

// The recurrence over one chunk, states in registers. Returns the sum of the chunk's steps for a SUMMARY.
template <int LANES, int STATES, bool SUMMARY>
MSCOPE_DEVICE float scan_chunk(const MscopeScanParams& p, const ScanPlan& plan, const ScanBlock& block,
                               const ScanThread& me, int iteration, Lane (&h)[STATES], const Lane (&a2)[STATES]) {
  const ChunkView view = view_of(block, plan, p.direction[me.direction].reverse != 0, iteration);
  const int stride = 1 << plan.block_log2;
  const float* row = block.rows + me.direction * plan.chunk * plan.row_floats + 4 * plan.rank_quads + me.lane * STATES;
  float2* step = block.steps + ((me.direction * plan.chunk) << plan.block_log2) + me.in_block;
  float elapsed = 0.0f;
  MSCOPE_NO_UNROLL
  for (int s = 0; s < view.count; s += LANES) {
    float part[LANES];
    // All states in one turn: C lies behind B at a distance known when compiling.
    constexpr int c_offset = LANES * STATES;
    elapsed += scan_group<LANES, STATES, SUMMARY, false>(h, a2, row, plan.row_floats, c_offset, step, stride, part);
    if (!SUMMARY) write_group(part, me.lane, step, stride);
    row += LANES * plan.row_floats;
    step += LANES * stride;
  }
  return elapsed;
}

// The same for more states than the threads of a channel hold: these go through the registers in turns.
template <int LANES, int STATES, bool SUMMARY>
MSCOPE_DEVICE float scan_chunk_in_turns(const MscopeScanParams& p, const ScanPlan& plan, const ScanBlock& block,
                                        const ScanThread& me, int iteration) {
  const ChunkView view = view_of(block, plan, p.direction[me.direction].reverse != 0, iteration);
  const int turns = plan.padded_states / (LANES * STATES), stride = 1 << plan.block_log2;
  const float* row = block.rows + me.direction * plan.chunk * plan.row_floats + 4 * plan.rank_quads;
  float2* step = block.steps + ((me.direction * plan.chunk) << plan.block_log2) + me.in_block;
  float* kept = block.states + ((me.direction << plan.block_log2) + me.in_block) * plan.padded_states;
  float elapsed = 0.0f;
  MSCOPE_NO_UNROLL
  for (int s = 0; s < view.count; s += LANES) {
    float part[LANES] = {};
    MSCOPE_NO_UNROLL
    for (int turn = 0; turn < turns; ++turn) {
      const int first = (turn * LANES + me.lane) * STATES;
      Lane h[STATES], a2[STATES];
      load_decay(p, me, first, a2);
      MSCOPE_UNROLL
      for (int n = 0; n < STATES; ++n) h[n] = kept[first + n];
      const float passed = scan_group<LANES, STATES, SUMMARY, true>(h, a2, row + first, plan.row_floats,
                                                                    plan.padded_states, step, stride, part);
      if (turn == 0) elapsed += passed;
      MSCOPE_UNROLL
      for (int n = 0; n < STATES; ++n) kept[first + n] = h[n].v;
    }
    if (!SUMMARY) write_group(part, me.lane, step, stride);
    row += LANES * plan.row_floats;
    step += LANES * stride;
  }
  return elapsed;
}

// y of one token and channel in one direction, with the skip, from where scan_chunk left it.
MSCOPE_DEVICE float with_skip(const ScanPlan& plan, const ScanBlock& block, int direction, int s, int in_block,
                              float D) {
  const float2 yx = block.steps[((direction * plan.chunk + s) << plan.block_log2) + in_block];
  return skip(Lane(yx.x), Lane(D), Lane(yx.y)).v;
}

template <class T>
MSCOPE_DEVICE void gate_and_write(const MscopeScanParams& p, const ScanBlock& block, int token, int channel, float y) {
  if (p.z.data != nullptr) y = gate(Lane(y), Lane(fetch(row_of<T>(p.z, block.batch, token) + channel))).v;
  narrow(y, const_cast<T*>(row_of<T>(p.y, block.batch, token))[channel]);
}

template <class T>
MSCOPE_DEVICE void finish_chunk(const MscopeScanParams& p, const ScanPlan& plan, const ScanBlock& block,
                                int iteration) {
  const int in_block = threadIdx.x & ((1 << plan.block_log2) - 1);
  const int channel = block.first_channel + in_block;
  if (channel >= p.channels) return;
  const int first = threadIdx.x >> plan.block_log2, stride = blockDim.x >> plan.block_log2;
  const int mirrored = block.chunks - 1 - iteration;
  float D[2] = {fetch(p.direction[0].D + channel), 0.0f};
  if (p.directions == 2) D[1] = fetch(p.direction[1].D + channel);

  if (p.directions == 1 || iteration == mirrored) {
    const ChunkView view = view_of(block, plan, p.direction[0].reverse != 0, iteration);
    MSCOPE_UNROLL_4
    for (int s = first; s < view.count; s += stride) {
      float y = with_skip(plan, block, 0, s, in_block, D[0]);
      if (p.directions == 2) y = 0.5f * (y + with_skip(plan, block, 1, view.count - 1 - s, in_block, D[1]));
      gate_and_write<T>(p, block, view.first + s * view.step, channel, y);
    }
    return;
  }
  float* stash = static_cast<float*>(p.workspace) + block.batch * p.length * p.channels + channel;
  MSCOPE_UNROLL
  for (int direction = 0; direction < 2; ++direction) {
    const ChunkView view = view_of(block, plan, direction == 1, iteration);
    MSCOPE_UNROLL_4
    for (int s = first; s < view.count; s += stride) {
      const int token = view.first + s * view.step;
      const float y = with_skip(plan, block, direction, s, in_block, D[direction]);
      float* other = stash + token * p.channels;
      if (iteration < mirrored)
        *other = y;
      else
        gate_and_write<T>(p, block, token, channel, 0.5f * (y + *other));
    }
  }
}

// Launched with plan.threads threads a block and plan.shared_bytes of shared memory. SUMMARY finds the carries only.
template <class T, int LANES, int STATES, bool SUMMARY>
MSCOPE_KERNEL(max_threads(LANES), min_blocks(LANES))
scan_kernel(MSCOPE_CONSTANT MscopeScanParams p, MSCOPE_CONSTANT ScanPlan plan) {
  MSCOPE_SHARED(shared);
  const ScanBlock block = locate(p, plan, shared);
  const int thread = static_cast<int>(threadIdx.x);
  const bool scans = thread < plan.scan_threads;
  const bool in_turns = plan.padded_states > LANES * STATES;

  ScanThread me;
  me.lane = thread % LANES;
  me.in_block = (thread / LANES) & ((1 << plan.block_log2) - 1);
  me.direction = scans ? (thread / LANES) >> plan.block_log2 : 0;
  me.channel = block.first_channel + me.in_block;
  me.real = me.channel < p.channels;

  Lane h[STATES], a2[STATES];
  float elapsed = 0.0f;
  if (scans) {
    const int turns = plan.padded_states / (LANES * STATES);
    MSCOPE_NO_UNROLL
    for (int turn = 0; turn < turns; ++turn) {
      const int state = (turn * LANES + me.lane) * STATES;
      load_decay(p, me, state, a2);
      if (SUMMARY) {
        MSCOPE_UNROLL
        for (int n = 0; n < STATES; ++n) h[n] = 0.0f;
      } else {
        enter_segment(p, plan, block, me, state, a2, h);
      }
      if (in_turns) {
        float* kept = block.states + ((me.direction << plan.block_log2) + me.in_block) * plan.padded_states + state;
        MSCOPE_UNROLL
        for (int n = 0; n < STATES; ++n) kept[n] = h[n].v;
      }
    }
  }
  if (p.rank > 0) stage_weights<T>(p, plan, block);

  MSCOPE_NO_UNROLL
  for (int iteration = 0; iteration < block.chunks; ++iteration) {
    // No barrier before staging: the rows were last read before the barrier that ends the scan.
    stage_rows<T, kRowsInFlight<LANES>>(p, plan, block, iteration);
    __syncthreads();
    make_steps<T>(p, plan, block, iteration);
    __syncthreads();
    if (scans) {
      elapsed += in_turns ? scan_chunk_in_turns<LANES, STATES, SUMMARY>(p, plan, block, me, iteration)
                          : scan_chunk<LANES, STATES, SUMMARY>(p, plan, block, me, iteration, h, a2);
    }
    __syncthreads();
    if (!SUMMARY) finish_chunk<T>(p, plan, block, iteration);
  }

  if (SUMMARY && scans && me.real) {
    float* carry = carry_of(p, plan, block, block.segment, me);
    const int turns = plan.padded_states / (LANES * STATES);
    MSCOPE_NO_UNROLL
    for (int turn = 0; turn < turns; ++turn) {
      const int state = (turn * LANES + me.lane) * STATES;
      const float* kept = block.states + ((me.direction << plan.block_log2) + me.in_block) * plan.padded_states + state;
      MSCOPE_UNROLL
      for (int n = 0; n < STATES; ++n)
        if (state + n < p.states) carry[state + n] = in_turns ? kept[n] : h[n].v;
    }
    if (me.lane == 0) carry[p.states] = elapsed;
  }
}

}  // namespace mscope

// The two phases of a chunk that come before its recurrence: rows of dt, B and C into shared memory, and from dt and x
// each token's step size.
#pragma once

#include "cuda/lane.cuh"
#include "cuda/params.h"
#include "cuda/plan.h"
#include "cuda/storage.cuh"

namespace mscope {

// A direction's tokens of one chunk, in the order of its scan.
struct ChunkView {
  int first, step;  // scan index s is token first + s * step
  int count;
};

// Where a block works, and what it keeps in shared memory.
struct ScanBlock {
  int64_t batch;
  int segment, first_channel;
  int begin, end, chunks;  // the segment's tokens
  float* rows;             // [direction][chunk][row_floats]   dt | B | C of a token
  float2* steps;           // [direction][chunk][channel]      (delta, x), later (y, x)
  float* weights;          // [direction][channel][weight_floats]
  float* states;           // [direction][channel][padded_states], only where the states go in turns
};

MSCOPE_DEVICE ScanBlock locate(const MscopeScanParams& p, const ScanPlan& plan, float* shared) {
  ScanBlock block;
  const unsigned id = blockIdx.x;
  block.first_channel = static_cast<int>(id % plan.groups)
                        << plan.block_log2;  // neighbours share rows: they run together
  const unsigned rest = id / plan.groups;
  block.segment = static_cast<int>(rest % plan.segments);
  block.batch = rest / plan.segments;
  block.begin = block.segment * plan.segment_tokens;
  const int length = static_cast<int>(p.length);
  block.end = block.begin + plan.segment_tokens < length ? block.begin + plan.segment_tokens : length;
  block.chunks = (block.end - block.begin + plan.chunk - 1) / plan.chunk;
  const int directions = static_cast<int>(p.directions), channels = directions << plan.block_log2;
  block.rows = shared;
  block.steps = reinterpret_cast<float2*>(block.rows + directions * plan.chunk * plan.row_floats);
  block.weights = reinterpret_cast<float*>(block.steps + (plan.chunk * channels));
  block.states = block.weights + channels * plan.weight_floats;
  return block;
}

// Both directions cut the segment at the same tokens, so that a chunk of one is a chunk of the other.
MSCOPE_DEVICE ChunkView view_of(const ScanBlock& block, const ScanPlan& plan, bool reverse, int iteration) {
  const int index = reverse ? block.chunks - 1 - iteration : iteration;
  const int first = block.begin + index * plan.chunk;
  const int count = block.end - first < plan.chunk ? block.end - first : plan.chunk;
  return {reverse ? first + count - 1 : first, reverse ? -1 : 1, count};
}

MSCOPE_DEVICE int padded(int count) { return (count + 15) & ~15; }

template <class T>
MSCOPE_DEVICE const T* row_of(const MscopeRows& rows, int64_t batch, int token) {
  return static_cast<const T*>(rows.data) + batch * rows.batch + token * rows.row;
}

// Elements [4 quad, 4 quad + 4) of a row of `size`, zeros behind its end.
template <class T>
MSCOPE_DEVICE float4 quad_of(const T* row, int quad, int size, bool vector) {
  const int i = 4 * quad;
  if (vector) return i < size ? fetch4(row + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  return make_float4(i < size ? fetch(row + i) : 0.0f, i + 1 < size ? fetch(row + i + 1) : 0.0f,
                     i + 2 < size ? fetch(row + i + 2) : 0.0f, i + 3 < size ? fetch(row + i + 3) : 0.0f);
}

template <class T>
MSCOPE_DEVICE void stage_weights(const MscopeScanParams& p, const ScanPlan& plan, const ScanBlock& block) {
  const int channels = static_cast<int>(p.directions) << plan.block_log2, rank = static_cast<int>(p.rank);
  MSCOPE_NO_UNROLL
  for (int row = threadIdx.x / 16; row < channels; row += blockDim.x / 16) {
    const int direction = row >> plan.block_log2;
    const int64_t channel = block.first_channel + (row & ((1 << plan.block_log2) - 1));
    const T* source = static_cast<const T*>(p.direction[direction].dt_weight) + channel * rank;
    MSCOPE_NO_UNROLL
    for (int r = threadIdx.x % 16; r < 4 * plan.rank_quads; r += 16)
      block.weights[row * plan.weight_floats + r] = r < rank && channel < p.channels ? fetch(source + r) : 0.0f;
  }
}

// Sixteen threads a row, each four neighbouring elements at a time. Rows behind the end of a chunk become zeros: a step
// of size zero leaves the state as it is. IN_FLIGHT rows are loaded before the first is stored: that many latencies
// pass at once, for as many times four registers.
template <class T, int IN_FLIGHT>
MSCOPE_DEVICE void stage_rows(const MscopeScanParams& p, const ScanPlan& plan, const ScanBlock& block, int iteration) {
  const int states = static_cast<int>(p.states), rank = static_cast<int>(p.rank);
  const int state_quads = plan.padded_states / 4, quads = plan.rank_quads + 2 * state_quads;
  const int rows = static_cast<int>(p.directions) * plan.chunk, stride = blockDim.x / 16;
  const bool vector = plan.vector_rows != 0;
  MSCOPE_NO_UNROLL
  for (int quad = threadIdx.x % 16; quad < quads; quad += 16) {
    const int part = quad < plan.rank_quads ? 0 : quad < plan.rank_quads + state_quads ? 1 : 2;
    const int inside = part == 0 ? quad : quad - plan.rank_quads - (part - 1) * state_quads;
    MSCOPE_NO_UNROLL
    for (int first = threadIdx.x / 16; first < rows; first += IN_FLIGHT * stride) {
      float4 held[IN_FLIGHT];
      MSCOPE_UNROLL
      for (int i = 0; i < IN_FLIGHT; ++i) {
        const int row = first + i * stride;
        const int direction = row < plan.chunk ? 0 : 1, s = row - direction * plan.chunk;
        held[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (row < rows) {
          const MscopeScanDirection& from = p.direction[direction];
          const ChunkView view = view_of(block, plan, from.reverse != 0, iteration);
          const MscopeRows& source = part == 0 ? from.delta : part == 1 ? from.B : from.C;
          if (s < view.count)
            held[i] = quad_of(row_of<T>(source, block.batch, view.first + s * view.step), inside,
                              part == 0 ? rank : states, vector);
        }
      }
      MSCOPE_UNROLL
      for (int i = 0; i < IN_FLIGHT; ++i) {
        const int row = first + i * stride;
        if (row < rows) *reinterpret_cast<float4*>(block.rows + row * plan.row_floats + 4 * quad) = held[i];
      }
    }
  }
}

// delta after projection, bias and softplus, and x, of four tokens at a time, so that a weight is read once for four
// uses.
template <class T>
MSCOPE_DEVICE void make_steps(const MscopeScanParams& p, const ScanPlan& plan, const ScanBlock& block, int iteration) {
  const int in_block = threadIdx.x & ((1 << plan.block_log2) - 1);
  const int channel = block.first_channel + in_block;
  const bool real = channel < p.channels;
  const int fours = plan.chunk / 4, items = static_cast<int>(p.directions) * fours;
  MSCOPE_NO_UNROLL
  for (int item = threadIdx.x >> plan.block_log2; item < items; item += blockDim.x >> plan.block_log2) {
    const int direction = item < fours ? 0 : 1, s0 = 4 * (item - direction * fours);
    const MscopeScanDirection& from = p.direction[direction];
    const ChunkView view = view_of(block, plan, from.reverse != 0, iteration);
    if (s0 >= padded(view.count)) continue;
    float x[4], delta[4];
    MSCOPE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const bool there = real && s0 + i < view.count;
      const int token = view.first + (s0 + i) * view.step;
      x[i] = there ? fetch(row_of<T>(from.x, block.batch, token) + channel) : 0.0f;
      delta[i] = there && p.rank == 0 ? fetch(row_of<T>(from.delta, block.batch, token) + channel) : 0.0f;
    }
    const float bias = real && from.dt_bias != nullptr ? fetch(from.dt_bias + channel) : 0.0f;
    const float* row = block.rows + (direction * plan.chunk + s0) * plan.row_floats;
    const float* weight = block.weights + ((direction << plan.block_log2) + in_block) * plan.weight_floats;
    MSCOPE_NO_UNROLL
    for (int quad = 0; quad < plan.rank_quads; ++quad) {
      const float4 w = *reinterpret_cast<const float4*>(weight + 4 * quad);
      MSCOPE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float4 dt = *reinterpret_cast<const float4*>(row + i * plan.row_floats + 4 * quad);
        delta[i] = fmaf(dt.w, w.w, fmaf(dt.z, w.z, fmaf(dt.y, w.y, fmaf(dt.x, w.x, delta[i]))));
      }
    }
    float2* steps = block.steps + ((direction * plan.chunk + s0) << plan.block_log2) + in_block;
    MSCOPE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const bool there = real && s0 + i < view.count;
      const float d = token(Lane(delta[i]), Lane(bias), Lane(x[i]), p.delta_softplus != 0).delta.v;
      steps[i << plan.block_log2] = make_float2(there ? d : 0.0f, x[i]);
    }
  }
}

}  // namespace mscope

// The selective scan for inference: one block of channels of one image, one or both directions.
//
// Tokens go in chunks, and a chunk in three passes, each with its own constants in registers: delta (the projection of dt,
// softplus) and D x; the recurrence, a group of states at a time with the states in registers; the gate. What passes
// between them is a few kilobytes on the stack.

#include <stddef.h>

#include "cpu/inference_exp.h"
#include "cpu/inference_kernels.h"
#include "cpu/inference_storage.h"
#include "scan/denormals.h"
#include "scan/step.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {
namespace {

using inference::kStatesInPlace;
using inference::ScanDirection;
using inference::ScanProblem;
using inference::Storage;

constexpr int kWidth = Vec::width;
constexpr int kChunk = 32;
// Parameters of a token (dt, B, C) are widened to float32 in slices of this many.
constexpr int kSlice = 16;
// States that stay in registers next to the exponential's constants: of 32 registers 16, of 16 eight (measured: four are
// slower, as they pass over a chunk twice as often).
#if MSCOPE_ISA_ID == MSCOPE_ISA_ID_avx512 || MSCOPE_ISA_ID == MSCOPE_ISA_ID_neon
constexpr int kStates = 16;
#else
constexpr int kStates = 8;
#endif
// States whose exponentials go stage by stage together: 3 to 5 % on AVX-512 and AVX2 against one by one; four give no more.
constexpr int kStageStates = 2;

struct alignas(64) Chunk {
  float delta[kChunk * kWidth];
  float input[kChunk * kWidth];  // delta * x
  float y[kChunk * kWidth];
  int64_t row[kChunk];  // the token's row of (batch * tokens), in the order of the recurrence
  int count;
  bool wild;  // some delta is negative or huge: the slow exponential
};

// Rows of scalars that every lane multiplies: in place where they are float32, else copied and widened, a slice at a time.
template <class T>
struct Rows {
  alignas(64) float copy[kChunk * kSlice];
  const float* row[kChunk];

  MSCOPE_INLINE void take(T type, const void* base, int64_t stride, const Chunk& chunk, int64_t first, int64_t count) {
    const auto* values = static_cast<const typename T::type*>(base) + first;
    for (int k = 0; k < chunk.count; ++k) {
      for (int64_t i = 0; i < count; ++i) copy[k * kSlice + i] = widen(type, values[chunk.row[k] * stride + i]);
      row[k] = copy + k * kSlice;
    }
  }
};
template <>
struct Rows<Float32> {
  const float* row[kChunk];

  MSCOPE_INLINE void take(Float32, const void* base, int64_t stride, const Chunk& chunk, int64_t first, int64_t) {
    for (int k = 0; k < chunk.count; ++k) row[k] = static_cast<const float*>(base) + chunk.row[k] * stride + first;
  }
};

// delta before its bias: the projection of dt. Four tokens share each load of a weight.
template <class T>
MSCOPE_INLINE void project_dt(T type, const ScanProblem& p, const ScanDirection& d, const float* weight, Chunk& chunk) {
  Rows<T> dt;
  for (int64_t first = 0; first < p.rank; first += kSlice) {
    const int64_t count = p.rank - first < kSlice ? p.rank - first : kSlice;
    dt.take(type, d.delta, d.delta_row, chunk, first, count);
    const float* const w = weight + first * kWidth;
    for (int k = 0; k < chunk.count; k += 4) {
      const int last = chunk.count - 1;
      const float* const dt0 = dt.row[k];
      const float* const dt1 = dt.row[k + 1 < last ? k + 1 : last];
      const float* const dt2 = dt.row[k + 2 < last ? k + 2 : last];
      const float* const dt3 = dt.row[k + 3 < last ? k + 3 : last];
      float* const out = chunk.delta + k * kWidth;
      Vec s0(0.0f), s1(0.0f), s2(0.0f), s3(0.0f);
      if (first > 0) {
        s0 = Vec::load(out), s1 = Vec::load(out + kWidth);
        s2 = Vec::load(out + 2 * kWidth), s3 = Vec::load(out + 3 * kWidth);
      }
      for (int64_t r = 0; r < count; ++r) {
        const Vec wr = Vec::load(w + r * kWidth);
        s0 = fma(Vec(dt0[r]), wr, s0);
        s1 = fma(Vec(dt1[r]), wr, s1);
        s2 = fma(Vec(dt2[r]), wr, s2);
        s3 = fma(Vec(dt3[r]), wr, s3);
      }
      // kChunk is a multiple of four: what is written past the last token is never read.
      s0.store(out), s1.store(out + kWidth), s2.store(out + 2 * kWidth), s3.store(out + 3 * kWidth);
    }
  }
}

// Fills delta, input and y = D x of a chunk; finds out whether the fast exponential takes its deltas.
template <class T>
MSCOPE_INLINE void prepare(T type, const ScanProblem& p, const ScanDirection& d, const float* constants, int64_t channel,
                           int count, const Exponential<Vec>& e, Chunk& chunk) {
  using Element = typename T::type;
  const float* const tail = constants + (p.states + p.rank) * kWidth;
  const Vec bias = Vec::load(tail), D = Vec::load(tail + kWidth), limit = Vec::load(tail + 2 * kWidth);
  const Element* const x = static_cast<const Element*>(d.x) + channel;
  if (p.rank > 0) project_dt(type, p, d, constants + p.states * kWidth, chunk);
  const Element* const given = p.rank > 0 ? nullptr : static_cast<const Element*>(d.delta) + channel;
  Vec excess(-1.0f);
#pragma GCC unroll 2
  for (int k = 0; k < chunk.count; ++k) {
    Vec delta = given != nullptr ? load(type, given + chunk.row[k] * d.delta_row, count)
                                 : Vec::load(chunk.delta + k * kWidth);
    delta = delta + bias;
    if (p.softplus) delta = softplus(e, delta);
    else excess = max(Vec(0.0f) - delta, excess);
    const Vec input = load(type, x + chunk.row[k] * d.x_row, count);
    delta.store(chunk.delta + k * kWidth);
    (delta * input).store(chunk.input + k * kWidth);
    (D * input).store(chunk.y + k * kWidth);
    excess = max(delta - limit, excess);
  }
  float lanes[kWidth];
  excess.store(lanes);
  chunk.wild = false;
  // NaN compares false: the fast exponential lets it through as well as the slow one.
  for (int i = 0; i < kWidth; ++i) chunk.wild |= lanes[i] > 0.0f;
}

// Tokens of a chunk through STATES states. a2 and state: (STATES, width).
template <int STATES, bool WILD>
MSCOPE_INLINE void recur(Chunk& chunk, const float* a2, const float* const* B, const float* const* C,
                         const Exponential<Vec>& e, float* state) {
  constexpr int kStage = STATES % kStageStates == 0 ? kStageStates : 1;
  Vec h[STATES];
#pragma GCC unroll 16
  for (int n = 0; n < STATES; ++n) h[n] = Vec::load(state + n * kWidth);
  const Exponential<Vec> exponential = e;  // a copy, so that stores cannot alias its tables
  for (int k = 0; k < chunk.count; ++k) {
    const Vec delta = Vec::load(chunk.delta + k * kWidth), input = Vec::load(chunk.input + k * kWidth);
    const float *const Bk = B[k], *const Ck = C[k];
    // Two sums, or the additions would wait for each other.
    Vec even = Vec::load(chunk.y + k * kWidth), odd(0.0f);
#pragma GCC unroll 16
    for (int n = 0; n < STATES; n += kStage) {
      Vec decay[kStage];
      if (WILD) {
        for (int i = 0; i < kStage; ++i) decay[i] = exp2_any(delta * Vec::load(a2 + (n + i) * kWidth));
      } else {
        exponential.decays(delta, a2 + n * kWidth, decay);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kStage; ++i) h[n + i] = fma(decay[i], h[n + i], input * Vec(Bk[n + i]));
#pragma GCC unroll 4
      for (int i = 0; i < kStage; ++i) (i % 2 == 0 ? even : odd) = fma(Vec(Ck[n + i]), h[n + i], i % 2 == 0 ? even : odd);
    }
    (even + odd).store(chunk.y + k * kWidth);
  }
#pragma GCC unroll 16
  for (int n = 0; n < STATES; ++n) h[n].store(state + n * kWidth);
}

// As recur, out of line: a register allocation of its own, and one copy for the three storage types.
template <int STATES, bool WILD>
__attribute__((noinline)) void recur_states(Chunk& chunk, const float* a2, const float* const* B, const float* const* C,
                                            const Exponential<Vec>& e, float* state) {
  recur<STATES, WILD>(chunk, a2, B, C, e, state);
}

template <class T>
MSCOPE_INLINE void recur_all(T type, const ScanProblem& p, const ScanDirection& d, const float* constants,
                             const Exponential<Vec>& e, float* state, Chunk& chunk) {
  static_assert(kStates <= kSlice, "a slice of B and C holds the states of a group");
  Rows<T> B, C;
  int64_t n = 0;
  while (n < p.states) {
    const int64_t left = p.states - n;
    const int group = chunk.wild || left < kStates ? (left >= 4 ? 4 : 1) : kStates;
    const int half = !chunk.wild && group < kStates && left >= 8 && kStates > 8 ? 8 : group;
    const int64_t slice = half;
    B.take(type, d.B, d.B_row, chunk, n, slice);
    C.take(type, d.C, d.C_row, chunk, n, slice);
    const float* const a2 = constants + n * kWidth;
    float* const h = state + n * kWidth;
    if (chunk.wild) {
      if (group == 4) recur_states<4, true>(chunk, a2, B.row, C.row, e, h);
      else recur_states<1, true>(chunk, a2, B.row, C.row, e, h);
    } else if (slice == kStates) {
      recur_states<kStates, false>(chunk, a2, B.row, C.row, e, h);
    } else if (slice == 8) {
      recur_states<8, false>(chunk, a2, B.row, C.row, e, h);
    } else if (slice == 4) {
      recur_states<4, false>(chunk, a2, B.row, C.row, e, h);
    } else {
      recur_states<1, false>(chunk, a2, B.row, C.row, e, h);
    }
    n += slice;
  }
}

// Where a first direction leaves its sum for the second: y itself where that loses nothing.
template <class T>
MSCOPE_INLINE float* sum_of(T, const ScanProblem& p) {
  return p.sum;
}
MSCOPE_INLINE float* sum_of(Float32, const ScanProblem& p) { return static_cast<float*>(p.y); }

template <class T>
MSCOPE_INLINE void finish(T type, const ScanProblem& p, bool last, int64_t channel, int count, const Exponential<Vec>& e,
                          const Chunk& chunk) {
  using Element = typename T::type;
  const Element* const z = p.z == nullptr ? nullptr : static_cast<const Element*>(p.z) + channel;
  Element* const y = static_cast<Element*>(p.y) + channel;
  float* const sum = p.directions > 1 ? sum_of(type, p) + channel : nullptr;
  for (int k = 0; k < chunk.count; ++k) {
    const int64_t row = chunk.row[k];
    Vec value = Vec::load(chunk.y + k * kWidth);
    if (!last) {
      store(Float32{}, sum + row * p.channels, value, count);
      continue;
    }
    if (sum != nullptr) value = (value + load(Float32{}, sum + row * p.channels, count)) * Vec(0.5f);
    if (z != nullptr) value = value * silu(e, load(type, z + row * p.z_row, count));
    store(type, y + row * p.channels, value, count);
  }
}

MSCOPE_INLINE void prefetch(const void* address) { __builtin_prefetch(address, 0, 3); }

// Fetches what the block of channels that follows reads of a chunk: it lies a row apart, which no hardware foresees.
template <class IN, class T>
MSCOPE_INLINE void prefetch_next(IN, T, const ScanProblem& p, const ScanDirection& d, int64_t channel, const Chunk& chunk,
                                 bool last) {
  using Inner = typename IN::type;
  using Element = typename T::type;
  const Inner* const x = static_cast<const Inner*>(d.x) + channel;
  for (int k = 0; k < chunk.count; ++k) prefetch(x + chunk.row[k] * d.x_row);
  if (p.rank == 0)
    for (int k = 0; k < chunk.count; ++k) prefetch(static_cast<const Inner*>(d.delta) + channel + chunk.row[k] * d.delta_row);
  if (last && p.z != nullptr)
    for (int k = 0; k < chunk.count; ++k) prefetch(static_cast<const Element*>(p.z) + channel + chunk.row[k] * p.z_row);
}

// IN: the type of x, delta, B and C; T: of z and y.
template <class IN, class T>
void scan_block(IN inner, T type, const ScanProblem& p, int64_t task) {
  const FlushDenormals flush;
  const Exponential<Vec> e;
  const int64_t blocks = (p.channels + kWidth - 1) / kWidth;
  const int64_t image = task / blocks, block = task % blocks;
  const int64_t channel = block * kWidth;
  const int count = static_cast<int>(p.channels - channel < kWidth ? p.channels - channel : kWidth);
  alignas(64) float in_place[kStatesInPlace * kWidth];
  float* const state = p.states <= kStatesInPlace ? in_place : p.state + task * p.states * kWidth;
  Chunk chunk;
  for (int i = 0; i < p.directions; ++i) {
    const ScanDirection& d = p.direction[i];
    const float* const constants = d.packed + block * (p.states + p.rank + 3) * kWidth;
    const int64_t floats = (p.states + p.rank + 3) * kWidth;
    const bool more = block + 1 < blocks;
    if (more)
      for (int64_t at = 0; at < floats; at += 16) prefetch(constants + floats + at);
    for (int64_t n = 0; n < p.states; ++n) Vec(0.0f).store(state + n * kWidth);
    for (int64_t first = 0; first < p.tokens; first += kChunk) {
      chunk.count = static_cast<int>(p.tokens - first < kChunk ? p.tokens - first : kChunk);
      for (int k = 0; k < chunk.count; ++k)
        chunk.row[k] = image * p.tokens + (d.reverse ? p.tokens - 1 - first - k : first + k);
      if (more) prefetch_next(inner, type, p, d, channel + kWidth, chunk, i == p.directions - 1);
      prepare(inner, p, d, constants, channel, count, e, chunk);
      recur_all(inner, p, d, constants, e, state, chunk);
      finish(type, p, i == p.directions - 1, channel, count, e, chunk);
    }
  }
}

}  // namespace

int64_t scan_tasks(const ScanProblem& p) { return p.batch * ((p.channels + kWidth - 1) / kWidth); }

void scan_task(const ScanProblem& p, int64_t task) {
  switch (p.storage) {
    case Storage::f32: return scan_block(Float32{}, Float32{}, p, task);
    case Storage::f16:
      return p.inner == Storage::f32 ? scan_block(Float32{}, Float16{}, p, task) : scan_block(Float16{}, Float16{}, p, task);
    case Storage::bf16:
      return p.inner == Storage::f32 ? scan_block(Float32{}, Bfloat16{}, p, task)
                                     : scan_block(Bfloat16{}, Bfloat16{}, p, task);
  }
}

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

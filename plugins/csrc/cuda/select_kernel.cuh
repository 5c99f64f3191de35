// Confidence, exit and ranking of the regions on the device: core/cascade.py's decision, one block an image.
//
// Ranking and selection are exact. The confidence is summed in another order than numpy's and with another exp, so that
// it differs by some roundings: the caller raises the threshold by that much, and lets core.cascade have the last word.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/select.h"

namespace mscope {

constexpr int kSelectThreads = 256;
constexpr int kSelectWarps = kSelectThreads / 32;
// Scores and marks of all regions are in shared memory: 32 KiB, which every device gives without being asked.
constexpr int64_t kMostRegions = 4096;

// The same number for every thread, combined in the same order.
template <class Combine>
MSCOPE_DEVICE float over_block(float v, float* words, const Combine& combine) {
  MSCOPE_UNROLL
  for (int mask = 16; mask > 0; mask >>= 1) v = combine(v, __shfl_xor_sync(0xffffffffu, v, mask));
  if (threadIdx.x % 32 == 0) words[threadIdx.x / 32] = v;
  __syncthreads();
  v = words[0];
  MSCOPE_UNROLL
  for (int warp = 1; warp < kSelectWarps; ++warp) v = combine(v, words[warp]);
  __syncthreads();
  return v;
}

// Whether region i comes before region j: the larger score, of equal ones the lower index; NaN last, as numpy sorts it.
MSCOPE_DEVICE bool ranks_before(float a, int i, float b, int j) {
  const bool a_nan = a != a, b_nan = b != b;
  if (a_nan || b_nan) return a_nan == b_nan ? i < j : b_nan;
  return a > b || (a == b && i < j);
}

MSCOPE_KERNEL(kSelectThreads)
select_kernel(MSCOPE_CONSTANT MscopeSelectParams p) {
  MSCOPE_SHARED(shared);
  float* const words = shared;
  float* const scores = words + 32;
  float* const marks = scores + p.regions;
  const int64_t image = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const int regions = static_cast<int>(p.regions), wanted = static_cast<int>(p.selected_regions);

  const float* const logits = p.logits + image * p.classes;
  const float temperature = static_cast<float>(p.temperature);
  float largest = -INFINITY;
  for (int64_t i = thread; i < p.classes; i += kSelectThreads) largest = fmaxf(largest, logits[i] / temperature);
  largest = over_block(largest, words, [](float a, float b) { return fmaxf(a, b); });
  float sum = 0.0f;
  for (int64_t i = thread; i < p.classes; i += kSelectThreads) sum += expf(logits[i] / temperature - largest);
  sum = over_block(sum, words, [](float a, float b) { return a + b; });
  // exp(0) = 1 is the largest term. NaN fails every comparison: such an image goes on.
  const bool goes_on = !(1.0f / sum >= *p.threshold);

  for (int i = thread; i < regions; i += kSelectThreads) scores[i] = p.importance[image * p.regions + i];
  __syncthreads();
  for (int i = thread; i < regions; i += kSelectThreads) {
    int before = 0;
    for (int j = 0; j < regions; ++j) before += ranks_before(scores[j], j, scores[i], i);
    marks[i] = before < wanted ? 1.0f : 0.0f;
  }
  __syncthreads();
  int64_t* const report = p.report + image * (1 + p.selected_regions);
  for (int i = thread; i < regions; i += kSelectThreads) {
    int chosen_before = 0;
    for (int j = 0; j < i; ++j) chosen_before += marks[j] != 0.0f;
    if (marks[i] != 0.0f) {
      p.selected[image * p.selected_regions + chosen_before] = i;
      report[1 + chosen_before] = i;
    } else {
      p.remaining[image * (p.regions - p.selected_regions) + i - chosen_before] = i;
    }
  }
  if (thread == 0) {
    report[0] = goes_on;
    if (p.condition != 0) cudaGraphSetConditional(p.condition, goes_on);
  }
}

inline int run_select(const MscopeSelectParams& p, cudaStream_t stream) {
  const int64_t limit = int64_t{1} << 30;
  if (p.batch < 0 || p.batch > limit || p.classes < 1 || p.classes > limit) return MSCOPE_BAD_SIZE;
  if (p.regions < 1 || p.regions > kMostRegions) return MSCOPE_BAD_SIZE;
  if (p.selected_regions < 0 || p.selected_regions > p.regions) return MSCOPE_BAD_SIZE;
  if (p.condition != 0 && p.batch != 1) return MSCOPE_BAD_SIZE;
  if (p.batch == 0) return MSCOPE_OK;
  if (!p.logits || !p.importance || !p.threshold || !p.report) return MSCOPE_BAD_POINTER;
  if (p.selected_regions > 0 && !p.selected) return MSCOPE_BAD_POINTER;
  if (p.selected_regions < p.regions && !p.remaining) return MSCOPE_BAD_POINTER;
  const int shared = static_cast<int>((32 + 2 * p.regions) * static_cast<int64_t>(sizeof(float)));
  return launch(select_kernel, Grid{p.batch, kSelectThreads, shared}, stream, p);
}

}  // namespace mscope

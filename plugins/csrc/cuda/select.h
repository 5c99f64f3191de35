// What the decision between the two stages is told. Plain C, as params.h; mscope/plugins/cuda_select.py mirrors it.
#pragma once

#include "cuda/params.h"

#ifdef __cplusplus
extern "C" {
#endif

// All pointers are to device memory.
struct MscopeSelectParams {
  int64_t batch, classes, regions, selected_regions;  // B, classes, Nc, K; K from 0 to Nc
  const float* logits;                                // (B, classes), of the coarse stage
  const float* importance;                            // (B, Nc)
  double temperature;                                 // of the softmax, used as float32
  const float* threshold;                             // one number: an image goes on unless confidence >= threshold
  int64_t* selected;                                  // (B, K), written: regions in spatial order
  int64_t* remaining;                                 // (B, Nc - K), written; may be null for K = Nc
  int64_t* report;                                    // (B, 1 + K), written: whether it goes on, and `selected` again
  uint64_t condition;                                 // a cudaGraphConditionalHandle that is set for batch 1; 0: none
};

#ifdef __cplusplus
}
#endif

// An upper bound of the scratch memory that a scan needs, whatever the device: an engine may be built where there is no
// GPU, or for another one. tests/plugins/test_trt_host.py holds it against the plans of many machines.
#pragma once

#include <cstdint>

#include "cuda/plan.h"
#include "trt/check.h"

namespace mscope::trt {

// For every batch, length and channels up to these. plan.h: the sums of the direction that passes first, for two
// directions, and the states at the edges of segments of 256 tokens at least, from 1024 tokens on.
inline int64_t workspace_bound(int64_t batch, int64_t length, int64_t channels, int64_t states, int64_t directions) {
  const long double values = static_cast<long double>(batch) * length * channels * states * directions;
  if (values > 1e17L) throw Refusal("the sizes are too large: their scratch memory cannot be counted");
  const int64_t stash = directions == 2 ? batch * length * channels : 0;
  const int64_t carry = length >= 1024 ? batch * (length / 256) * directions * channels * (states + 1) : 0;
  return 4 * (plan_detail::round_up(stash, 4) + carry);
}

}  // namespace mscope::trt

// Four lanes of 64-bit Arm NEON. The functions mean what their namesakes in scan/scalar.h say.
#pragma once

#include <arm_neon.h>
#include <stdint.h>

#include "scan/hd.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {

struct Neon {
  static constexpr int width = 4;
  // Thirty-two registers, and two pipes or more that wait for four cycles each: eight recurrences keep them busy.
  static constexpr int state_block = 8;

  float32x4_t v;

  Neon() = default;
  MSCOPE_INLINE Neon(float32x4_t value) : v(value) {}
  MSCOPE_INLINE Neon(float value) : v(vdupq_n_f32(value)) {}

  MSCOPE_INLINE static Neon load(const float* p) { return vld1q_f32(p); }
  // The first `count` lanes (0 <= count <= 4), zero in the others; memory past them is not touched.
  MSCOPE_INLINE static Neon load(const float* p, int count) {
    float lanes[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = 0; i < count; ++i) lanes[i] = p[i];
    return vld1q_f32(lanes);
  }
  MSCOPE_INLINE void store(float* p) const { vst1q_f32(p, v); }
  MSCOPE_INLINE void store(float* p, int count) const {
    float lanes[4];
    vst1q_f32(lanes, v);
    for (int i = 0; i < count; ++i) p[i] = lanes[i];
  }
};

MSCOPE_INLINE Neon operator+(Neon a, Neon b) { return vaddq_f32(a.v, b.v); }
MSCOPE_INLINE Neon operator-(Neon a, Neon b) { return vsubq_f32(a.v, b.v); }
MSCOPE_INLINE Neon operator*(Neon a, Neon b) { return vmulq_f32(a.v, b.v); }
MSCOPE_INLINE Neon operator/(Neon a, Neon b) { return vdivq_f32(a.v, b.v); }
MSCOPE_INLINE Neon fma(Neon a, Neon b, Neon c) { return vfmaq_f32(c.v, a.v, b.v); }
MSCOPE_INLINE Neon fnma(Neon a, Neon b, Neon c) { return vfmsq_f32(c.v, a.v, b.v); }
// These return NaN where either is NaN, which is stricter than the contract asks for.
MSCOPE_INLINE Neon max(Neon a, Neon b) { return vmaxq_f32(a.v, b.v); }
MSCOPE_INLINE Neon min(Neon a, Neon b) { return vminq_f32(a.v, b.v); }
MSCOPE_INLINE Neon abs(Neon a) { return vabsq_f32(a.v); }
MSCOPE_INLINE Neon select_nonnegative(Neon test, Neon yes, Neon no) {
  return vbslq_f32(vcgezq_f32(test.v), yes.v, no.v);
}
MSCOPE_INLINE Neon round(Neon a) { return vrndnq_f32(a.v); }
// A NaN in n converts to 0: a factor of 1, and p, NaN as well then, goes through.
MSCOPE_INLINE Neon scale(Neon p, Neon n) {
  const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n.v), vdupq_n_s32(127));
  return vmulq_f32(p.v, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}
MSCOPE_INLINE float sum(Neon a) { return vaddvq_f32(a.v); }

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

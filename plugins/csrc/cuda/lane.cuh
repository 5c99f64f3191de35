// What one CUDA thread computes with: scan/math.h and scan/step.h are written on this type as on every vector type.
//
// Where the special-function unit is as exact as the polynomial in scan/math.h, the functions below take the
// polynomial's place: a non-template overload wins over the template of that name. Errors are NVIDIA's (CUDA C++
// Programming Guide, "Mathematical Functions"), in units in the last place: ex2.approx 2, expf 1, __fdividef 2.
#pragma once

#include <math.h>

#include "cuda/portable.cuh"
#include "scan/step.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {

struct Lane {
  static constexpr int width = 1;

  float v;

  Lane() = default;
  MSCOPE_HD Lane(float value) : v(value) {}

  MSCOPE_HD static Lane load(const float* p) { return *p; }
  MSCOPE_HD void store(float* p) const { *p = v; }
};

MSCOPE_HD Lane operator+(Lane a, Lane b) { return a.v + b.v; }
MSCOPE_HD Lane operator-(Lane a, Lane b) { return a.v - b.v; }
MSCOPE_HD Lane operator*(Lane a, Lane b) { return a.v * b.v; }
MSCOPE_HD Lane fma(Lane a, Lane b, Lane c) { return fmaf(a.v, b.v, c.v); }
// Return b where either is NaN, as scan/scalar.h has it.
MSCOPE_HD Lane max(Lane a, Lane b) { return a.v > b.v ? a.v : b.v; }
MSCOPE_HD Lane min(Lane a, Lane b) { return a.v < b.v ? a.v : b.v; }
MSCOPE_HD Lane abs(Lane a) { return fabsf(a.v); }

// The divisors of scan/math.h are 1 + u and 2 + u, u >= 0. Above 2^126 __fdividef gives 0, where the quotient is below
// 1e-36.
MSCOPE_HD Lane operator/(Lane a, Lane b) {
#if defined(__CUDA_ARCH__)
  return __fdividef(a.v, b.v);
#else
  return a.v / b.v;
#endif
}

MSCOPE_HD Lane exp(Lane x) { return expf(x.v); }

// 2^t, 0 below -126 and exactly 1 at 0: one instruction.
MSCOPE_HD Lane exp2_decay(Lane t) {
#if defined(__CUDA_ARCH__)
  float decay;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(decay) : "f"(t.v));
  return decay;
#else
  return t.v < -126.0f ? 0.0f : exp2f(t.v);
#endif
}

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

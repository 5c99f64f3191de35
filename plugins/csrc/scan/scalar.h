// The one-lane "vector": the fallback instruction set, and what CUDA threads compute with (host and device).
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "scan/hd.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {

struct Scalar {
  static constexpr int width = 1;
  // States whose recurrences run side by side in registers.
  static constexpr int state_block = 4;

  float v;

  Scalar() = default;
  MSCOPE_HD Scalar(float value) : v(value) {}

  MSCOPE_HD static Scalar load(const float* p) { return *p; }
  MSCOPE_HD static Scalar load(const float* p, int count) { return count > 0 ? *p : 0.0f; }
  MSCOPE_HD void store(float* p) const { *p = v; }
  MSCOPE_HD void store(float* p, int count) const {
    if (count > 0) *p = v;
  }
};

MSCOPE_HD Scalar operator+(Scalar a, Scalar b) { return a.v + b.v; }
MSCOPE_HD Scalar operator-(Scalar a, Scalar b) { return a.v - b.v; }
MSCOPE_HD Scalar operator*(Scalar a, Scalar b) { return a.v * b.v; }
MSCOPE_HD Scalar operator/(Scalar a, Scalar b) { return a.v / b.v; }

// a * b + c. Fused only where the machine has it: libm's software fmaf is tens of times slower than two operations.
MSCOPE_HD Scalar fma(Scalar a, Scalar b, Scalar c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__aarch64__)
  return fmaf(a.v, b.v, c.v);
#else
  return a.v * b.v + c.v;
#endif
}
// c - a * b.
MSCOPE_HD Scalar fnma(Scalar a, Scalar b, Scalar c) { return fma(Scalar(-a.v), b, c); }

// Both return b where either is NaN (as x86 does): callers pass the constant first, so that NaN goes through.
MSCOPE_HD Scalar max(Scalar a, Scalar b) { return a.v > b.v ? a.v : b.v; }
MSCOPE_HD Scalar min(Scalar a, Scalar b) { return a.v < b.v ? a.v : b.v; }
MSCOPE_HD Scalar abs(Scalar a) { return fabsf(a.v); }
MSCOPE_HD Scalar select_nonnegative(Scalar test, Scalar yes, Scalar no) { return test.v >= 0.0f ? yes : no; }
MSCOPE_HD float sum(Scalar a) { return a.v; }

// To the nearest integer, ties to even, for |a| < 2^22 and NaN: adding 1.5 * 2^23 leaves no bits for a fraction.
// (rintf without SSE4.1 is a library call.)
MSCOPE_HD Scalar round(Scalar a) {
#if defined(__CUDA_ARCH__)
  return rintf(a.v);
#else
  const float magic = 12582912.0f;
  const float shifted = a.v + magic;  // -ffast-math would fold the two away: the builder never passes it
  return shifted - magic;
#endif
}

// p * 2^n for an integral n in [-127, 127], where n = -127 may flush to 0. The exponent's bits are built directly; NaN in
// n stays out of the integer conversion, whose result would be undefined.
MSCOPE_HD Scalar scale(Scalar p, Scalar n) {
  if (!(n.v >= -127.0f && n.v <= 127.0f)) return p.v * n.v;
  const int32_t bits = (static_cast<int32_t>(n.v) + 127) << 23;
  float factor;
  memcpy(&factor, &bits, sizeof factor);
  return p.v * factor;
}

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

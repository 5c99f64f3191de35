// Flushes denormal numbers to zero while in scope: a state that decays through the denormals would otherwise cost a
// hundred cycles an operation on some machines. The mode belongs to the thread, so every worker makes its own guard.
#pragma once

#include <stdint.h>

#include "scan/hd.h"

#if defined(__x86_64__) || defined(__SSE2__)
#include <immintrin.h>
#endif

namespace mscope {
inline namespace MSCOPE_ISA_NAME {

class FlushDenormals {
 public:
#if defined(__x86_64__) || defined(__SSE2__)
  MSCOPE_INLINE FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }  // FTZ and DAZ
  MSCOPE_INLINE ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  MSCOPE_INLINE FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | (uint64_t{1} << 24)));  // FZ
  }
  MSCOPE_INLINE ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_ = 0;
#else
  FlushDenormals() {}  // no such mode known here: results are the same, only slower
#endif

 public:
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

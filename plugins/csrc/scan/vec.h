// `Vec`: the widest vector of the instruction set that this translation unit is compiled for.
//
// Every vector type has: width, state_block, load / store (whole, or the first `count` lanes), + - * /, fma, fnma, max,
// min, abs, round, scale, select_nonnegative, sum. The arithmetic in scan/math.h and scan/step.h is written on these.
#pragma once

#include "scan/hd.h"
#include "scan/scalar.h"

#if MSCOPE_ISA_ID == MSCOPE_ISA_ID_avx512
#include "scan/avx512.h"
#elif MSCOPE_ISA_ID == MSCOPE_ISA_ID_avx2
#include "scan/avx2.h"
#elif MSCOPE_ISA_ID == MSCOPE_ISA_ID_neon
#include "scan/neon.h"
#endif

namespace mscope {
inline namespace MSCOPE_ISA_NAME {

#if MSCOPE_ISA_ID == MSCOPE_ISA_ID_avx512
using Vec = Avx512;
#elif MSCOPE_ISA_ID == MSCOPE_ISA_ID_avx2
using Vec = Avx2;
#elif MSCOPE_ISA_ID == MSCOPE_ISA_ID_neon
using Vec = Neon;
#else
using Vec = Scalar;
#endif

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope

// What the driver (training.cpp) and the kernels compiled once per instruction set (training_*_isa.cpp) agree on.
#pragma once

#include <stdint.h>

#include "cpu/training.h"

namespace mscope {

// The sequences [first, last) of a batch. A kernel runs on some, with a scratch of its own (sizes in floats). Parameters
// come prepared: transposed, with channels padded to a multiple of `width`, the vector's lanes. `partial` is where the
// gradients of parameters are summed over a kernel's sequences; it is added to, so zero at first.
struct Span {
  int64_t first, last;
};

struct ScanKernels {
  int64_t width;
  int64_t (*forward_scratch)(const MscopeScan&);
  int64_t (*backward_scratch)(const MscopeScan&);
  // a2: (N, padded), A log2(e). partial: (N + 2, padded), for A (transposed), D and delta_bias.
  void (*forward)(const MscopeScan&, const float* a2, Span, float* scratch, float* y);
  void (*backward)(const MscopeScan&, const float* a2, Span, float* scratch, const MscopeScanGrads&, float* partial);
};

struct ConvKernels {
  int64_t width;
  int64_t (*backward_scratch)(const MscopeConv&);
  // taps: (W + 1, padded), the weights transposed and, last, the bias. partial: the same, for their gradients.
  void (*forward)(const MscopeConv&, const float* taps, Span, float* y);
  void (*backward)(const MscopeConv&, const float* taps, Span, float* scratch, const MscopeConvGrads&, float* partial);
};

// MSCOPE_FOR_EACH_ISA comes from the builder: the instruction sets that the files *_isa.cpp were compiled for.
#define MSCOPE_DECLARE_KERNELS(isa)         \
  const ScanKernels* scan_kernels_##isa(); \
  const ConvKernels* conv_kernels_##isa();
MSCOPE_FOR_EACH_ISA(MSCOPE_DECLARE_KERNELS)
#undef MSCOPE_DECLARE_KERNELS

}  // namespace mscope

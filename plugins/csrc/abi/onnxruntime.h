// ONNX Runtime's C interface: the official header where the compiler finds it (-I$ONNXRUNTIME_INCLUDE_DIR), else ours.
#ifndef MSCOPE_ABI_ONNXRUNTIME_H
#define MSCOPE_ABI_ONNXRUNTIME_H

#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>
#define MSCOPE_ORT_HEADER "official"
#elif __has_include(<onnxruntime/core/session/onnxruntime_c_api.h>)
#include <onnxruntime/core/session/onnxruntime_c_api.h>
#define MSCOPE_ORT_HEADER "official"
#else
#include "abi/onnxruntime_minimal.h"
#define MSCOPE_ORT_HEADER "minimal"
#endif

#if defined(ORT_API_VERSION) && ORT_API_VERSION < 17
#error "the onnxruntime_c_api.h found is older than 1.17: unset ONNXRUNTIME_INCLUDE_DIR, or point it at a newer one"
#endif

#include "abi/onnxruntime_slots.h"

// The lowest version of the interface that has all that is used: ShapeInferContext_* and KernelContext_ParallelFor are
// of 1.17. A library that asks for 17 works with every later runtime.
#define MSCOPE_ORT_API_VERSION 17

#endif

// TensorRT's plugin interface: the official headers where the builder names a folder of them, else ours, which
// MSCOPE_TENSORRT_MINIMAL takes in any case.
#ifndef MSCOPE_ABI_TENSORRT_H
#define MSCOPE_ABI_TENSORRT_H

#if !defined(MSCOPE_TENSORRT_MINIMAL) && __has_include(<NvInferRuntime.h>)
#include <NvInferRuntime.h>
#if NV_TENSORRT_MAJOR < 10
#error "the NvInferRuntime.h found is older than TensorRT 10: name the folder of a newer one, or none"
#endif
#define MSCOPE_TENSORRT_TEXT_(x) #x
#define MSCOPE_TENSORRT_TEXT(x) MSCOPE_TENSORRT_TEXT_(x)
#define MSCOPE_TENSORRT_HEADERS MSCOPE_TENSORRT_TEXT(NV_TENSORRT_MAJOR) "." MSCOPE_TENSORRT_TEXT(NV_TENSORRT_MINOR)
#else
#include "abi/tensorrt_minimal.h"
#define MSCOPE_TENSORRT_HEADERS "minimal"
#endif

#include "abi/tensorrt_layout.h"

#endif

// The C interface of libmscope_cuda. Functions return a status: 0, a cudaError_t, or one of MscopeStatus.
#pragma once

#include "cuda/params.h"
#include "cuda/resample.h"
#include "cuda/select.h"

#if defined(MSCOPE_CUDA_BUILD)
#define MSCOPE_CUDA_API __attribute__((visibility("default")))
#else
#define MSCOPE_CUDA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Of the package that the library was built for; mscope/plugins/find.py refuses another.
MSCOPE_CUDA_API int mscope_abi_version(void);

// sizeof MscopeScanParams (0), MscopeConvParams (1), MscopeResampleParams (2) and MscopeSelectParams (3): a binding
// compares them with its own.
MSCOPE_CUDA_API int64_t mscope_cuda_struct_bytes(int which);

// What the library holds code for, as "75 80 86 87 89 90 120 ptx90 ptx120".
MSCOPE_CUDA_API const char* mscope_cuda_targets(void);

// How many devices the driver shows; a status where there is no driver.
MSCOPE_CUDA_API int mscope_cuda_device_count(int* count);

// 0 where the library's kernels load on the device.
MSCOPE_CUDA_API int mscope_cuda_supports(int device);

// Bytes that p.workspace must have on this device. Reads sizes and strides only.
MSCOPE_CUDA_API int mscope_cuda_scan_workspace(const struct MscopeScanParams* p, int dtype, int device, int64_t* bytes);

// Queue the op on a stream (a cudaStream_t, null for the default one) of the device. Nothing waits and nothing is
// allocated, so a call can be captured into a CUDA graph; drivers before CUDA 12.3 want one outside first, at which they
// load the kernel. The pointers must stay valid until the stream is past the call.
MSCOPE_CUDA_API int mscope_cuda_scan(const struct MscopeScanParams* p, int dtype, int device, void* stream);
MSCOPE_CUDA_API int mscope_cuda_conv_silu(const struct MscopeConvParams* p, int dtype, int device, void* stream);

// What surrounds the networks: a picture to the tensor that they take, and the decision between the two stages.
MSCOPE_CUDA_API int mscope_cuda_resample(const struct MscopeResampleParams* p, int device, void* stream);
MSCOPE_CUDA_API int mscope_cuda_select(const struct MscopeSelectParams* p, int device, void* stream);

// A status in words; the string is static.
MSCOPE_CUDA_API const char* mscope_cuda_message(int status);

#ifdef __cplusplus
}
#endif

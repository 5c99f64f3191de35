// The slice of ONNX Runtime's C interface that the custom ops use, declared by this project, because no onnxruntime
// wheel ships headers and `pip install .` must need a compiler and nothing else.
//
// The interface is append-only: a function keeps its slot in OrtApi for ever, so that slots not used here are only
// counted. onnxruntime_slots.h asserts every slot, against this header and against the official one alike.
#ifndef MSCOPE_ABI_ONNXRUNTIME_MINIMAL_H
#define MSCOPE_ABI_ONNXRUNTIME_MINIMAL_H

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define ORT_API_CALL __stdcall
#else
#define ORT_API_CALL
#endif

extern "C" {

// Values of the enumerations that the ops compare or pass on.
enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 = 16
};
enum OrtErrorCode { ORT_OK = 0, ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum OrtAllocatorType { OrtInvalidAllocator = -1, OrtDeviceAllocator = 0, OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeCPUInput = -2, OrtMemTypeCPUOutput = -1, OrtMemTypeDefault = 0 };
enum OrtCustomOpInputOutputCharacteristic {
  INPUT_OUTPUT_REQUIRED = 0,
  INPUT_OUTPUT_OPTIONAL = 1,
  INPUT_OUTPUT_VARIADIC = 2
};

struct OrtStatus;
struct OrtMemoryInfo;
struct OrtValue;
struct OrtTypeInfo;
struct OrtTensorTypeAndShapeInfo;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtCustomOp;
typedef OrtStatus* OrtStatusPtr;

struct OrtAllocator {
  uint32_t version;
  void*(ORT_API_CALL* Alloc)(OrtAllocator* self, size_t bytes);
  void(ORT_API_CALL* Free)(OrtAllocator* self, void* block);
  const OrtMemoryInfo*(ORT_API_CALL* Info)(const OrtAllocator* self);
};

struct OrtApi {
  OrtStatus*(ORT_API_CALL* CreateStatus)(OrtErrorCode code, const char* message) noexcept;  // slot 0
  void* unused_1[1];
  const char*(ORT_API_CALL* GetErrorMessage)(const OrtStatus* status) noexcept;  // 2
  void* unused_3[23];
  OrtStatusPtr(ORT_API_CALL* CreateCustomOpDomain)(const char* domain, OrtCustomOpDomain** out) noexcept;  // 26
  OrtStatusPtr(ORT_API_CALL* CustomOpDomain_Add)(OrtCustomOpDomain* domain, const OrtCustomOp* op) noexcept;
  OrtStatusPtr(ORT_API_CALL* AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain) noexcept;
  void* unused_29[22];
  OrtStatusPtr(ORT_API_CALL* GetTensorMutableData)(OrtValue* value, void** out) noexcept;  // 51
  void* unused_52[3];
  OrtStatusPtr(ORT_API_CALL* CastTypeInfoToTensorInfo)(const OrtTypeInfo* info,
                                                       const OrtTensorTypeAndShapeInfo** out) noexcept;  // 55
  void* unused_56[1];
  OrtStatusPtr(ORT_API_CALL* CreateTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo** out) noexcept;  // 57
  OrtStatusPtr(ORT_API_CALL* SetTensorElementType)(OrtTensorTypeAndShapeInfo* info,
                                                   ONNXTensorElementDataType type) noexcept;
  OrtStatusPtr(ORT_API_CALL* SetDimensions)(OrtTensorTypeAndShapeInfo* info, const int64_t* dims,
                                            size_t count) noexcept;
  OrtStatusPtr(ORT_API_CALL* GetTensorElementType)(const OrtTensorTypeAndShapeInfo* info,
                                                   ONNXTensorElementDataType* out) noexcept;  // 60
  OrtStatusPtr(ORT_API_CALL* GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* out) noexcept;
  OrtStatusPtr(ORT_API_CALL* GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* dims,
                                            size_t count) noexcept;
  OrtStatusPtr(ORT_API_CALL* GetSymbolicDimensions)(const OrtTensorTypeAndShapeInfo* info, const char** names,
                                                    size_t count) noexcept;
  void* unused_64[1];
  OrtStatusPtr(ORT_API_CALL* GetTensorTypeAndShape)(const OrtValue* value,
                                                    OrtTensorTypeAndShapeInfo** out) noexcept;  // 65
  void* unused_66[3];
  OrtStatusPtr(ORT_API_CALL* CreateCpuMemoryInfo)(OrtAllocatorType type, OrtMemType memory,
                                                  OrtMemoryInfo** out) noexcept;  // 69
  void* unused_70[2];
  OrtStatusPtr(ORT_API_CALL* MemoryInfoGetId)(const OrtMemoryInfo* memory, int* out) noexcept;  // 72
  void* unused_73[2];
  OrtStatusPtr(ORT_API_CALL* AllocatorAlloc)(OrtAllocator* allocator, size_t bytes, void** out) noexcept;  // 75
  void* unused_76[10];
  OrtStatusPtr(ORT_API_CALL* KernelInfoGetAttribute_int64)(const OrtKernelInfo* info, const char* name,
                                                           int64_t* out) noexcept;  // 86
  void* unused_87[1];
  OrtStatusPtr(ORT_API_CALL* KernelContext_GetInputCount)(const OrtKernelContext* context, size_t* out) noexcept;
  OrtStatusPtr(ORT_API_CALL* KernelContext_GetOutputCount)(const OrtKernelContext* context, size_t* out) noexcept;
  OrtStatusPtr(ORT_API_CALL* KernelContext_GetInput)(const OrtKernelContext* context, size_t index,
                                                     const OrtValue** out) noexcept;  // 90
  OrtStatusPtr(ORT_API_CALL* KernelContext_GetOutput)(OrtKernelContext* context, size_t index, const int64_t* dims,
                                                      size_t count, OrtValue** out) noexcept;
  void* unused_92[1];
  void(ORT_API_CALL* ReleaseStatus)(OrtStatus* status) noexcept;  // 93
  void(ORT_API_CALL* ReleaseMemoryInfo)(OrtMemoryInfo* info) noexcept;
  void* unused_95[3];
  void(ORT_API_CALL* ReleaseTypeInfo)(OrtTypeInfo* info) noexcept;  // 98
  void(ORT_API_CALL* ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info) noexcept;
  void* unused_100[1];
  void(ORT_API_CALL* ReleaseCustomOpDomain)(OrtCustomOpDomain* domain) noexcept;  // 101
  void* unused_102[30];
  void(ORT_API_CALL* ReleaseAllocator)(OrtAllocator* allocator) noexcept;  // 132
  void* unused_133[60];
  OrtStatusPtr(ORT_API_CALL* KernelContext_GetGPUComputeStream)(const OrtKernelContext* context,
                                                                void** out) noexcept;  // 193
  OrtStatusPtr(ORT_API_CALL* GetTensorMemoryInfo)(const OrtValue* value, const OrtMemoryInfo** out) noexcept;
  void* unused_195[35];
  OrtStatusPtr(ORT_API_CALL* KernelInfo_GetInputCount)(const OrtKernelInfo* info, size_t* out) noexcept;  // 230
  void* unused_231[3];
  OrtStatusPtr(ORT_API_CALL* KernelInfo_GetInputTypeInfo)(const OrtKernelInfo* info, size_t index,
                                                          OrtTypeInfo** out) noexcept;  // 234
  void* unused_235[9];
  OrtStatusPtr(ORT_API_CALL* KernelInfo_GetNodeName)(const OrtKernelInfo* info, char* out,
                                                     size_t* size) noexcept;  // 244
  void* unused_245[4];
  OrtStatusPtr(ORT_API_CALL* KernelInfoGetConstantInput_tensor)(const OrtKernelInfo* info, size_t index,
                                                                int* is_constant,
                                                                const OrtValue** out) noexcept;  // 249
  void* unused_250[3];
  OrtStatusPtr(ORT_API_CALL* KernelContext_GetAllocator)(const OrtKernelContext* context,
                                                         const OrtMemoryInfo* memory,
                                                         OrtAllocator** out) noexcept;  // 253
  void* unused_254[13];
  OrtStatusPtr(ORT_API_CALL* ShapeInferContext_GetInputCount)(const OrtShapeInferContext* context,
                                                              size_t* out) noexcept;  // 267
  OrtStatusPtr(ORT_API_CALL* ShapeInferContext_GetInputTypeShape)(const OrtShapeInferContext* context, size_t index,
                                                                  OrtTensorTypeAndShapeInfo** out) noexcept;
  void* unused_269[1];
  OrtStatusPtr(ORT_API_CALL* ShapeInferContext_SetOutputTypeShape)(
      const OrtShapeInferContext* context, size_t index, const OrtTensorTypeAndShapeInfo* info) noexcept;  // 270
  OrtStatusPtr(ORT_API_CALL* SetSymbolicDimensions)(OrtTensorTypeAndShapeInfo* info, const char** names,
                                                    size_t count) noexcept;
  void* unused_272[2];
  OrtStatusPtr(ORT_API_CALL* KernelContext_ParallelFor)(const OrtKernelContext* context, void (*body)(void*, size_t),
                                                        size_t total, size_t batches, void* data) noexcept;  // 274
};

struct OrtApiBase {
  const OrtApi*(ORT_API_CALL* GetApi)(uint32_t version) noexcept;
  const char*(ORT_API_CALL* GetVersionString)() noexcept;
};

struct OrtCustomOp {
  uint32_t version;
  void*(ORT_API_CALL* CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char*(ORT_API_CALL* GetName)(const OrtCustomOp*);
  const char*(ORT_API_CALL* GetExecutionProviderType)(const OrtCustomOp*);
  ONNXTensorElementDataType(ORT_API_CALL* GetInputType)(const OrtCustomOp*, size_t);
  size_t(ORT_API_CALL* GetInputTypeCount)(const OrtCustomOp*);
  ONNXTensorElementDataType(ORT_API_CALL* GetOutputType)(const OrtCustomOp*, size_t);
  size_t(ORT_API_CALL* GetOutputTypeCount)(const OrtCustomOp*);
  void(ORT_API_CALL* KernelCompute)(void*, OrtKernelContext*);
  void(ORT_API_CALL* KernelDestroy)(void*);
  OrtCustomOpInputOutputCharacteristic(ORT_API_CALL* GetInputCharacteristic)(const OrtCustomOp*, size_t);
  OrtCustomOpInputOutputCharacteristic(ORT_API_CALL* GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  OrtMemType(ORT_API_CALL* GetInputMemoryType)(const OrtCustomOp*, size_t);
  int(ORT_API_CALL* GetVariadicInputMinArity)(const OrtCustomOp*);
  int(ORT_API_CALL* GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int(ORT_API_CALL* GetVariadicOutputMinArity)(const OrtCustomOp*);
  int(ORT_API_CALL* GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatusPtr(ORT_API_CALL* CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatusPtr(ORT_API_CALL* KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatusPtr(ORT_API_CALL* InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int(ORT_API_CALL* GetStartVersion)(const OrtCustomOp*);
  int(ORT_API_CALL* GetEndVersion)(const OrtCustomOp*);
  // Members appended from version 18 on are read only where `version` says so; the ops state version 17.
};

}  // extern "C"

#endif

// Where each function in use sits in OrtApi and OrtCustomOp. Included after whichever header declares them, so that
// compiling once against the official header proves ours.
#ifndef MSCOPE_ABI_ONNXRUNTIME_SLOTS_H
#define MSCOPE_ABI_ONNXRUNTIME_SLOTS_H

#include <cstddef>

#define MSCOPE_API_SLOT(member, slot) \
  static_assert(offsetof(OrtApi, member) == (slot) * sizeof(void*), "OrtApi::" #member " is not at slot " #slot)
#define MSCOPE_OP_SLOT(member, slot) \
  static_assert(offsetof(OrtCustomOp, member) == (slot) * sizeof(void*), "OrtCustomOp::" #member " is not at slot " #slot)

MSCOPE_API_SLOT(CreateStatus, 0);
MSCOPE_API_SLOT(GetErrorMessage, 2);
MSCOPE_API_SLOT(CreateCustomOpDomain, 26);
MSCOPE_API_SLOT(CustomOpDomain_Add, 27);
MSCOPE_API_SLOT(AddCustomOpDomain, 28);
MSCOPE_API_SLOT(GetTensorMutableData, 51);
MSCOPE_API_SLOT(CastTypeInfoToTensorInfo, 55);
MSCOPE_API_SLOT(CreateTensorTypeAndShapeInfo, 57);
MSCOPE_API_SLOT(SetTensorElementType, 58);
MSCOPE_API_SLOT(SetDimensions, 59);
MSCOPE_API_SLOT(GetTensorElementType, 60);
MSCOPE_API_SLOT(GetDimensionsCount, 61);
MSCOPE_API_SLOT(GetDimensions, 62);
MSCOPE_API_SLOT(GetSymbolicDimensions, 63);
MSCOPE_API_SLOT(GetTensorTypeAndShape, 65);
MSCOPE_API_SLOT(CreateCpuMemoryInfo, 69);
MSCOPE_API_SLOT(MemoryInfoGetId, 72);
MSCOPE_API_SLOT(AllocatorAlloc, 75);
MSCOPE_API_SLOT(KernelInfoGetAttribute_int64, 86);
MSCOPE_API_SLOT(KernelContext_GetInputCount, 88);
MSCOPE_API_SLOT(KernelContext_GetOutputCount, 89);
MSCOPE_API_SLOT(KernelContext_GetInput, 90);
MSCOPE_API_SLOT(KernelContext_GetOutput, 91);
MSCOPE_API_SLOT(ReleaseStatus, 93);
MSCOPE_API_SLOT(ReleaseMemoryInfo, 94);
MSCOPE_API_SLOT(ReleaseTypeInfo, 98);
MSCOPE_API_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
MSCOPE_API_SLOT(ReleaseCustomOpDomain, 101);
MSCOPE_API_SLOT(ReleaseAllocator, 132);
MSCOPE_API_SLOT(KernelContext_GetGPUComputeStream, 193);
MSCOPE_API_SLOT(GetTensorMemoryInfo, 194);
MSCOPE_API_SLOT(KernelInfo_GetInputCount, 230);
MSCOPE_API_SLOT(KernelInfo_GetInputTypeInfo, 234);
MSCOPE_API_SLOT(KernelInfo_GetNodeName, 244);
MSCOPE_API_SLOT(KernelInfoGetConstantInput_tensor, 249);
MSCOPE_API_SLOT(KernelContext_GetAllocator, 253);
MSCOPE_API_SLOT(ShapeInferContext_GetInputCount, 267);
MSCOPE_API_SLOT(ShapeInferContext_GetInputTypeShape, 268);
MSCOPE_API_SLOT(ShapeInferContext_SetOutputTypeShape, 270);
MSCOPE_API_SLOT(SetSymbolicDimensions, 271);
MSCOPE_API_SLOT(KernelContext_ParallelFor, 274);

MSCOPE_OP_SLOT(CreateKernel, 1);
MSCOPE_OP_SLOT(GetName, 2);
MSCOPE_OP_SLOT(GetInputCharacteristic, 10);
MSCOPE_OP_SLOT(GetVariadicInputMinArity, 13);
MSCOPE_OP_SLOT(CreateKernelV2, 17);
MSCOPE_OP_SLOT(KernelComputeV2, 18);
MSCOPE_OP_SLOT(InferOutputShapeFn, 19);
MSCOPE_OP_SLOT(GetStartVersion, 20);
MSCOPE_OP_SLOT(GetEndVersion, 21);

#undef MSCOPE_API_SLOT
#undef MSCOPE_OP_SLOT

#endif

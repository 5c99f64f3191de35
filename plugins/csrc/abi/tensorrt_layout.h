// The layout of what crosses the border to TensorRT. Included after whichever header declares it, so that compiling
// once against an official header proves ours. The slots of virtual functions cannot be asserted:
// tests/plugins/trt_layout.cpp prints them.
#ifndef MSCOPE_ABI_TENSORRT_LAYOUT_H
#define MSCOPE_ABI_TENSORRT_LAYOUT_H

#include <cstddef>
#include <cstdint>

#define MSCOPE_TRT_AT(type, member, bytes) \
  static_assert(offsetof(nvinfer1::type, member) == (bytes), #type "::" #member " is not at byte " #bytes)
#define MSCOPE_TRT_SIZE(type, bytes) \
  static_assert(sizeof(nvinfer1::type) == (bytes), #type " does not have " #bytes " bytes")
#define MSCOPE_TRT_VALUE(value, number) \
  static_assert(static_cast<int32_t>(nvinfer1::value) == (number), #value " is not " #number)

MSCOPE_TRT_SIZE(Dims, 72);
MSCOPE_TRT_AT(Dims, nbDims, 0);
MSCOPE_TRT_AT(Dims, d, 8);
MSCOPE_TRT_SIZE(PluginTensorDesc, 88);
MSCOPE_TRT_AT(PluginTensorDesc, type, 72);
MSCOPE_TRT_AT(PluginTensorDesc, format, 76);
MSCOPE_TRT_SIZE(DynamicPluginTensorDesc, 304);
MSCOPE_TRT_AT(DynamicPluginTensorDesc, min, 88);
MSCOPE_TRT_AT(DynamicPluginTensorDesc, max, 160);
MSCOPE_TRT_AT(DynamicPluginTensorDesc, opt, 232);
MSCOPE_TRT_SIZE(DimsExprs, 72);
MSCOPE_TRT_AT(DimsExprs, d, 8);
MSCOPE_TRT_SIZE(PluginField, 24);
MSCOPE_TRT_AT(PluginField, data, 8);
MSCOPE_TRT_AT(PluginField, type, 16);
MSCOPE_TRT_AT(PluginField, length, 20);
MSCOPE_TRT_SIZE(PluginFieldCollection, 16);
MSCOPE_TRT_AT(PluginFieldCollection, fields, 8);
MSCOPE_TRT_SIZE(InterfaceInfo, 16);

MSCOPE_TRT_VALUE(DataType::kFLOAT, 0);
MSCOPE_TRT_VALUE(DataType::kHALF, 1);
MSCOPE_TRT_VALUE(DataType::kINT8, 2);
MSCOPE_TRT_VALUE(DataType::kINT32, 3);
MSCOPE_TRT_VALUE(DataType::kBOOL, 4);
MSCOPE_TRT_VALUE(DataType::kBF16, 7);
MSCOPE_TRT_VALUE(DataType::kINT64, 8);
MSCOPE_TRT_VALUE(TensorFormat::kLINEAR, 0);
MSCOPE_TRT_VALUE(PluginFieldType::kFLOAT32, 1);
MSCOPE_TRT_VALUE(PluginFieldType::kINT32, 5);
MSCOPE_TRT_VALUE(PluginFieldType::kCHAR, 6);
MSCOPE_TRT_VALUE(PluginFieldType::kUNKNOWN, 8);
MSCOPE_TRT_VALUE(PluginFieldType::kINT64, 10);
MSCOPE_TRT_VALUE(TensorRTPhase::kBUILD, 0);
MSCOPE_TRT_VALUE(TensorRTPhase::kRUNTIME, 1);
MSCOPE_TRT_VALUE(PluginCapabilityType::kCORE, 0);
MSCOPE_TRT_VALUE(PluginCapabilityType::kBUILD, 1);
MSCOPE_TRT_VALUE(PluginCapabilityType::kRUNTIME, 2);

#undef MSCOPE_TRT_AT
#undef MSCOPE_TRT_SIZE
#undef MSCOPE_TRT_VALUE

#endif

// Makes plugins of one op in one namespace, from a node's attributes or from what an engine holds.
#pragma once

#include "abi/tensorrt.h"
#include "trt/plugin.h"

namespace mscope::trt {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  Creator(const Op& op, const char* space);
  Creator(const Creator&) = delete;  // its fields point into it
  Creator& operator=(const Creator&) = delete;

  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fc,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &fields_; }
  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return space_; }

 private:
  State parse(const char* name, const nvinfer1::PluginFieldCollection* fc, nvinfer1::TensorRTPhase phase) const;

  const Op& op_;
  const char* space_;
  nvinfer1::PluginField attributes_[kMaxAttributes];
  nvinfer1::PluginFieldCollection fields_;
};

}  // namespace mscope::trt

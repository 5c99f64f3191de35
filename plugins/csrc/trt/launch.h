// From TensorRT's descriptors and pointers to the kernels' parameters.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/params.h"
#include "trt/check.h"

namespace mscope::trt {

// One enqueue: `in` has op.input_count entries, `out` op.output_count; those that are not wired are not read.
struct Call {
  const Op& op;
  Wired wired;
  const int32_t* attributes;
  const nvinfer1::PluginTensorDesc* in;
  const void* const* inputs;
  void* const* outputs;
  void* workspace;
  void* stream;
};

// Queues the op on the current device. Throws Refusal for what does not fit and where the kernels report a failure.
void launch(const Call& call);

// What an engine must set aside for the op at these sizes and all smaller ones.
size_t workspace_bytes(const Op& op, const Sizes& largest);

// The device that is current on this thread: TensorRT sets it before it calls. Throws Refusal where there is none.
int current_device();

}  // namespace mscope::trt

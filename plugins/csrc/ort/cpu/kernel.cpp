#include "ort/cpu/kernel.h"

#include <stdlib.h>

#include <string>

namespace mscope {
namespace ort {
namespace {

const inference::Kernels& chosen_kernels() {
  const inference::Kernels* const kernels = inference::kernels();
  if (kernels == nullptr) {
    throw InvalidArgument(std::string("MSCOPE_ISA=") + getenv("MSCOPE_ISA") +
                          " is no instruction set of this machine: unset it, or use scalar, neon, avx2 or avx512 as it has");
  }
  return *kernels;
}

}  // namespace

Scratch::~Scratch() {
  for (int i = 0; i < count_; ++i) allocator_->Free(allocator_, blocks_[i]);
  if (allocator_ != nullptr) api_.ReleaseAllocator(allocator_);
}

float* Scratch::allocate(int64_t floats) {
  if (count_ == kMax) throw std::logic_error("mambascope: too many scratch blocks");
  if (allocator_ == nullptr) {
    OrtMemoryInfo* memory = nullptr;
    check(api_, api_.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    OrtStatus* const status = api_.KernelContext_GetAllocator(context_, memory, &allocator_);
    api_.ReleaseMemoryInfo(memory);
    check(api_, status);
  }
  void* const block = ort::allocate(api_, allocator_, sizeof(float) * static_cast<size_t>(floats));
  blocks_[count_++] = block;
  return static_cast<float*>(block);
}

CpuKernel::CpuKernel(const OrtApi& runtime, const OrtKernelInfo* info, const OpSpec& op, Storage stored)
    : Kernel(runtime, info, op, stored), kernels(chosen_kernels()) {}

}  // namespace ort
}  // namespace mscope

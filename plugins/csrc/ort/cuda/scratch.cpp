#include "ort/cuda/scratch.h"

#include <algorithm>

#include "ort/status.h"

namespace mscope {
namespace ort {
namespace {

constexpr int64_t kLeast = int64_t{1} << 16;

// Powers of two: launches may still wait with a smaller block, so it stays, and all of them together are less than twice
// the last.
int64_t rounded_up(int64_t bytes) {
  int64_t size = kLeast;
  while (size < bytes) size *= 2;
  return size;
}

}  // namespace

std::shared_ptr<StreamScratch> StreamScratch::of(int device, void* stream) {
  static std::mutex lock;
  static std::vector<std::weak_ptr<StreamScratch>> all;
  const std::lock_guard<std::mutex> hold(lock);
  all.erase(std::remove_if(all.begin(), all.end(), [](const auto& known) { return known.expired(); }), all.end());
  for (const auto& known : all)
    if (auto scratch = known.lock())
      if (scratch->is_of(device, stream)) return scratch;
  auto made = std::make_shared<StreamScratch>(device, stream);
  all.push_back(made);
  return made;
}

StreamScratch::~StreamScratch() {
  for (const Block& block : blocks_) {
    block.allocator->Free(block.allocator, block.data);
    block.api->ReleaseAllocator(block.allocator);
  }
}

void* StreamScratch::at_least(const OrtApi& api, OrtKernelContext* context, const OrtMemoryInfo* memory,
                              int64_t bytes) {
  if (!blocks_.empty() && blocks_.back().bytes >= bytes) return blocks_.back().data;
  blocks_.reserve(blocks_.size() + 1);
  OrtAllocator* taken = nullptr;
  check(api, api.KernelContext_GetAllocator(context, memory, &taken));
  const auto release = [&api](OrtAllocator* unused) { api.ReleaseAllocator(unused); };
  std::unique_ptr<OrtAllocator, decltype(release)> allocator(taken, release);
  const int64_t size = rounded_up(bytes);
  void* const data = allocate(api, taken, static_cast<size_t>(size));
  blocks_.push_back({&api, allocator.release(), data, size});
  return data;
}

}  // namespace ort
}  // namespace mscope

// Scratch memory of long sequences: one block for each stream, out of ONNX Runtime's own allocator, shared by all kernels
// that run on that stream and kept as long as one of them lives.
//
// Not taken and given back in each call: the host runs ahead of the device, and a block that is given back while the
// launch that uses it still waits may be handed to a run on another stream (the arena knows the stream of what the
// runtime's own kernels take, not of what the C interface takes). Work on one stream is in order, so that one block
// serves any number of launches there; and what is never given back can be captured in a CUDA graph.
#pragma once

#include <stdint.h>

#include <memory>
#include <mutex>
#include <vector>

#include "abi/onnxruntime.h"

namespace mscope {
namespace ort {

class StreamScratch {
 public:
  // The one of this stream; a new one where no kernel holds one.
  static std::shared_ptr<StreamScratch> of(int device, void* stream);

  StreamScratch(int device, void* stream) : device_(device), stream_(stream) {}
  ~StreamScratch();
  StreamScratch(const StreamScratch&) = delete;
  StreamScratch& operator=(const StreamScratch&) = delete;

  bool is_of(int device, void* stream) const { return device == device_ && stream == stream_; }

  // Until it is let go, nobody else queues what uses the memory. Runs in two threads may share a stream (the provider's
  // user_compute_stream), and a scan of segments is two launches, between which no other may write there.
  std::unique_lock<std::mutex> hold() { return std::unique_lock<std::mutex>(lock_); }

  // At least so many bytes, for who holds it. Throws where there is no memory.
  void* at_least(const OrtApi& api, OrtKernelContext* context, const OrtMemoryInfo* memory, int64_t bytes);

 private:
  struct Block {
    const OrtApi* api;
    OrtAllocator* allocator;  // its reference keeps the arena alive
    void* data;
    int64_t bytes;
  };

  const int device_;
  void* const stream_;
  std::mutex lock_;
  std::vector<Block> blocks_;  // each larger than the one before; the last is in use
};

}  // namespace ort
}  // namespace mscope

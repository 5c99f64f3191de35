// The driver behind the C interface: checks arguments, prepares parameters, spreads sequences over threads, sums the
// partial gradients of the parameters.

#include "cpu/training.h"

#include <atomic>
#include <cstddef>
#include <exception>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "cpu/training_kernels.h"
#include "scan/isa.h"
#include "scan/step.h"

namespace mscope {
namespace {

// Gradients of parameters are summed over groups of sequences, then over the groups in order: the number of groups depends
// on the batch alone, so that the sums are the same for any number of threads.
constexpr int64_t kGroups = 32;
// Floats of work (tokens x channels x states) below which a second thread costs more than it saves.
constexpr double kWorkPerThread = 1 << 17;

std::atomic<int> chosen{static_cast<int>(best_isa())};

const ScanKernels& scan_kernels() {
  switch (static_cast<Isa>(chosen.load(std::memory_order_relaxed))) {
#define MSCOPE_CASE(isa) \
  case Isa::isa:         \
    return *scan_kernels_##isa();
    MSCOPE_FOR_EACH_ISA(MSCOPE_CASE)
#undef MSCOPE_CASE
    default: std::terminate();  // set_isa lets through only what this machine runs
  }
}

const ConvKernels& conv_kernels() {
  switch (static_cast<Isa>(chosen.load(std::memory_order_relaxed))) {
#define MSCOPE_CASE(isa) \
  case Isa::isa:         \
    return *conv_kernels_##isa();
    MSCOPE_FOR_EACH_ISA(MSCOPE_CASE)
#undef MSCOPE_CASE
    default: std::terminate();
  }
}

int64_t groups_of(int64_t batch) { return batch < kGroups ? batch : kGroups; }

int64_t padded(int64_t channels, int64_t width) { return (channels + width - 1) / width * width; }

// Uninitialised floats, aligned so that no vector straddles two cache lines.
struct FreeFloats {
  void operator()(float* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
using Floats = std::unique_ptr<float[], FreeFloats>;
Floats floats(int64_t count) {
  return Floats(static_cast<float*>(::operator new[](static_cast<size_t>(count) * sizeof(float), std::align_val_t{64})));
}

// Runs work(span, scratch, group) on every group of sequences, on up to `threads` threads with a scratch each.
template <class Work>
void for_each_group(int64_t batch, int64_t scratch, int32_t threads, double total_work, const Work& work) {
  const int64_t groups = groups_of(batch);
  int64_t workers = threads < groups ? threads : groups;
  const double worth = total_work / kWorkPerThread;
  if (static_cast<double>(workers) > worth) workers = static_cast<int64_t>(worth);
  if (workers < 1) workers = 1;
  scratch = (scratch + 15) / 16 * 16;
  const Floats all = floats(workers * scratch);
  std::atomic<int64_t> next{0};
  const auto run = [&](int64_t worker) {
    for (int64_t g = next++; g < groups; g = next++)
      work(Span{batch * g / groups, batch * (g + 1) / groups}, all.get() + worker * scratch, g);
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(workers - 1));
  try {
    for (int64_t worker = 1; worker < workers; ++worker) others.emplace_back(run, worker);
  } catch (const std::exception&) {
    // No more threads to be had: those there are, and this one, do all of the work.
  }
  run(0);
  for (std::thread& thread : others) thread.join();
}

// Where every group sums `count` floats; at least one part, the answer for an empty batch.
Floats zeros(int64_t batch, int64_t count) {
  const int64_t size = (batch > 0 ? groups_of(batch) : 1) * count;
  Floats sums = floats(size);
  for (int64_t i = 0; i < size; ++i) sums[static_cast<size_t>(i)] = 0.0f;
  return sums;
}

// Sums `groups` partial results of `count` floats each into the first.
void sum_groups(float* partial, int64_t groups, int64_t count) {
  for (int64_t g = 1; g < groups; ++g)
    for (int64_t i = 0; i < count; ++i) partial[i] += partial[g * count + i];
}

// (C, N) from rows of `stride` channels.
void transpose_out(const float* rows, int64_t stride, int64_t channels, int64_t count, float* out) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t n = 0; n < count; ++n) out[c * count + n] = rows[n * stride + c];
}

void copy_out(const float* row, int64_t channels, float* out) {
  for (int64_t c = 0; c < channels; ++c) out[c] = row[c];
}

bool is_valid(const MscopeScan& scan) {
  const bool sizes = scan.batch >= 0 && scan.length >= 1 && scan.channels >= 1 && scan.states >= 1;
  const bool strides = scan.x_stride >= scan.channels && scan.delta_stride >= scan.channels &&
                       scan.B_stride >= scan.states && scan.C_stride >= scan.states &&
                       (scan.z == nullptr || scan.z_stride >= scan.channels);
  // An empty tensor has no address.
  const bool tensors = scan.batch == 0 || (scan.x && scan.delta && scan.B && scan.C);
  return sizes && strides && tensors && scan.A && scan.D;
}

bool is_valid(const MscopeConv& conv) {
  return conv.batch >= 0 && conv.length >= 1 && conv.channels >= 1 && conv.width >= 1 &&
         conv.x_stride >= conv.channels && (conv.batch == 0 || conv.x) && conv.weight && conv.bias;
}

double work_of(const MscopeScan& scan) {
  return static_cast<double>(scan.batch) * static_cast<double>(scan.length) * static_cast<double>(scan.channels) *
         static_cast<double>(scan.states);
}

double work_of(const MscopeConv& conv) {
  return static_cast<double>(conv.batch) * static_cast<double>(conv.length) * static_cast<double>(conv.channels) * 2.0;
}

Floats a2_of(const MscopeScan& scan, int64_t stride) {
  Floats a2 = floats(scan.states * stride);
  prepare_a2(scan.A, scan.channels, scan.states, stride, a2.get());
  return a2;
}

Floats taps_of(const MscopeConv& conv, int64_t stride) {
  Floats taps = floats((conv.width + 1) * stride);
  for (int64_t j = 0; j <= conv.width; ++j)
    for (int64_t c = 0; c < stride; ++c) {
      const bool pad = c >= conv.channels;
      taps[j * stride + c] = pad ? 0.0f : j < conv.width ? conv.weight[c * conv.width + j] : conv.bias[c];
    }
  return taps;
}

void scan_forward(const MscopeScan& scan, float* y, int32_t threads) {
  const ScanKernels& kernels = scan_kernels();
  const auto a2 = a2_of(scan, padded(scan.channels, kernels.width));
  for_each_group(scan.batch, kernels.forward_scratch(scan), threads, work_of(scan),
                 [&](Span span, float* scratch, int64_t) { kernels.forward(scan, a2.get(), span, scratch, y); });
}

void scan_backward(const MscopeScan& scan, const MscopeScanGrads& grads, int32_t threads) {
  const ScanKernels& kernels = scan_kernels();
  const int64_t stride = padded(scan.channels, kernels.width), count = (scan.states + 2) * stride;
  const auto a2 = a2_of(scan, stride);
  const Floats partial = zeros(scan.batch, count);
  for_each_group(scan.batch, kernels.backward_scratch(scan), threads, 3 * work_of(scan),
                 [&](Span span, float* scratch, int64_t group) {
                   kernels.backward(scan, a2.get(), span, scratch, grads, partial.get() + group * count);
                 });
  sum_groups(partial.get(), groups_of(scan.batch), count);
  transpose_out(partial.get(), stride, scan.channels, scan.states, grads.A);
  copy_out(partial.get() + scan.states * stride, scan.channels, grads.D);
  if (grads.delta_bias != nullptr) copy_out(partial.get() + (scan.states + 1) * stride, scan.channels, grads.delta_bias);
}

void conv_forward(const MscopeConv& conv, float* y, int32_t threads) {
  const ConvKernels& kernels = conv_kernels();
  const auto taps = taps_of(conv, padded(conv.channels, kernels.width));
  for_each_group(conv.batch, 0, threads, work_of(conv),
                 [&](Span span, float*, int64_t) { kernels.forward(conv, taps.get(), span, y); });
}

void conv_backward(const MscopeConv& conv, const MscopeConvGrads& grads, int32_t threads) {
  const ConvKernels& kernels = conv_kernels();
  const int64_t stride = padded(conv.channels, kernels.width), count = (conv.width + 1) * stride;
  const auto taps = taps_of(conv, stride);
  const Floats partial = zeros(conv.batch, count);
  for_each_group(conv.batch, kernels.backward_scratch(conv), threads, 3 * work_of(conv),
                 [&](Span span, float* scratch, int64_t group) {
                   kernels.backward(conv, taps.get(), span, scratch, grads, partial.get() + group * count);
                 });
  sum_groups(partial.get(), groups_of(conv.batch), count);
  transpose_out(partial.get(), stride, conv.channels, conv.width, grads.weight);
  copy_out(partial.get() + conv.width * stride, conv.channels, grads.bias);
}

// Exceptions end at the C boundary; the only ones to expect are of memory.
template <class Body>
int32_t guarded(bool valid, const Body& body) noexcept {
  if (!valid) return MSCOPE_BAD_ARGUMENT;
  try {
    body();
  } catch (const std::exception&) {
    return MSCOPE_NO_MEMORY;
  }
  return MSCOPE_OK;
}

}  // namespace
}  // namespace mscope

#define MSCOPE_EXPORT __attribute__((visibility("default")))

extern "C" {

MSCOPE_EXPORT const char* mscope_train_isa() {
  return mscope::isa_name(static_cast<mscope::Isa>(mscope::chosen.load(std::memory_order_relaxed)));
}

MSCOPE_EXPORT int32_t mscope_train_set_isa(const char* name) {
  mscope::Isa isa;
  if (!mscope::choose_isa(name, &isa)) return MSCOPE_BAD_ARGUMENT;
  mscope::chosen.store(static_cast<int>(isa), std::memory_order_relaxed);
  return MSCOPE_OK;
}

MSCOPE_EXPORT int32_t mscope_train_scan_forward(const MscopeScan* scan, float* y, int32_t threads) {
  const bool valid = scan && mscope::is_valid(*scan) && (y || scan->batch == 0);
  return mscope::guarded(valid, [&] { mscope::scan_forward(*scan, y, threads); });
}

MSCOPE_EXPORT int32_t mscope_train_scan_backward(const MscopeScan* scan, const MscopeScanGrads* grads, int32_t threads) {
  const bool valid = scan && grads && mscope::is_valid(*scan) && grads->A && grads->D &&
                     (scan->batch == 0 || (grads->y && grads->x && grads->delta && grads->B && grads->C &&
                                           (scan->z == nullptr) == (grads->z == nullptr)));
  return mscope::guarded(valid, [&] { mscope::scan_backward(*scan, *grads, threads); });
}

MSCOPE_EXPORT int32_t mscope_train_conv_forward(const MscopeConv* conv, float* y, int32_t threads) {
  const bool valid = conv && mscope::is_valid(*conv) && (y || conv->batch == 0);
  return mscope::guarded(valid, [&] { mscope::conv_forward(*conv, y, threads); });
}

MSCOPE_EXPORT int32_t mscope_train_conv_backward(const MscopeConv* conv, const MscopeConvGrads* grads, int32_t threads) {
  const bool valid = conv && grads && mscope::is_valid(*conv) && grads->weight && grads->bias &&
                     (conv->batch == 0 || (grads->y && grads->x));
  return mscope::guarded(valid, [&] { mscope::conv_backward(*conv, *grads, threads); });
}

}  // extern "C"

// The kernels compiled for the host: what tests/plugins/test_cuda_host.py calls. One fiber a thread of a block; see
// emulation.h.
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cuda/dispatch.h"
#include "cuda/launch.cuh"
#include "cuda/resample_kernel.cuh"
#include "cuda/select_kernel.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace mscope_emulation {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr int kWarp = 32;
constexpr uint32_t kPoison = 0x7fc0dead;  // a NaN
constexpr size_t kGuardWords = 64;

enum class State { ready, at_block_barrier, at_warp_barrier, done };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = State::ready;
  uint32_t offered = 0;
};

struct Machine {
  dim3 thread, block, size;
  std::vector<Fiber> fibers;
  std::vector<float4> shared;
  ucontext_t scheduler;
  int current = 0;
  const std::function<void()>* kernel = nullptr;
  Order order = Order::forward;
  uint64_t seed = 1;  // of the shuffled order
};
Machine machine;

void enter() {
  (*machine.kernel)();
  machine.fibers[machine.current].state = State::done;
  swapcontext(&machine.fibers[machine.current].context, &machine.scheduler);
}

void wait(State state) {
  Fiber& fiber = machine.fibers[machine.current];
  fiber.state = state;
  swapcontext(&fiber.context, &machine.scheduler);
}

// Lets those go on who all wait at one barrier. False where nobody can: some wait and others have left.
bool release() {
  const int threads = static_cast<int>(machine.fibers.size());
  bool moved = false;
  for (int warp = 0; warp < threads; warp += kWarp) {
    const int end = std::min(warp + kWarp, threads);
    const auto first = machine.fibers.begin() + warp, last = machine.fibers.begin() + end;
    if (!std::all_of(first, last, [](const Fiber& f) { return f.state == State::at_warp_barrier; })) continue;
    std::for_each(first, last, [](Fiber& f) { f.state = State::ready; });
    moved = true;
  }
  if (moved) return true;
  for (const Fiber& fiber : machine.fibers)
    if (fiber.state != State::at_block_barrier) return false;
  for (Fiber& fiber : machine.fibers) fiber.state = State::ready;
  return true;
}

int run_block() {
  const int threads = static_cast<int>(machine.fibers.size());
  for (Fiber& fiber : machine.fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    fiber.state = State::ready;
  }
  std::vector<int> order(threads);
  for (int i = 0; i < threads; ++i) order[i] = machine.order == Order::backward ? threads - 1 - i : i;
  for (;;) {
    if (machine.order == Order::shuffled)
      for (int i = threads - 1; i > 0; --i) {
        machine.seed = machine.seed * 6364136223846793005u + 1442695040888963407u;
        std::swap(order[i], order[(machine.seed >> 33) % (i + 1)]);
      }
    bool ran = false;
    for (const int i : order) {
      if (machine.fibers[i].state != State::ready) continue;
      ran = true;
      machine.current = i;
      machine.thread.x = i;
      swapcontext(&machine.scheduler, &machine.fibers[i].context);
    }
    if (ran) continue;
    if (std::all_of(machine.fibers.begin(), machine.fibers.end(),
                    [](const Fiber& f) { return f.state == State::done; }))
      return none;
    if (!release()) return barrier_not_met_by_all;
  }
}

}  // namespace

float* shared_memory() { return reinterpret_cast<float*>(machine.shared.data()); }
const dim3& thread_index() { return machine.thread; }
const dim3& block_index() { return machine.block; }
const dim3& block_size() { return machine.size; }
void block_barrier() { wait(State::at_block_barrier); }
void warp_barrier() { wait(State::at_warp_barrier); }

uint32_t exchange(uint32_t value, int from_lane) {
  const int warp = machine.current / kWarp * kWarp;
  machine.fibers[machine.current].offered = value;
  warp_barrier();
  const uint32_t got = machine.fibers[warp + from_lane].offered;
  warp_barrier();  // nobody offers the next value before everyone has this one
  return got;
}

void set_order(Order order) { machine.order = order; }

int run(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel) {
  machine.size = {threads, 1, 1};
  machine.kernel = &kernel;
  machine.fibers.resize(threads);
  for (Fiber& fiber : machine.fibers)
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
  const size_t words = (shared_bytes + 15) / 16 * 4;
  machine.shared.resize((words + kGuardWords) / 4);
  uint32_t* const shared = reinterpret_cast<uint32_t*>(machine.shared.data());
  for (unsigned block = 0; block < blocks; ++block) {
    machine.block.x = block;
    std::fill(shared, shared + words + kGuardWords, kPoison);
    const int fault = run_block();
    if (fault != none) return fault;
    for (size_t i = shared_bytes / 4; i < words + kGuardWords; ++i)
      if (shared[i] != kPoison) return wrote_past_shared_memory;
  }
  return MSCOPE_OK;
}

}  // namespace mscope_emulation

EXPORT int host_scan(const MscopeScanParams* p, int dtype, const MscopeMachine* machine, int order) {
  mscope_emulation::set_order(static_cast<mscope_emulation::Order>(order));
  return mscope::run_scan(*p, dtype, *machine, nullptr);
}

EXPORT int host_conv(const MscopeConvParams* p, int dtype, int order) {
  mscope_emulation::set_order(static_cast<mscope_emulation::Order>(order));
  return mscope::run_conv(*p, dtype, nullptr);
}

// The plan's numbers in the order of ScanPlan, workspace bytes last.
EXPORT int host_plan(const MscopeScanParams* p, int dtype, const MscopeMachine* machine, int64_t* numbers) {
  mscope::ScanPlan plan;
  const int status = mscope::plan_for(*p, dtype, *machine, plan);
  const int64_t all[] = {static_cast<int64_t>(plan.layout),
                         plan.threads,
                         plan.scan_threads,
                         plan.block_log2,
                         plan.groups,
                         plan.chunk,
                         plan.segments,
                         plan.segment_tokens,
                         plan.padded_states,
                         plan.vector_rows,
                         plan.shared_bytes,
                         plan.blocks,
                         mscope::workspace_bytes(plan)};
  if (status == MSCOPE_OK) std::copy(std::begin(all), std::end(all), numbers);
  return status;
}

EXPORT int host_resample(const MscopeResampleParams* p, int order) {
  mscope_emulation::set_order(static_cast<mscope_emulation::Order>(order));
  return mscope::run_resample(*p, nullptr);
}

EXPORT int host_select(const MscopeSelectParams* p, int order) {
  mscope_emulation::set_order(static_cast<mscope_emulation::Order>(order));
  return mscope::run_select(*p, nullptr);
}

// As mscope_cuda_struct_bytes; 4: MscopeMachine.
EXPORT int64_t host_struct_bytes(int which) {
  const int64_t bytes[] = {sizeof(MscopeScanParams), sizeof(MscopeConvParams), sizeof(MscopeResampleParams),
                           sizeof(MscopeSelectParams), sizeof(MscopeMachine)};
  return bytes[which];
}

// The host's conversions of storage.cuh, which a test compares with numpy's.
EXPORT void host_narrow(const float* from, uint16_t* to, int64_t count, int dtype) {
  for (int64_t i = 0; i < count; ++i) {
    mscope::Half half;
    mscope::BFloat bfloat;
    mscope::narrow(from[i], half);
    mscope::narrow(from[i], bfloat);
    to[i] = dtype == MSCOPE_FLOAT16 ? half.bits : bfloat.bits;
  }
}

EXPORT void host_widen(const uint16_t* from, float* to, int64_t count, int dtype) {
  for (int64_t i = 0; i < count; ++i)
    to[i] = dtype == MSCOPE_FLOAT16 ? mscope::widen(mscope::Half{from[i]}) : mscope::widen(mscope::BFloat{from[i]});
}

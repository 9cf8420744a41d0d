// The scheduler of cuda_runtime.h, and CPU replacements of torch's CUDA functions.

#include "cuda_runtime.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <ucontext.h>

#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

dim3 gridDim;

// The shared memory of the kernels (csrc/common/cuda_launch.cuh), followed by a guard.
namespace attnzoo_emulated {
constexpr size_t kGuardSize = 64;  // units of 16 bytes
thread_local uint4 shared_memory[emulation::kMaxSharedMemory / sizeof(uint4) + kGuardSize];
}  // namespace attnzoo_emulated

namespace emulation {

unsigned thread;
unsigned block;
uint64_t exchanged[kMaxThreads];

namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned char kPoison = 0xff;  // in all bytes of a float or double: NaN
std::minstd_rand rng;

struct Lane {
  ucontext_t context;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
  uint32_t waits_for = 0;
  bool waits_for_block = false;
  bool done = false;
};

std::vector<Lane> lanes;  // of the running block
ucontext_t scheduler;
const std::function<void()>* running;
bool misaligned;

void lane_main() {
  (*running)();
  lanes[thread].done = true;
}

// Resumes the lanes of a warp that wait for each other; false if there are none.
bool release_warp(Lane* warp) {
  for (unsigned first = 0; first < kWarpSize; ++first) {
    const uint32_t mask = warp[first].waits_for;
    bool complete = mask != 0;
    for (unsigned i = 0; i < kWarpSize; ++i) {
      complete = complete && ((mask >> i & 1) == 0 || warp[i].waits_for == mask);
    }
    if (complete) {
      for (unsigned i = 0; i < kWarpSize; ++i) {
        if (mask >> i & 1) {
          warp[i].waits_for = 0;
        }
      }
      return true;
    }
  }
  return false;
}

// Resumes all threads if all of them wait for the block.
bool release_block() {
  for (const Lane& lane : lanes) {
    if (!lane.waits_for_block) {
      return false;
    }
  }
  for (Lane& lane : lanes) {
    lane.waits_for_block = false;
  }
  return true;
}

bool release() {
  bool any = false;
  for (size_t first = 0; first < lanes.size(); first += kWarpSize) {
    any = release_warp(&lanes[first]) || any;
  }
  return any || release_block();
}

void run_block() {
  for (Lane& lane : lanes) {
    lane.waits_for = 0;
    lane.waits_for_block = false;
    lane.done = false;
    getcontext(&lane.context);
    lane.context.uc_stack = {lane.stack.get(), 0, kStackBytes};
    lane.context.uc_link = &scheduler;
    makecontext(&lane.context, lane_main, 0);
  }
  std::vector<unsigned> lane_order(lanes.size());
  std::iota(lane_order.begin(), lane_order.end(), 0u);
  do {
    std::shuffle(lane_order.begin(), lane_order.end(), rng);
    for (const unsigned i : lane_order) {
      if (!lanes[i].done && lanes[i].waits_for == 0 && !lanes[i].waits_for_block) {
        thread = i;
        swapcontext(&scheduler, &lanes[i].context);
      }
    }
  } while (release());
  for (const Lane& lane : lanes) {
    if (!lane.done) {
      throw std::runtime_error("emulation: deadlock");
    }
  }
}

}  // namespace

void wait_for(uint32_t mask) {
  lanes[thread].waits_for = mask;
  swapcontext(&lanes[thread].context, &scheduler);
}

void wait_for_block() {
  lanes[thread].waits_for_block = true;
  swapcontext(&lanes[thread].context, &scheduler);
}

void require_alignment(const void* address, size_t bytes) {
  misaligned = misaligned || reinterpret_cast<uintptr_t>(address) % bytes != 0;
}

void run(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel) {
  if (threads % kWarpSize != 0 || threads > kMaxThreads || shared_bytes > kMaxSharedMemory) {
    throw std::runtime_error("emulation: block size or shared memory not supported by any GPU");
  }
  auto* const shared = reinterpret_cast<unsigned char*>(attnzoo_emulated::shared_memory);
  const size_t guarded = shared_bytes + attnzoo_emulated::kGuardSize * sizeof(uint4);
  running = &kernel;
  gridDim.x = blocks;
  misaligned = false;
  lanes.resize(threads);
  std::vector<unsigned> block_order(blocks);
  std::iota(block_order.begin(), block_order.end(), 0u);
  std::shuffle(block_order.begin(), block_order.end(), rng);
  for (const unsigned next : block_order) {
    block = next;
    std::fill(shared, shared + guarded, kPoison);
    run_block();
    if (std::any_of(shared + shared_bytes, shared + guarded, [](unsigned char byte) { return byte != kPoison; })) {
      throw std::runtime_error("emulation: write beyond the requested shared memory");
    }
  }
  if (misaligned) {
    throw std::runtime_error("emulation: unaligned vector access");
  }
}

}  // namespace emulation

// Seeds the random order of lanes and blocks.
extern "C" __attribute__((visibility("default"))) void emulation_seed(unsigned seed) {
  emulation::rng.seed(seed + 1);
}

// These replace torch's own functions within this library, which is linked with -Bsymbolic.
extern "C" {

int32_t aoti_torch_device_type_cuda() {
  return aoti_torch_device_type_cpu();
}

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) {
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_c10_cuda_check_msg(
    int32_t error, const char*, const char*, uint32_t, bool, char** message) {
  *message = error == cudaSuccess ? nullptr : strdup("emulation: unexpected error");
  return AOTI_TORCH_SUCCESS;
}

void torch_c10_cuda_free_error_msg(char* message) {
  free(message);
}

}  // extern "C"

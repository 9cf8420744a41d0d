// The scheduler behind cuda_runtime.h, and the functions of torch that concern a GPU, for tensors on the CPU.

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

namespace emulation {

unsigned thread;
unsigned block;
uint64_t exchanged[kWarpSize];

namespace {

constexpr size_t kStackBytes = 256 * 1024;
std::minstd_rand order;

struct Lane {
  ucontext_t context;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
  uint32_t waits_for = 0;
  bool done = false;
};

Lane lanes[kWarpSize];
ucontext_t scheduler;
const std::function<void()>* running;
bool misaligned;

void lane_main() {
  (*running)();
  lanes[thread % kWarpSize].done = true;
}

// Lets go on all lanes that are waiting for each other; false where there are none.
bool release() {
  for (const Lane& first : lanes) {
    const uint32_t mask = first.waits_for;
    bool complete = mask != 0;
    for (unsigned i = 0; i < kWarpSize; ++i) {
      complete = complete && ((mask >> i & 1) == 0 || lanes[i].waits_for == mask);
    }
    if (complete) {
      for (unsigned i = 0; i < kWarpSize; ++i) {
        if (mask >> i & 1) {
          lanes[i].waits_for = 0;
        }
      }
      return true;
    }
  }
  return false;
}

void run_warp(unsigned first_thread) {
  for (Lane& lane : lanes) {
    lane.waits_for = 0;
    lane.done = false;
    getcontext(&lane.context);
    lane.context.uc_stack = {lane.stack.get(), 0, kStackBytes};
    lane.context.uc_link = &scheduler;
    makecontext(&lane.context, lane_main, 0);
  }
  unsigned turns[kWarpSize];
  std::iota(turns, turns + kWarpSize, 0u);
  do {
    std::shuffle(turns, turns + kWarpSize, order);
    for (const unsigned i : turns) {
      if (!lanes[i].done && lanes[i].waits_for == 0) {
        thread = first_thread + i;
        swapcontext(&scheduler, &lanes[i].context);
      }
    }
  } while (release());
  for (const Lane& lane : lanes) {
    if (!lane.done) {
      throw std::runtime_error("emulation: lanes of a warp wait for others that do not come");
    }
  }
}

}  // namespace

void wait_for(uint32_t mask) {
  Lane& lane = lanes[thread % kWarpSize];
  lane.waits_for = mask;
  swapcontext(&lane.context, &scheduler);
}

void require_alignment(const void* address, size_t bytes) {
  misaligned = misaligned || reinterpret_cast<uintptr_t>(address) % bytes != 0;
}

void run(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  running = &kernel;
  gridDim.x = blocks;
  misaligned = false;
  std::vector<unsigned> turns(blocks);
  std::iota(turns.begin(), turns.end(), 0u);
  std::shuffle(turns.begin(), turns.end(), order);
  for (const unsigned turn : turns) {
    block = turn;
    for (unsigned first = 0; first < threads; first += kWarpSize) {
      run_warp(first);
    }
  }
  if (misaligned) {
    throw std::runtime_error("emulation: a vector's address is not a multiple of its size");
  }
}

}  // namespace emulation

// Another order of lanes and blocks.
extern "C" __attribute__((visibility("default"))) void emulation_seed(unsigned seed) {
  emulation::order.seed(seed + 1);
}

// Defined here, these take the place of torch's own within this library (it is linked with -Bsymbolic).
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
  *message = error == cudaSuccess ? nullptr : strdup("emulation: an error that cannot be");
  return AOTI_TORCH_SUCCESS;
}

void torch_c10_cuda_free_error_msg(char* message) {
  free(message);
}

}  // extern "C"

// Replaces CUDA's own header: with it, a C++ compiler compiles the sources of the CUDA operators, and kernels run on
// the CPU, block by block.
//
// The threads of a block are coroutines. They run in random order and switch only at CUDA's synchronisation points
// (shuffles, votes, __syncwarp, __syncthreads), so a missing barrier gives wrong results in some order. Blocks run in
// random order too. Deadlocks and writes beyond the requested shared memory, which is initialised to NaN, are errors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __shared__ thread_local  // static in functions, and allowed with extern; there is one host thread
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  dim3(unsigned x = 1) : x(x) {}
  unsigned x;
  unsigned y = 1;
  unsigned z = 1;
};

struct alignas(8) uint2 {
  uint32_t x, y;
};

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

namespace emulation {

extern unsigned thread;  // the running one
extern unsigned block;
constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxSharedMemory = 227 * 1024;  // bytes a block can ask for

// Suspends the running thread until all lanes of `mask` in its warp wait with the same mask.
void wait_for(uint32_t mask);

// Suspends the running thread until all threads of its block wait here.
void wait_for_block();

// The value of each thread for the other threads of its warp.
extern uint64_t exchanged[kMaxThreads];

inline unsigned first_of_warp() {
  return thread / kWarpSize * kWarpSize;
}

// Makes the current launch fail if a vector is not aligned to its size.
void require_alignment(const void* address, size_t bytes);

void run(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel);

template <typename T>
T exchange(uint32_t mask, T value, unsigned from_lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  std::memcpy(&exchanged[thread], &value, sizeof(T));
  wait_for(mask);
  T received;
  std::memcpy(&received, &exchanged[first_of_warp() + from_lane], sizeof(T));
  wait_for(mask);
  return received;
}

// threadIdx, blockIdx.
struct Coordinate {
  unsigned& x;
};

}  // namespace emulation

inline const emulation::Coordinate threadIdx{emulation::thread};
inline const emulation::Coordinate blockIdx{emulation::block};
extern dim3 gridDim;

inline void __syncwarp(uint32_t mask = 0xffffffffu) {
  emulation::wait_for(mask);
}

inline void __syncthreads() {
  emulation::wait_for_block();
}

inline int __all_sync(uint32_t mask, int predicate) {
  emulation::exchanged[emulation::thread] = predicate != 0;
  emulation::wait_for(mask);
  bool all = true;
  for (unsigned i = 0; i < emulation::kWarpSize; ++i) {
    all = all && ((mask >> i & 1) == 0 || emulation::exchanged[emulation::first_of_warp() + i]);
  }
  emulation::wait_for(mask);
  return all;
}

template <typename T>
T __shfl_up_sync(uint32_t mask, T x, unsigned distance) {
  const unsigned lane = emulation::thread % emulation::kWarpSize;
  return emulation::exchange(mask, x, lane < distance ? lane : lane - distance);
}

template <typename T>
T __shfl_xor_sync(uint32_t mask, T x, int lane_mask) {
  return emulation::exchange(mask, x, emulation::thread % emulation::kWarpSize ^ lane_mask);
}

template <typename T>
T __shfl_sync(uint32_t mask, T x, int lane, int width) {
  return emulation::exchange(mask, x, emulation::thread % emulation::kWarpSize / width * width + lane);
}

template <typename T>
T __ldg(const T* from) {
  emulation::require_alignment(from, sizeof(T));
  return *from;
}

template <typename T>
void atomicAdd(T* to, T x) {
  *to += x;
}

template <typename T>
void atomicMax(T* to, T x) {
  *to = std::max(*to, x);
}

inline void atomicAdd(float4* to, float4 x) {
  emulation::require_alignment(to, sizeof(x));
  *to = {to->x + x.x, to->y + x.y, to->z + x.z, to->w + x.w};
}

using std::max;
using std::min;

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  emulation::run(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}

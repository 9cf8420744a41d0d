// Kernel launches with error checks, and warp constants.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace attnzoo {

constexpr int kWarpSize = 32;
constexpr uint32_t kFullMask = 0xffffffffu;  // all lanes of a warp

inline cudaStream_t current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

inline unsigned checked_grid_size(int64_t blocks) {
  STD_TORCH_CHECK(
      blocks <= std::numeric_limits<int32_t>::max(), "attnzoo: a CUDA grid has at most 2**31 - 1 blocks, got ", blocks);
  return static_cast<unsigned>(blocks);
}

// `shared_bytes` is the size of `dynamic_shared_memory` in every block.
template <typename... Parameters>
void launch_with_shared_memory(
    size_t shared_bytes, void (*kernel)(Parameters...), int64_t blocks, unsigned threads, cudaStream_t stream,
    const std::type_identity_t<Parameters>&... arguments) {
  constexpr size_t kDefaultLimit = 48 * 1024;  // beyond it, a kernel has to opt in
  if (shared_bytes > kDefaultLimit) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
        static_cast<int>(shared_bytes)));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(checked_grid_size(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

template <typename... Parameters>
void launch(
    void (*kernel)(Parameters...), int64_t blocks, unsigned threads, cudaStream_t stream,
    const std::type_identity_t<Parameters>&... arguments) {
  launch_with_shared_memory(0, kernel, blocks, threads, stream, arguments...);
}

extern __shared__ uint4 shared_memory[];

// The dynamic shared memory of the block; its size is set at the launch.
template <typename T>
__device__ __forceinline__ T* dynamic_shared_memory() {
  return reinterpret_cast<T*>(shared_memory);
}

}  // namespace attnzoo

// Launching kernels from tensors: the current stream of a device, the launch, its errors.
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

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

inline cudaStream_t current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

__host__ __device__ inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

inline unsigned checked_blocks(int64_t blocks) {
  STD_TORCH_CHECK(
      blocks <= std::numeric_limits<int32_t>::max(), "attnzoo: a kernel of ", blocks, " blocks is more than CUDA takes");
  return static_cast<unsigned>(blocks);
}

// With `shared` bytes for `dynamic_shared`.
template <typename... Parameters>
void launch_with(
    size_t shared, void (*kernel)(Parameters...), int64_t blocks, unsigned threads, cudaStream_t stream,
    const std::type_identity_t<Parameters>&... arguments) {
  constexpr size_t kUnasked = 48 * 1024;
  if (shared > kUnasked) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(checked_blocks(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

template <typename... Parameters>
void launch(
    void (*kernel)(Parameters...), int64_t blocks, unsigned threads, cudaStream_t stream,
    const std::type_identity_t<Parameters>&... arguments) {
  launch_with(0, kernel, blocks, threads, stream, arguments...);
}

extern __shared__ uint4 shared_bytes[];

// The memory that the threads of a block share, as much as the launch asked for.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  return reinterpret_cast<T*>(shared_bytes);
}

}  // namespace attnzoo

// Host code: from tensors to kernel arguments.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <bit>
#include <limits>
#include <vector>

#include "../common/cuda_launch.cuh"
#include "../common/cuda_vector.cuh"
#include "../common/tensor.h"
#include "cuda_samples.cuh"
#include "problem.h"

namespace attnzoo::ms_deform_attn {

inline int32_t checked_int32(int64_t size, const char* what) {
  STD_TORCH_CHECK(
      size <= std::numeric_limits<int32_t>::max(),
      "ms_deform_attn: the CUDA kernels take at most 2**31 - 1 ", what, ", got ", size);
  return static_cast<int32_t>(size);
}

inline Sizes make_sizes(const Problem& problem) {
  STD_TORCH_CHECK(
      problem.levels.size() <= kMaxLevels, "ms_deform_attn: the CUDA kernels take at most ", kMaxLevels, " levels");
  Sizes sizes{};
  sizes.batch = checked_int32(problem.batch, "images");
  sizes.tokens = checked_int32(problem.tokens, "tokens per image");
  sizes.heads = checked_int32(problem.heads, "heads");
  sizes.head_dim = checked_int32(problem.head_dim, "channels per head");
  sizes.queries = checked_int32(problem.queries, "queries per image");
  sizes.points = checked_int32(problem.points, "points");
  checked_int32(problem.heads * problem.head_dim * static_cast<int64_t>(sizeof(double)), "bytes per token");
  checked_int32(problem.samples(), "samples per query and head");
  sizes.num_levels = static_cast<int32_t>(problem.levels.size());
  for (int l = 0; l < sizes.num_levels; ++l) {
    const Level& level = problem.levels[l];
    sizes.levels[l] = {
        static_cast<int32_t>(level.height), static_cast<int32_t>(level.width), static_cast<int32_t>(level.start)};
  }
  return sizes;
}

inline void check_device(const Tensor& value, const Tensor& other) {
  STD_TORCH_CHECK(
      other.is_cuda() && other.get_device_index() == value.get_device_index(),
      "ms_deform_attn: all tensors must be on the device of value");
}

// One group of threads per row, with one lane per `vector_size` channels of a head: at least 4 lanes, which the kernels
// need, and at most a warp.
inline Partition partition_rows(int64_t rows, int64_t head_dim, int vector_size) {
  const auto vectors = static_cast<uint64_t>(ceil_div(head_dim, vector_size));
  const uint64_t lanes = std::clamp<uint64_t>(std::bit_ceil(vectors), 4, kWarpSize);
  return make_partition(rows, std::countr_zero(lanes));
}

inline int64_t num_blocks(const Sizes& sizes, const Partition& partition) {
  return int64_t{sizes.batch} * partition.blocks_per_head * sizes.heads;
}

// Whether the channels of all heads can be accessed in whole vectors.
template <typename... Pointers>
bool can_vectorize(int64_t head_dim, int vector_size, const Pointers*... pointers) {
  return head_dim % vector_size == 0 && (is_aligned(pointers) && ...);
}

// Calls `body` with a scalar of the dtype of attention weights or logits: T or, if T is in half precision, maybe float.
template <typename T, typename Body>
void dispatch_weights(const Tensor& weights, const Body& body) {
  if constexpr (!std::is_same_v<T, ComputeType<T>>) {
    if (weights.scalar_type() != torch::headeronly::ScalarType::Float) {
      return body(T());
    }
  }
  body(ComputeType<T>());
}

}  // namespace attnzoo::ms_deform_attn

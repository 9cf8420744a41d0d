// From tensors to what the kernels take.
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

inline int32_t checked(int64_t size, const char* what) {
  STD_TORCH_CHECK(
      size <= std::numeric_limits<int32_t>::max(), "ms_deform_attn: on CUDA at most 2**31 - 1 ", what, ", got ", size);
  return static_cast<int32_t>(size);
}

inline Sizes sizes_of(const Problem& problem) {
  STD_TORCH_CHECK(problem.levels.size() <= kMaxLevels, "ms_deform_attn: on CUDA at most ", kMaxLevels, " levels");
  Sizes sizes{};
  sizes.batch = checked(problem.batch, "images");
  sizes.tokens = checked(problem.tokens, "tokens per image");
  sizes.heads = checked(problem.heads, "heads");
  sizes.head_dim = checked(problem.head_dim, "channels per head");
  sizes.queries = checked(problem.queries, "queries per image");
  sizes.points = checked(problem.points, "points");
  checked(problem.heads * problem.head_dim * static_cast<int64_t>(sizeof(double)), "bytes per token");
  checked(problem.samples_per_head(), "samples per query and head");
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

// One group per row, with a lane for every 16 bytes of a head's channels, as far as a warp goes. The kernels want
// four lanes at least.
template <typename T>
Work share_rows(int64_t rows, int64_t head_dim) {
  const auto vectors = static_cast<uint64_t>(divide_up(head_dim, kVector<T>));
  const uint64_t lanes = std::clamp<uint64_t>(std::bit_ceil(vectors), 4, kWarp);
  return share_work(rows, std::countr_zero(lanes));
}

inline int64_t blocks_of(const Sizes& sizes, const Work& work) {
  return int64_t{sizes.batch} * work.row_blocks * sizes.heads;
}

// Whether all rows of `head_dim` elements can be read in whole vectors.
template <typename T, typename... Pointers>
bool in_whole_vectors(int64_t head_dim, const Pointers*... pointers) {
  return head_dim % kVector<T> == 0 && (is_aligned(pointers) && ...);
}

}  // namespace attnzoo::ms_deform_attn

// The sizes and inputs of one call as kernel arguments.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../common/cuda_launch.cuh"
#include "../common/cuda_vector.cuh"
#include "../common/macros.h"
#include "problem.h"

namespace attnzoo::deform_kv_attn {

constexpr int kThreads = 64;      // per block
constexpr int kKeysPerBlock = 8;  // in `grad_key_value_kernel`
constexpr int kMaxLevels = 64;    // levels are kernel arguments

struct Level32 {
  int32_t height;  // of the table
  int32_t width;
  int32_t table_offset;  // of the table in the tables of a head
  int32_t padded_width;
  int32_t padded_offset;  // of the padded table in the padded tables of a head
  int32_t first_key;
  int32_t end_key;
  int32_t first_block;  // of kKeysPerBlock keys
};

// Sizes and indices within an image and head fit in 31 bits, which the host checks. Offsets in memory need 64 bits.
struct Sizes {
  int32_t batch;
  int32_t heads;
  int32_t groups;
  int32_t queries;
  int32_t keys;
  int32_t head_dim;
  int32_t cells;         // of all tables of a head
  int32_t padded_cells;  // of all padded tables of a head
  int32_t num_levels;
  Level32 levels[kMaxLevels];

  __host__ __device__ int64_t tasks() const {
    return int64_t{batch} * heads;
  }
};

// One head of one image.
struct Task {
  __device__ Task(const Sizes& sizes, int64_t index)
      : index(index),
        image(static_cast<int32_t>(index / sizes.heads)),
        head(static_cast<int32_t>(index % sizes.heads)),
        group(head / (sizes.heads / sizes.groups)) {}

  // The rows of this task, from `first` on.
  template <typename T>
  __device__ __forceinline__ T* rows(const StridedTensor<T>& tensor, int32_t first) const {
    return tensor.head(image, head) + first * tensor.row_stride;
  }

  int64_t index;
  int32_t image;
  int32_t head;
  int32_t group;
};

// S: the type of query, key and value, and of the output and their gradients, in memory. All else is in T.
template <typename S>
struct Inputs {
  using T = ComputeType<S>;
  Sizes sizes;
  StridedTensor<const S> query;
  StridedTensor<const S> key;
  StridedTensor<const S> value;
  const T* query_positions;  // (B, L, Nq, 2)
  const T* key_positions;    // (B, G, Nk, 2)
  const bool* masked;        // (B, Nk), or null
  const T* cells;            // (H, padded cells, 4), written by `cells_kernel`
  T scale;
  bool vectorized;  // the rows of all tensors of the call, outputs included, can be accessed in vectors of kVectorSize<T>

  // (Nq, 2), the positions of the queries on a level.
  __device__ const T* level_query_positions(const Task& task, int32_t level) const {
    return query_positions + (int64_t{task.image} * sizes.num_levels + level) * sizes.queries * 2;
  }

  // The cells of a level, from row 0 and column 0 of its table on.
  __device__ const T* level_cells(const Task& task, const Level32& level) const {
    const int64_t padding = kTablePadding * (int64_t{level.padded_width} + 1);
    return cells + (int64_t{task.head} * sizes.padded_cells + level.padded_offset + padding) * 4;
  }
};

// A position in cells of a table.
template <typename T>
struct Position {
  T x;
  T y;
};

// The position of a query, plus the centre of the table, where a displacement of zero is read. Subtracting the position
// of a key gives the position in the table at which the bias is read.
template <typename T>
__device__ __forceinline__ Position<T> table_position(const T* positions, int32_t index, const Level32& level) {
  return {
      positions[2 * int64_t{index}] + T(0.5) * static_cast<T>(level.width - 1),
      positions[2 * int64_t{index} + 1] + T(0.5) * static_cast<T>(level.height - 1)};
}

}  // namespace attnzoo::deform_kv_attn

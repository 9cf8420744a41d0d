// The sizes and inputs of one call as a kernel argument.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../common/cuda_launch.cuh"
#include "../common/macros.h"
#include "problem.h"

namespace attnzoo::deform_kv_attn {

constexpr int kThreads = 64;
constexpr int kKeys = 8;  // that a block works on, where blocks work on keys
constexpr int kMaxLevels = 64;  // they travel as a kernel argument

struct Level32 {
  int32_t height;  // of the table
  int32_t width;
  int32_t first_cell;
  int32_t first_key;
  int32_t end_key;
  int32_t first_block;  // of keys, where blocks work on keys
};

// All that is counted in one image and head fits in 31 bits (checked on the host), offsets in memory need 64.
struct Sizes {
  int32_t batch;
  int32_t heads;
  int32_t groups;
  int32_t queries;
  int32_t keys;
  int32_t dim;
  int32_t cells;  // of the tables of all levels
  int32_t num_levels;
  Level32 levels[kMaxLevels];

  __host__ __device__ int64_t tasks() const {
    return int64_t{batch} * heads;
  }
};

// One head of one image.
struct Task {
  __device__ Task(const Sizes& sizes, int64_t number)
      : number(number),
        image(static_cast<int32_t>(number / sizes.heads)),
        head(static_cast<int32_t>(number % sizes.heads)),
        group(head / (sizes.heads / sizes.groups)) {}

  int64_t number;
  int32_t image;
  int32_t head;
  int32_t group;
};

template <typename T>
struct Given {
  Sizes sizes;
  Rows<const T> query;
  Rows<const T> key;
  Rows<const T> value;
  const T* query_positions;  // (B, L, Nq, 2)
  const T* key_positions;  // (B, G, Nk, 2)
  const bool* hidden;  // (B, Nk), or null
  const T* tables;  // (H, cells)
  T scale;
  bool whole;  // the rows of this call, results included, are read and written sixteen bytes at a time

  // Where the queries of a task stand on a level.
  __device__ const T* queries_on(const Task& task, int32_t level) const {
    return query_positions + (int64_t{task.image} * sizes.num_levels + level) * sizes.queries * 2;
  }

  __device__ const T* table(const Task& task, const Level32& level) const {
    return tables + int64_t{task.head} * sizes.cells + level.first_cell;
  }
};

// A position, counted in cells of a table.
template <typename T>
struct Place {
  T x;
  T y;
};

// Where a displacement of zero from `positions[2 · index]` would fall in the table of a level.
template <typename T>
__device__ __forceinline__ Place<T> place(const T* positions, int32_t index, const Level32& level) {
  return {
      positions[2 * int64_t{index}] + T(0.5) * static_cast<T>(level.width - 1),
      positions[2 * int64_t{index} + 1] + T(0.5) * static_cast<T>(level.height - 1)};
}

}  // namespace attnzoo::deform_kv_attn

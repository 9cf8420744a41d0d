// The sizes of one call as a kernel argument, and how the threads of a block share the work.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../common/cuda_launch.cuh"
#include "bilinear.h"

namespace attnzoo::ms_deform_attn {

constexpr int kThreads = 128;
constexpr int kMaxLevels = 64;  // twice as many as halvings of a map of 2³¹ tokens; they travel as a kernel argument

using Level32 = LevelOf<int32_t>;

// What counts the elements of one image or query fits in 31 bits (checked on the host), offsets in memory need 64.
struct Sizes {
  int32_t batch;
  int32_t tokens;
  int32_t heads;
  int32_t head_dim;
  int32_t queries;
  int32_t points;
  int32_t num_levels;
  Level32 levels[kMaxLevels];

  __host__ __device__ int32_t samples() const {
    return num_levels * points;
  }
  // Elements from one token to the next.
  __host__ __device__ int32_t stride() const {
    return heads * head_dim;
  }
};

// How a kernel's threads share the rows (queries or tokens) of all images and heads. A block is cut into groups of
// neighbouring threads, 2^log_lanes of them, within a warp. A group works on one row of one head; its lanes hold
// neighbouring vectors of channels. The groups of a block take neighbouring rows of the same head: where queries lie
// on a grid, these read the same part of the map.
struct Work {
  int32_t log_lanes;
  int32_t row_blocks;  // per image and head

  __host__ __device__ int32_t rows_in_block() const {
    return kThreads >> log_lanes;
  }
};

inline Work share_work(int64_t rows, int32_t log_lanes) {
  Work work{log_lanes, 0};
  work.row_blocks = static_cast<int32_t>(divide_up(rows, work.rows_in_block()));
  return work;
}

// Where this thread stands.
struct Position {
  __device__ Position(const Sizes& sizes, const Work& work)
      : lanes(1 << work.log_lanes), lane(threadIdx.x & (lanes - 1)), group(threadIdx.x >> work.log_lanes) {
    const uint32_t heads = sizes.heads;
    const uint32_t row_blocks = work.row_blocks;
    const uint32_t block = blockIdx.x / heads;
    head = blockIdx.x % heads;
    image = block / row_blocks;
    row = int64_t{block % row_blocks} * work.rows_in_block() + group;
  }

  // The lanes of this group among those of its warp.
  __device__ uint32_t mask() const {
    return (kAllLanes >> (kWarp - lanes)) << (group * lanes % kWarp);
  }

  int32_t lanes;  // per group
  int32_t lane;   // in its group
  int32_t group;  // in its block
  int32_t head;
  int32_t image;
  int64_t row;  // may be past the last
};

// One query of one image, counted through the batch, and one head of it. An inactive item is there only because the
// threads of a warp stay together: it reads what the last query reads and writes nothing.
struct Item {
  __device__ Item(const Sizes& sizes, const Position& position)
      : query(int64_t{position.image} * sizes.queries + (position.row < sizes.queries ? position.row : sizes.queries - 1)),
        head(position.head),
        active(position.row < sizes.queries) {}

  __device__ int64_t index(const Sizes& sizes) const {
    return query * sizes.heads + head;
  }

  int64_t query;
  int32_t head;
  bool active;
};

}  // namespace attnzoo::ms_deform_attn

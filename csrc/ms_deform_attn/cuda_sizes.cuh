// The sizes of one call as a kernel argument, and how the work is divided among threads.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../common/cuda_launch.cuh"
#include "bilinear.h"

namespace attnzoo::ms_deform_attn {

constexpr int kThreads = 128;   // per block
constexpr int kMaxLevels = 64;  // levels are kernel arguments; 2³¹ tokens can be halved only 31 times

using Level32 = LevelOf<int32_t>;

// Sizes and indices within an image fit in 31 bits, which the host checks. Offsets in memory need 64 bits.
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
  __host__ __device__ int32_t token_stride() const {
    return heads * head_dim;
  }
};

// Divides the rows (queries or tokens) of all images and heads among threads. A block consists of groups of 2^log_lanes
// consecutive threads; a group is part of one warp. A group processes one row of one head, and its lanes hold
// consecutive vectors of channels. The groups of a block process consecutive rows of the same head: if the queries form
// a grid, they read the same part of the map.
struct Partition {
  int32_t log_lanes;
  int32_t blocks_per_head;  // of one image

  __host__ __device__ int32_t rows_per_block() const {
    return kThreads >> log_lanes;
  }
};

inline Partition make_partition(int64_t rows, int32_t log_lanes) {
  Partition partition{log_lanes, 0};
  partition.blocks_per_head = static_cast<int32_t>(ceil_div(rows, partition.rows_per_block()));
  return partition;
}

// The row, head and image that this thread works on, and its lane.
struct ThreadIndex {
  __device__ ThreadIndex(const Sizes& sizes, const Partition& partition)
      : lanes(1 << partition.log_lanes), lane(threadIdx.x & (lanes - 1)), group(threadIdx.x >> partition.log_lanes) {
    const uint32_t heads = sizes.heads;
    const uint32_t blocks_per_head = partition.blocks_per_head;
    const uint32_t block = blockIdx.x / heads;
    head = blockIdx.x % heads;
    image = block / blocks_per_head;
    row = int64_t{block % blocks_per_head} * partition.rows_per_block() + group;
  }

  // The lanes of this group, as a mask for warp shuffles.
  __device__ uint32_t mask() const {
    return (kFullMask >> (kWarpSize - lanes)) << (group * lanes % kWarpSize);
  }

  int32_t lanes;  // per group
  int32_t lane;   // in the group
  int32_t group;  // in the block
  int32_t head;
  int32_t image;
  int64_t row;  // may be past the last
};

// One head of one query. `query` is an index over all images. Groups past the last query are not active: they take part
// in the synchronization of their warp, read what the last query reads, and write nothing.
struct QueryHead {
  __device__ QueryHead(const Sizes& sizes, const ThreadIndex& thread)
      : query(int64_t{thread.image} * sizes.queries + (thread.row < sizes.queries ? thread.row : sizes.queries - 1)),
        head(thread.head),
        active(thread.row < sizes.queries) {}

  __device__ int64_t index(const Sizes& sizes) const {
    return query * sizes.heads + head;
  }

  int64_t query;
  int32_t head;
  bool active;
};

}  // namespace attnzoo::ms_deform_attn

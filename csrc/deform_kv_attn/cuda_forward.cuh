// Forward: every thread has one or two queries. All threads of a block process the keys together, a tile at a time.
#pragma once

#include <cmath>
#include <limits>

#include "cuda_table.cuh"
#include "cuda_tile.cuh"

namespace attnzoo::deform_kv_attn {

// The initial maximum of the softmax. Finite, because -inf - (-inf) is NaN.
template <typename T>
constexpr T kLowest = std::numeric_limits<T>::lowest();

template <typename S>
struct ForwardArgs {
  Inputs<S> inputs;
  StridedTensor<S> output;
  ComputeType<S>* logsumexp;  // (B, H, Nq)
};

// Two queries per thread halve the reads of keys and values from shared memory. With more than 32 channels of float,
// there are not enough registers for two.
template <typename T, int kDim>
constexpr int kQueriesPerThread = sizeof(T) * kDim <= 128 ? 2 : 1;

// Resident blocks per multiprocessor, for __launch_bounds__. Eight leave 128 registers per thread, six leave 168.
template <typename T, int kDim>
constexpr int kForwardBlocksPerSm = sizeof(T) * kDim <= 128 ? 8 : sizeof(T) * kDim <= 256 ? 6 : 4;

constexpr int kKeyTile = 16;     // keys in shared memory at a time
constexpr int kKeysPerStep = 4;  // keys that a thread processes at a time; more would take too many registers

template <typename T, int kDim>
constexpr int kForwardSharedElements =
    kThreads * kQueriesPerThread<T, kDim> * kPitch<T, kDim> + KeyTile<T, kDim, kKeyTile>::kElements;

constexpr int kMaxGrowth = 8;

// A step of the online softmax: replaces the scores by 2^(score - max). If a score is more than kMaxGrowth above `max`,
// that becomes the new maximum, and the sums so far are rescaled to it, which few steps need.
template <typename T, int kDim>
__device__ __forceinline__ void update_softmax(T (&scores)[kKeysPerStep], T& max, T& sum, T (&output)[kDim]) {
  T new_max = max;
#pragma unroll
  for (int j = 0; j < kKeysPerStep; ++j) {
    new_max = std::fmax(new_max, scores[j]);
  }
  if (new_max > max + T(kMaxGrowth)) {
    const T rescale = std::exp2(max - new_max);
    max = new_max;
    sum *= rescale;
#pragma unroll
    for (int d = 0; d < kDim; ++d) {
      output[d] *= rescale;
    }
  }
#pragma unroll
  for (int j = 0; j < kKeysPerStep; ++j) {
    scores[j] = std::exp2(scores[j] - max);
    sum += scores[j];
  }
}

template <typename S, int kDim>
__global__ void __launch_bounds__(kThreads, kForwardBlocksPerSm<ComputeType<S>, kDim>)
    forward_kernel(const __grid_constant__ ForwardArgs<S> args) {
  using T = ComputeType<S>;
  constexpr int kUnrolledDots = kForwardBlocksPerSm<T, kDim> == 8 ? 1 : 2;  // vectors; more would spill registers
  constexpr int kQueries = kQueriesPerThread<T, kDim>;
  constexpr int kRows = kThreads * kQueries;
  const Inputs<S>& inputs = args.inputs;
  const Sizes& sizes = inputs.sizes;
  const auto blocks = static_cast<uint32_t>(ceil_div(sizes.queries, kRows));
  const Task task(sizes, blockIdx.x / blocks);
  const int32_t first_query = static_cast<int32_t>(blockIdx.x % blocks) * kRows;
  const int32_t count = sizes.queries - first_query;
  T* rows = dynamic_shared_memory<T>();
  T* my_rows = rows + threadIdx.x * kPitch<T, kDim>;
  const KeyTile<T, kDim, kKeyTile> tile(rows + kRows * kPitch<T, kDim>);
  // Scores are multiplied by log2(e), because exp2 is faster than exp.
  const bool* no_mask = nullptr;
  rows_to_shared<kRows, kDim>(
      inputs.vectorized, task.rows(inputs.query, first_query), inputs.query.row_stride, count, sizes.head_dim,
      inputs.scale * T(kLog2E), no_mask, rows);
  T max[kQueries];
  T sum[kQueries];
  T output[kQueries][kDim];
#pragma unroll
  for (int i = 0; i < kQueries; ++i) {
    max[i] = kLowest<T>;
    sum[i] = 0;
#pragma unroll
    for (int d = 0; d < kDim; ++d) {
      output[i][d] = 0;
    }
  }
  for (int32_t l = 0; l < sizes.num_levels; ++l) {
    const Level32 level = sizes.levels[l];
    const T* cells = inputs.level_cells(task, level);
    Position<T> positions[kQueries];
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
      const int32_t row = i * kThreads + static_cast<int32_t>(threadIdx.x);
      positions[i] = table_position(inputs.level_query_positions(task, l), first_query + min(row, count - 1), level);
    }
    for (int32_t first = level.first_key; first < level.end_key; first += kKeyTile) {
      __syncthreads();
      tile.load(inputs, task, first, level.end_key);
      __syncthreads();
#pragma unroll 1
      for (int step = 0; step < kKeyTile && first + step < level.end_key; step += kKeysPerStep) {
        const auto step_tile = tile.from_key(step);
        T scores[kQueries][kKeysPerStep] = {};
        add_dots<kDim, kUnrolledDots>(my_rows, step_tile.keys, scores);
        // All loads before the first use, so that they are in flight together.
        Footprint<T> footprints[kQueries][kKeysPerStep];
        Cell<T> step_cells[kQueries][kKeysPerStep];
#pragma unroll
        for (int j = 0; j < kKeysPerStep; ++j) {
#pragma unroll
          for (int i = 0; i < kQueries; ++i) {
            footprints[i][j] = compute_footprint(positions[i], step_tile.positions[j], level);
            step_cells[i][j] = load_cell(cells, level, footprints[i][j]);
          }
        }
#pragma unroll
        for (int j = 0; j < kKeysPerStep; ++j) {
#pragma unroll
          for (int i = 0; i < kQueries; ++i) {
            const T score = scores[i][j] + interpolate(step_cells[i][j], footprints[i][j]);
            scores[i][j] = step_tile.visible[j] ? score : -INFINITY;
          }
        }
#pragma unroll
        for (int i = 0; i < kQueries; ++i) {
          update_softmax(scores[i], max[i], sum[i], output[i]);
        }
        add_weighted_rows<kDim>(step_tile.values, scores, output);
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kQueries; ++i) {
    const int32_t row = i * kThreads + static_cast<int32_t>(threadIdx.x);
    // If all keys are masked, the output is zero. The infinite logsumexp makes all weights zero in the backward pass.
    const bool all_masked = sum[i] == T(0);
    const T factor = all_masked ? T(0) : T(1) / sum[i];
    if (row < count) {
      args.logsumexp[task.index * sizes.queries + first_query + row] =
          all_masked ? T(INFINITY) : T(kLn2) * (max[i] + std::log2(sum[i]));
    }
#pragma unroll
    for (int d = 0; d < kDim; ++d) {
      my_rows[i * kThreads * kPitch<T, kDim> + d] = factor * output[i][d];
    }
  }
  __syncthreads();
  rows_from_shared<kRows, kDim>(
      inputs.vectorized, rows, count, sizes.head_dim, task.rows(args.output, first_query), args.output.row_stride);
}

}  // namespace attnzoo::deform_kv_attn

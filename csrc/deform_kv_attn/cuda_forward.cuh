// Forward: every thread has some queries, and all threads of a block go through the keys together, a tile at a time.
#pragma once

#include <cmath>
#include <limits>

#include "cuda_table.cuh"
#include "cuda_tile.cuh"

namespace attnzoo::deform_kv_attn {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

// Finite: its difference from itself is a number.
template <typename T>
constexpr T kLowest = std::numeric_limits<T>::lowest();

template <typename T>
struct ForwardCall {
  Given<T> given;
  Rows<T> output;
  T* log_sums;  // (B, H, Nq)
};

// Queries per thread. With two, keys and values are read from shared memory half as often; more channels than 32 leave
// no registers for that.
template <typename T, int kDim>
constexpr int kQueries = sizeof(T) * kDim <= 128 ? 2 : 1;

constexpr int kTile = 16;  // keys that lie in shared memory at a time
constexpr int kScores = 4;  // of them that a thread works out at a time: more take too many registers

template <typename T, int kDim>
constexpr int kForwardNumbers = kThreads * kQueries<T, kDim> * kPitch<T, kDim> + KeyTile<T, kDim, kTile>::kNumbers;

// Takes the scores of a tile into the softmax and leaves their weights relative to the largest so far; what was summed
// before is brought to that. All in powers of two.
template <typename T, int kDim>
__device__ __forceinline__ void take_in(T (&scores)[kScores], T& largest, T& sum, T (&output)[kDim]) {
  T next = largest;
#pragma unroll
  for (int j = 0; j < kScores; ++j) {
    next = std::fmax(next, scores[j]);
  }
  const T shrink = std::exp2(largest - next);
  largest = next;
  sum *= shrink;
#pragma unroll
  for (int j = 0; j < kScores; ++j) {
    scores[j] = std::exp2(scores[j] - next);
    sum += scores[j];
  }
#pragma unroll
  for (int d = 0; d < kDim; ++d) {
    output[d] *= shrink;
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ ForwardCall<T> call) {
  constexpr int kMine = kQueries<T, kDim>;
  constexpr int kRows = kThreads * kMine;
  const Given<T>& given = call.given;
  const Sizes& sizes = given.sizes;
  const auto blocks = static_cast<uint32_t>(ceil_div(sizes.queries, kRows));
  const Task task(sizes, blockIdx.x / blocks);
  const int32_t first_query = static_cast<int32_t>(blockIdx.x % blocks) * kRows;
  const int32_t count = sizes.queries - first_query;
  T* rows = dynamic_shared_memory<T>();
  T* my_rows = rows + threadIdx.x * kPitch<T, kDim>;
  const KeyTile<T, kDim, kTile> staged(rows + kRows * kPitch<T, kDim>);
  // The hardware has powers of two, so scores are in units of ln 2.
  stage<kRows, kDim>(
      given.whole, given.query.of(task.image, task.head) + first_query * given.query.row, given.query.row, count,
      sizes.dim, given.scale * T(kLog2E), static_cast<const bool*>(nullptr), rows);
  T largest[kMine];
  T sum[kMine];
  T output[kMine][kDim];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    largest[i] = kLowest<T>;
    sum[i] = 0;
#pragma unroll
    for (int d = 0; d < kDim; ++d) {
      output[i][d] = 0;
    }
  }
  for (int32_t l = 0; l < sizes.num_levels; ++l) {
    const Level32 level = sizes.levels[l];
    const T* table = given.table(task, level);
    Place<T> places[kMine];
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int32_t mine = i * kThreads + static_cast<int32_t>(threadIdx.x);
      places[i] = place(given.queries_on(task, l), first_query + min(mine, count - 1), level);
    }
    for (int32_t first = level.first_key; first < level.end_key; first += kTile) {
      __syncthreads();
      staged.load(given, task, first, level.end_key);
      __syncthreads();
#pragma unroll 1
      for (int part = 0; part < kTile && first + part < level.end_key; part += kScores) {
        const auto tile = staged.from(part);
        T scores[kMine][kScores] = {};
        add_products<kDim>(my_rows, tile.keys, scores);
#pragma unroll
        for (int j = 0; j < kScores; ++j) {
          const bool seen = tile.seen[j];
          const Place<T> key = tile.places[j];
#pragma unroll
          for (int i = 0; i < kMine; ++i) {
            if (seen) {
              scores[i][j] += T(kLog2E) * interpolate(table, level, locate(places[i], key, level)).value;
            } else {
              scores[i][j] = -INFINITY;
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          take_in(scores[i], largest[i], sum[i], output[i]);
        }
        add_rows<kDim>(tile.values, scores, output);
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int32_t mine = i * kThreads + static_cast<int32_t>(threadIdx.x);
    // Without a key the output is zero, and an infinite logarithm makes all weights zero in the backward pass.
    const bool empty = sum[i] == T(0);
    const T factor = empty ? T(0) : T(1) / sum[i];
    if (mine < count) {
      call.log_sums[task.number * sizes.queries + first_query + mine] =
          empty ? T(INFINITY) : T(kLn2) * (largest[i] + std::log2(sum[i]));
    }
#pragma unroll
    for (int d = 0; d < kDim; ++d) {
      my_rows[i * kThreads * kPitch<T, kDim> + d] = factor * output[i][d];
    }
  }
  __syncthreads();
  unstage<kRows, kDim>(
      given.whole, rows, count, sizes.dim, call.output.of(task.image, task.head) + first_query * call.output.row, call.output.row);
}

}  // namespace attnzoo::deform_kv_attn

// The bias on CUDA: a table read bilinearly at displacements, zero beyond it, and gradients by its cells.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "../common/cuda_launch.cuh"
#include "cuda_sizes.cuh"

namespace attnzoo::deform_kv_attn {

// Where a displacement falls: the cell to the upper left, which may lie one beyond the table, and the distances from it.
template <typename T>
struct Footprint {
  int32_t column;
  int32_t row;
  T fx;  // in [0, 1)
  T fy;  // in [0, 1)
  bool inside;  // false: NaN, or no cell of the table is near enough to matter
};

template <typename T>
__device__ __forceinline__ Footprint<T> locate(const Place<T>& query, const Place<T>& key, const Level32& level) {
  const T x = query.x - key.x;
  const T y = query.y - key.y;
  Footprint<T> at{};
  at.inside = x > T(-1) && x < static_cast<T>(level.width) && y > T(-1) && y < static_cast<T>(level.height);
  if (at.inside) {
    const T left = std::floor(x);
    const T top = std::floor(y);
    at.column = static_cast<int32_t>(left);
    at.row = static_cast<int32_t>(top);
    at.fx = x - left;
    at.fy = y - top;
  }
  return at;
}

__device__ __forceinline__ bool holds(const Level32& level, int32_t column, int32_t row) {
  return static_cast<uint32_t>(column) < static_cast<uint32_t>(level.width) &&
      static_cast<uint32_t>(row) < static_cast<uint32_t>(level.height);
}

template <typename T>
__device__ __forceinline__ T cell(const T* table, const Level32& level, int32_t column, int32_t row) {
  return holds(level, column, row) ? __ldg(table + row * level.width + column) : T(0);
}

// The bias, and how it changes with each cell of displacement.
template <typename T>
struct Bias {
  T value;
  T by_x;
  T by_y;
};

template <typename T>
__device__ __forceinline__ Bias<T> interpolate(const T* table, const Level32& level, const Footprint<T>& at) {
  if (!at.inside) {
    return {T(0), T(0), T(0)};
  }
  const T upper_left = cell(table, level, at.column, at.row);
  const T lower_left = cell(table, level, at.column, at.row + 1);
  const T along_top = cell(table, level, at.column + 1, at.row) - upper_left;
  const T along_bottom = cell(table, level, at.column + 1, at.row + 1) - lower_left;
  const T top = upper_left + at.fx * along_top;
  const T by_y = lower_left + at.fx * along_bottom - top;
  return {top + at.fy * by_y, along_top + at.fy * (along_bottom - along_top), by_y};
}

// Gradients by the cells of the tables are added up as integers, so that the order in which threads add does not matter.
// Their unit is the smallest with which no sum can pass 63 bits (`log2_units`). A float's digits lie far above it; of a
// double a second integer holds what is below, in units 2^kLower times as small.
constexpr int kLower = 40;

template <typename T>
constexpr int kWords = sizeof(T) / sizeof(float);

template <typename T>
struct TableSums {
  unsigned long long* sums;  // (H, cells, kWords)
  int32_t* broken;  // (H), not zero where a gradient was not finite
};

template <typename T>
__device__ __forceinline__ void add_to_cell(
    unsigned long long* table, const Level32& level, int32_t column, int32_t row, T x) {
  if (x != T(0) && holds(level, column, row)) {
    unsigned long long* to = table + int64_t{row * level.width + column} * kWords<T>;
    const long long upper = std::llrint(x);
    atomicAdd(to, static_cast<unsigned long long>(upper));
    if constexpr (kWords<T> == 2) {
      const long long lower = std::llrint(std::ldexp(x - static_cast<T>(upper), kLower));
      atomicAdd(to + 1, static_cast<unsigned long long>(lower));
    }
  }
}

// Adds `gradient`, in units, to the four cells around. All lanes of the warp take part, those without a gradient with
// zero. Where their footprints lie side by side, as those of queries in a row of a map do, each cell is added to once.
template <typename T>
__device__ __forceinline__ void spread(
    unsigned long long* table, const Level32& level, const Footprint<T>& at, T gradient) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const T bottom = gradient * at.fy;
  const T top = gradient - bottom;
  T right[] = {top * at.fx, bottom * at.fx};
  T left[] = {top - right[0], bottom - right[1]};
  const int32_t first_column = __shfl_sync(kFullMask, at.column, 0, kWarpSize);
  const int32_t first_row = __shfl_sync(kFullMask, at.row, 0, kWarpSize);
  const bool side_by_side = __all_sync(kFullMask, at.column == first_column + lane && at.row == first_row);
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (side_by_side) {
      const T from_left = __shfl_up_sync(kFullMask, right[k], 1);
      left[k] += lane > 0 ? from_left : T(0);
      right[k] = lane == kWarpSize - 1 ? right[k] : T(0);
    }
    add_to_cell(table, level, at.column, at.row + k, left[k]);
    add_to_cell(table, level, at.column + 1, at.row + k, right[k]);
  }
}

}  // namespace attnzoo::deform_kv_attn

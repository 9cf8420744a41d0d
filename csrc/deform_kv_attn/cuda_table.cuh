// The bias from a table: bilinear interpolation at a displacement, zero outside the table, and its gradients.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "../common/cuda_launch.cuh"
#include "cuda_sizes.cuh"

namespace attnzoo::deform_kv_attn {

// The footprint of a displacement in a table.
template <typename T>
struct Footprint {
  int32_t column;  // of the upper left cell, from -1 on
  int32_t row;
  T fx;  // distance from it, in [0, 1)
  T fy;
  bool inside;  // false: all four cells are outside the table, or the displacement is NaN
};

template <typename T>
__device__ __forceinline__ Footprint<T> compute_footprint(
    const Position<T>& query, const Position<T>& key, const Level32& level) {
  const T x = query.x - key.x;
  const T y = query.y - key.y;
  Footprint<T> footprint{};
  footprint.inside = x > T(-1) && x < static_cast<T>(level.width) && y > T(-1) && y < static_cast<T>(level.height);
  if (footprint.inside) {
    const T left = std::floor(x);
    const T top = std::floor(y);
    footprint.column = static_cast<int32_t>(left);
    footprint.row = static_cast<int32_t>(top);
    footprint.fx = x - left;
    footprint.fy = y - top;
  }
  return footprint;
}

__device__ __forceinline__ bool in_table(const Level32& level, int32_t column, int32_t row) {
  return static_cast<uint32_t>(column) < static_cast<uint32_t>(level.width) &&
      static_cast<uint32_t>(row) < static_cast<uint32_t>(level.height);
}

template <typename T>
__device__ __forceinline__ T load_cell(const T* table, const Level32& level, int32_t column, int32_t row) {
  return in_table(level, column, row) ? __ldg(table + row * level.width + column) : T(0);
}

// The bias and its derivatives with respect to the displacement.
template <typename T>
struct Bias {
  T value;
  T dx;
  T dy;
};

template <typename T>
__device__ __forceinline__ Bias<T> interpolate(const T* table, const Level32& level, const Footprint<T>& footprint) {
  if (!footprint.inside) {
    return {T(0), T(0), T(0)};
  }
  const T upper_left = load_cell(table, level, footprint.column, footprint.row);
  const T lower_left = load_cell(table, level, footprint.column, footprint.row + 1);
  const T upper_dx = load_cell(table, level, footprint.column + 1, footprint.row) - upper_left;
  const T lower_dx = load_cell(table, level, footprint.column + 1, footprint.row + 1) - lower_left;
  const T top = upper_left + footprint.fx * upper_dx;
  const T dy = lower_left + footprint.fx * lower_dx - top;
  return {top + footprint.fy * dy, upper_dx + footprint.fy * (lower_dx - upper_dx), dy};
}

// The gradients of tables are accumulated in fixed point, in 64-bit integers: the sum of integers does not depend on
// their order. The scale is the largest for which no sum can overflow (`log2_fixed_point_scale`). One integer holds all
// bits of a float; a double needs a second one for the low bits, whose scale is larger by 2^kLowWordBits.
constexpr int kLowWordBits = 40;

template <typename T>
constexpr int kWordsPerCell = sizeof(T) / sizeof(float);

template <typename T>
struct TableGradSums {
  unsigned long long* sums;  // (H, cells, kWordsPerCell)
  int32_t* nonfinite;        // (H), 1 if a gradient of the head was infinite or NaN
};

// Adds x, which is already scaled.
template <typename T>
__device__ __forceinline__ void add_to_cell(
    unsigned long long* table, const Level32& level, int32_t column, int32_t row, T x) {
  if (x != T(0) && in_table(level, column, row)) {
    unsigned long long* to = table + int64_t{row * level.width + column} * kWordsPerCell<T>;
    const long long high = std::llrint(x);
    atomicAdd(to, static_cast<unsigned long long>(high));
    if constexpr (kWordsPerCell<T> == 2) {
      const long long low = std::llrint(std::ldexp(x - static_cast<T>(high), kLowWordBits));
      atomicAdd(to + 1, static_cast<unsigned long long>(low));
    }
  }
}

// Adds the scaled gradient of a bias to the four cells of its footprint. All lanes of the warp must call it, with zero
// if they have no gradient. If the footprints of the lanes are adjacent, as those of consecutive queries in a row of
// the map, lanes first combine what they add to the same cell, so that each cell is updated only once.
template <typename T>
__device__ __forceinline__ void interpolate_backward(
    unsigned long long* table, const Level32& level, const Footprint<T>& footprint, T scaled_grad) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const T bottom = scaled_grad * footprint.fy;
  const T top = scaled_grad - bottom;
  T right[] = {top * footprint.fx, bottom * footprint.fx};
  T left[] = {top - right[0], bottom - right[1]};
  const int32_t first_column = __shfl_sync(kFullMask, footprint.column, 0, kWarpSize);
  const int32_t first_row = __shfl_sync(kFullMask, footprint.row, 0, kWarpSize);
  const bool adjacent =
      __all_sync(kFullMask, footprint.column == first_column + lane && footprint.row == first_row);
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    if (adjacent) {
      const T from_left = __shfl_up_sync(kFullMask, right[k], 1);
      left[k] += lane > 0 ? from_left : T(0);
      right[k] = lane == kWarpSize - 1 ? right[k] : T(0);
    }
    add_to_cell(table, level, footprint.column, footprint.row + k, left[k]);
    add_to_cell(table, level, footprint.column + 1, footprint.row + k, right[k]);
  }
}

}  // namespace attnzoo::deform_kv_attn

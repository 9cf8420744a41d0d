// The bias from a table: bilinear interpolation at a displacement, zero outside the table, and its gradients.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../common/cuda_launch.cuh"
#include "../common/cuda_vector.cuh"
#include "cuda_sizes.cuh"

namespace attnzoo::deform_kv_attn {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

__device__ __forceinline__ bool in_table(const Level32& level, int32_t column, int32_t row) {
  return static_cast<uint32_t>(column) < static_cast<uint32_t>(level.width) &&
      static_cast<uint32_t>(row) < static_cast<uint32_t>(level.height);
}

// Tables of floats have fewer rows and columns than this, because of `round_down`.
constexpr int64_t kMaxFloatTableSize = int64_t{1} << 22;

// The largest integer that is at most x, which must be less than 2^22 in size, 2^31 in double. Conversions take a
// multiple of the time of an addition; adding 1.5 · 2^23 instead leaves the integer in the low bits.
__device__ __forceinline__ float round_down(float x, int32_t& integer) {
  constexpr float kShift = 12582912.0f;
  const float shifted = __fadd_rd(x, kShift);
  memcpy(&integer, &shifted, sizeof(integer));
  integer -= 0x4B400000;  // the bits of kShift
  return shifted - kShift;
}

__device__ __forceinline__ double round_down(double x, int32_t& integer) {
  constexpr double kShift = 6755399441055744.0;  // 1.5 · 2^52, whose low 32 bits are zero
  const double shifted = __dadd_rd(x, kShift);
  int64_t bits;
  memcpy(&bits, &shifted, sizeof(bits));
  integer = static_cast<int32_t>(bits);
  return shifted - kShift;
}

// The footprint of a displacement in a table.
template <typename T>
struct Footprint {
  int32_t column;  // of the upper left cell
  int32_t row;
  T fx;  // distance from it, in [0, 1]
  T fy;

  // Whether one of the four cells can be in the table.
  __device__ __forceinline__ bool touches(const Level32& level) const {
    return static_cast<uint32_t>(column + 1) <= static_cast<uint32_t>(level.width) &&
        static_cast<uint32_t>(row + 1) <= static_cast<uint32_t>(level.height);
  }
};

// Displacements that are NaN or beyond the padding move into it, where all cells are zero.
template <typename T>
__device__ __forceinline__ Footprint<T> compute_footprint(
    const Position<T>& query, const Position<T>& key, const Level32& level) {
  constexpr auto kMin = static_cast<T>(-kTablePadding);
  const T x = std::fmin(std::fmax(query.x - key.x, kMin), static_cast<T>(level.width));
  const T y = std::fmin(std::fmax(query.y - key.y, kMin), static_cast<T>(level.height));
  Footprint<T> footprint;
  footprint.fx = x - round_down(x, footprint.column);
  footprint.fy = y - round_down(y, footprint.row);
  return footprint;
}

// The bias within a footprint is value + fx · dx + fy · (dy + fx · dxdy), times log2(e). One access reads all four.
template <typename T>
struct Cell {
  T value;
  T dx;
  T dy;
  T dxdy;
};

template <typename T>
__device__ __forceinline__ Cell<T> load_cell(
    const T* cells, const Level32& level, const Footprint<T>& footprint) {
  const T* from = cells + 4 * int64_t{footprint.row * level.padded_width + footprint.column};
  Cell<T> cell;
  T parts[4 / kVectorSize<T>][kVectorSize<T>];
#pragma unroll
  for (int i = 0; i < 4 / kVectorSize<T>; ++i) {
    load<true>(from + i * kVectorSize<T>, kVectorSize<T>, parts[i]);
  }
  memcpy(&cell, parts, sizeof(cell));
  return cell;
}

// Times log2(e), as scores.
template <typename T>
__device__ __forceinline__ T interpolate(const Cell<T>& cell, const Footprint<T>& footprint) {
  return cell.value + footprint.fx * cell.dx + footprint.fy * (cell.dy + footprint.fx * cell.dxdy);
}

// The gradient of a displacement, times log2(e).
template <typename T>
__device__ __forceinline__ void add_position_gradient(
    const Cell<T>& cell, const Footprint<T>& footprint, T grad_score, Position<T>& gradient) {
  gradient.x += grad_score * (cell.dx + footprint.fy * cell.dxdy);
  gradient.y += grad_score * (cell.dy + footprint.fx * cell.dxdy);
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

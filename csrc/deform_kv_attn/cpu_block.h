// A block of queries. In its vectors, each lane is a query.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/simd.h"

namespace attnzoo::deform_kv_attn::ATTNZOO_ISA {

using namespace attnzoo::ATTNZOO_ISA;

constexpr int kBlockVectors = 4;  // vectors of queries in a block
template <typename T>
constexpr int64_t kQueryBlock = kBlockVectors * kSimdWidth<T>;  // queries in a block

constexpr int64_t kAlignment = 64;  // bytes

// `size` rounded up to a multiple of the lanes of a vector.
template <typename T>
constexpr int64_t pad_to_vector(int64_t size) {
  return (size + kSimdWidth<T> - 1) / kSimdWidth<T> * kSimdWidth<T>;
}

// to = factor · from
template <typename T>
ATTNZOO_INLINE void scale_row(const T* from, int64_t size, T factor, T* to) {
  int64_t i = 0;
  for (; i + kSimdWidth<T> <= size; i += kSimdWidth<T>) {
    store(to + i, load<Simd<T>>(from + i) * factor);
  }
  for (; i < size; ++i) {
    to[i] = from[i] * factor;
  }
}

// Queries [first, first + count) of an image. The last block may have fewer than kQueryBlock.
template <typename T>
struct QueryBlock {
  int64_t first;
  int64_t count;

  // Copies the rows of the block, times `factor`, to a zero-padded matrix (kQueryBlock, padded D).
  ATTNZOO_INLINE void load_rows(const T* rows, int64_t row_stride, int64_t head_dim, T factor, T* to) const {
    const int64_t columns = pad_to_vector<T>(head_dim);
    for (int64_t i = 0; i < count; ++i) {
      scale_row(rows + (first + i) * row_stride, head_dim, factor, to + i * columns);
      std::fill(to + i * columns + head_dim, to + (i + 1) * columns, T(0));
    }
    std::fill(to + count * columns, to + kQueryBlock<T> * columns, T(0));
  }

  // The inverse of `load_rows`, with one factor per row.
  ATTNZOO_INLINE void store_rows(const T* from, int64_t head_dim, const T* factors, T* rows, int64_t row_stride) const {
    for (int64_t i = 0; i < count; ++i) {
      scale_row(from + i * pad_to_vector<T>(head_dim), head_dim, factors[i], rows + (first + i) * row_stride);
    }
  }
};

// Transposes a matrix (rows, columns). Both sizes are multiples of the lanes of a vector.
template <typename T>
ATTNZOO_INLINE void transpose(const T* from, int64_t rows, int64_t columns, T* to) {
  for (int64_t i = 0; i < rows; i += kSimdWidth<T>) {
    for (int64_t j = 0; j < columns; j += kSimdWidth<T>) {
      Simd<T> square[kSimdWidth<T>];
      for (int k = 0; k < kSimdWidth<T>; ++k) {
        square[k] = load<Simd<T>>(from + (i + k) * columns + j);
      }
      transpose_square(square);
      for (int k = 0; k < kSimdWidth<T>; ++k) {
        store(to + (j + k) * rows + i, square[k]);
      }
    }
  }
}

template <typename T>
struct Position {
  T x;
  T y;
};

// The positions of the queries of a block, or their gradients.
template <typename T>
struct BlockPositions {
  Simd<T> x[kBlockVectors];
  Simd<T> y[kBlockVectors];
};

// The positions of a block, plus `offset`.
template <typename T>
ATTNZOO_INLINE BlockPositions<T> load_positions(
    const Position<T>& offset, const T* query_positions, const QueryBlock<T>& block) {
  alignas(kAlignment) T x[kQueryBlock<T>] = {};
  alignas(kAlignment) T y[kQueryBlock<T>] = {};
  for (int64_t i = 0; i < block.count; ++i) {
    x[i] = query_positions[2 * (block.first + i)] + offset.x;
    y[i] = query_positions[2 * (block.first + i) + 1] + offset.y;
  }
  BlockPositions<T> positions;
  for (int v = 0; v < kBlockVectors; ++v) {
    positions.x[v] = load<Simd<T>>(x + v * kSimdWidth<T>);
    positions.y[v] = load<Simd<T>>(y + v * kSimdWidth<T>);
  }
  return positions;
}

template <typename T>
ATTNZOO_INLINE void add_position_grads(
    const BlockPositions<T>& grads, const QueryBlock<T>& block, T* grad_query_positions) {
  for (int64_t i = 0; i < block.count; ++i) {
    grad_query_positions[2 * (block.first + i)] += grads.x[i / kSimdWidth<T>][i % kSimdWidth<T>];
    grad_query_positions[2 * (block.first + i) + 1] += grads.y[i / kSimdWidth<T>][i % kSimdWidth<T>];
  }
}

}  // namespace attnzoo::deform_kv_attn::ATTNZOO_ISA

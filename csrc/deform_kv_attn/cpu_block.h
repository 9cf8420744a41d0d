// A block of queries, whose tokens and places are lanes of vectors.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/simd.h"

namespace attnzoo::deform_kv_attn::ATTNZOO_ISA {

using namespace attnzoo::ATTNZOO_ISA;

constexpr int kVectors = 4;  // of queries in a block
template <typename T>
constexpr int64_t kBlock = kVectors * kSimdWidth<T>;

constexpr int64_t kAlignment = 64;

template <typename T>
constexpr int64_t padded(int64_t size) {
  return (size + kSimdWidth<T> - 1) / kSimdWidth<T> * kSimdWidth<T>;
}

// to = factor · from
template <typename T>
ATTNZOO_INLINE void scale(const T* from, int64_t size, T factor, T* to) {
  int64_t i = 0;
  for (; i + kSimdWidth<T> <= size; i += kSimdWidth<T>) {
    store(to + i, load<Simd<T>>(from + i) * factor);
  }
  for (; i < size; ++i) {
    to[i] = from[i] * factor;
  }
}

// The queries of one block. Missing ones at the end of the sequence are zeros.
template <typename T>
struct Block {
  int64_t first;
  int64_t count;

  // Rows (count, D), times `factor`, as rows (kBlock, padded D), filled up with zeros.
  ATTNZOO_INLINE void take(const T* rows, int64_t stride, int64_t dim, T factor, T* to) const {
    const int64_t columns = padded<T>(dim);
    for (int64_t i = 0; i < count; ++i) {
      scale(rows + (first + i) * stride, dim, factor, to + i * columns);
      std::fill(to + i * columns + dim, to + (i + 1) * columns, T(0));
    }
    std::fill(to + count * columns, to + kBlock<T> * columns, T(0));
  }

  // Rows (kBlock, padded D), each times its factor, to where `take` has them from.
  ATTNZOO_INLINE void give(const T* from, int64_t dim, const T* factors, T* rows, int64_t stride) const {
    for (int64_t i = 0; i < count; ++i) {
      scale(from + i * padded<T>(dim), dim, factors[i], rows + (first + i) * stride);
    }
  }
};

// A matrix (rows, columns), both multiples of the number of lanes, as (columns, rows).
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
struct Place {
  T x;
  T y;
};

// Where the queries of a block are, or gradients by that.
template <typename T>
struct Places {
  Simd<T> x[kVectors];
  Simd<T> y[kVectors];
};

// The positions of the queries of a block, counted from `origin`.
template <typename T>
ATTNZOO_INLINE Places<T> place(const Place<T>& origin, const T* positions, const Block<T>& block) {
  alignas(kAlignment) T x[kBlock<T>] = {};
  alignas(kAlignment) T y[kBlock<T>] = {};
  for (int64_t i = 0; i < block.count; ++i) {
    x[i] = positions[2 * (block.first + i)] + origin.x;
    y[i] = positions[2 * (block.first + i) + 1] + origin.y;
  }
  Places<T> places;
  for (int v = 0; v < kVectors; ++v) {
    places.x[v] = load<Simd<T>>(x + v * kSimdWidth<T>);
    places.y[v] = load<Simd<T>>(y + v * kSimdWidth<T>);
  }
  return places;
}

template <typename T>
ATTNZOO_INLINE void add_places(const Places<T>& places, const Block<T>& block, T* positions) {
  for (int64_t i = 0; i < block.count; ++i) {
    positions[2 * (block.first + i)] += places.x[i / kSimdWidth<T>][i % kSimdWidth<T>];
    positions[2 * (block.first + i) + 1] += places.y[i / kSimdWidth<T>][i % kSimdWidth<T>];
  }
}

}  // namespace attnzoo::deform_kv_attn::ATTNZOO_ISA

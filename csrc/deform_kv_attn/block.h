// A block of queries, whose tokens and places are lanes of vectors.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/simd.h"

namespace attnzoo::deform_kv_attn::ATTNZOO_ISA {

using namespace attnzoo::ATTNZOO_ISA;

constexpr int kVectors = 4;  // of queries in a block
template <typename T>
constexpr int64_t kBlock = kVectors * kWidest<T>;

constexpr int64_t kAlignment = 64;

template <typename T>
constexpr int64_t padded(int64_t size) {
  return (size + kWidest<T> - 1) / kWidest<T> * kWidest<T>;
}

// The queries of one block. Missing ones at the end of the sequence are zeros.
template <typename T>
struct Block {
  int64_t first;
  int64_t count;

  // rows (count, D) as columns (D, kBlock), times `scale`
  ATTNZOO_INLINE void transpose(const T* rows, int64_t stride, int64_t dim, T scale, T* columns) const {
    for (int64_t d = 0; d < dim; ++d) {
      for (int64_t i = 0; i < kBlock<T>; ++i) {
        columns[d * kBlock<T> + i] = i < count ? scale * rows[(first + i) * stride + d] : T(0);
      }
    }
  }

  // rows (count, D) as rows (kBlock, padded D), times `scale`
  ATTNZOO_INLINE void copy(const T* rows, int64_t stride, int64_t dim, T scale, T* to) const {
    std::fill(to, to + kBlock<T> * padded<T>(dim), T(0));
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t d = 0; d < dim; ++d) {
        to[i * padded<T>(dim) + d] = scale * rows[(first + i) * stride + d];
      }
    }
  }

  ATTNZOO_INLINE void transpose_back(const T* columns, int64_t dim, const T* factors, T* rows, int64_t stride) const {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t d = 0; d < dim; ++d) {
        rows[(first + i) * stride + d] = columns[d * kBlock<T> + i] * factors[i];
      }
    }
  }
};

template <typename T>
struct Place {
  T x;
  T y;
};

// Where the queries of a block are, or gradients by that.
template <typename T>
struct Places {
  Wide<T> x[kVectors];
  Wide<T> y[kVectors];
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
    places.x[v] = load<Wide<T>>(x + v * kWidest<T>);
    places.y[v] = load<Wide<T>>(y + v * kWidest<T>);
  }
  return places;
}

template <typename T>
ATTNZOO_INLINE void add_places(const Places<T>& places, const Block<T>& block, T* positions) {
  for (int64_t i = 0; i < block.count; ++i) {
    positions[2 * (block.first + i)] += places.x[i / kWidest<T>][i % kWidest<T>];
    positions[2 * (block.first + i) + 1] += places.y[i / kWidest<T>][i % kWidest<T>];
  }
}

}  // namespace attnzoo::deform_kv_attn::ATTNZOO_ISA

// The bias: a table read bilinearly at the displacements of a vector of queries from one key.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu_block.h"
#include "problem.h"

namespace attnzoo::deform_kv_attn::ATTNZOO_ISA {

// Where displacements fall in a framed table: the cell to the upper left of each, and the distances from it.
template <typename T>
struct Footprint {
  Mask<Simd<T>> cells;
  Simd<T> fx;  // in [0, 1)
  Simd<T> fy;  // in [0, 1)
  bool in_a_row;  // the cells are neighbours, from left to right
};

// `x` and `y` are where each displacement falls, counted from the first cell of the frame. What lies beyond the table,
// NaN and infinity included, is moved into the frame, where values and slopes are zero.
template <typename T>
ATTNZOO_INLINE Footprint<T> locate(Simd<T> x, Simd<T> y, const Level& level) {
  const Simd<T> right = broadcast<Simd<T>>(static_cast<T>(level.width + kFrame));
  const Simd<T> bottom = broadcast<Simd<T>>(static_cast<T>(level.height + kFrame));
  x = x > 0 ? x : broadcast<Simd<T>>(T(0));
  y = y > 0 ? y : broadcast<Simd<T>>(T(0));
  x = x < right ? x : right;
  y = y < bottom ? y : bottom;
  const auto column = __builtin_convertvector(x, Mask<Simd<T>>);
  const auto row = __builtin_convertvector(y, Mask<Simd<T>>);
  Footprint<T> at;
  at.fx = x - __builtin_convertvector(column, Simd<T>);
  at.fy = y - __builtin_convertvector(row, Simd<T>);
  at.cells = row * static_cast<Element<Mask<Simd<T>>>>(level.framed_width()) + column;
  Mask<Simd<T>> expected;
  for (int i = 0; i < kSimdWidth<T>; ++i) {
    expected[i] = i;
  }
  const Mask<Simd<T>> difference = (at.cells - at.cells[0]) ^ expected;
  uint64_t words[ATTNZOO_VECTOR_BYTES / 8];
  std::memcpy(words, &difference, sizeof(words));
  uint64_t any = 0;
  for (const uint64_t word : words) {
    any |= word;
  }
  at.in_a_row = any == 0;
  return at;
}

// Two neighbouring cells of a table for every lane.
template <typename T>
struct Neighbours {
  Simd<T> left;
  Simd<T> right;
};

// Cell `cells[i]` of a table and its right neighbour, for every lane i.
template <typename T>
ATTNZOO_INLINE Neighbours<T> gather_neighbours(const T* table, const Mask<Simd<T>>& cells) {
  Neighbours<T> found;
  for (int i = 0; i < kSimdWidth<T>; ++i) {
    found.left[i] = table[cells[i]];
    found.right[i] = table[cells[i] + 1];
  }
  return found;
}

#if ATTNZOO_VECTOR_BYTES > 16  // AVX2 and AVX-512
// Both neighbours are gathered as one number of 64 bits, in half as many loads.
ATTNZOO_INLINE Simd<float> gather_pairs(const float* table, const int32_t* cells) {
  const auto* pairs = reinterpret_cast<const double*>(table);
#if ATTNZOO_VECTOR_BYTES == 64
  const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(cells));
  const auto all = static_cast<__mmask8>(-1);
  return reinterpret_cast<Simd<float>>(_mm512_mask_i32gather_pd(_mm512_setzero_pd(), all, index, pairs, 4));
#else
  const __m128i index = _mm_loadu_si128(reinterpret_cast<const __m128i*>(cells));
  const __m256d all = _mm256_castsi256_pd(_mm256_set1_epi64x(-1));
  return reinterpret_cast<Simd<float>>(_mm256_mask_i32gather_pd(_mm256_setzero_pd(), pairs, index, all, 4));
#endif
}

template <int... I>
ATTNZOO_INLINE Neighbours<float> split_pairs(
    const Simd<float>& a, const Simd<float>& b, std::integer_sequence<int, I...>) {
  return {__builtin_shufflevector(a, b, 2 * I...), __builtin_shufflevector(a, b, 2 * I + 1 ...)};
}

ATTNZOO_INLINE Neighbours<float> gather_neighbours(const float* table, const Mask<Simd<float>>& cells) {
  alignas(sizeof(cells)) int32_t index[kSimdWidth<float>];
  store(index, cells);
  return split_pairs(
      gather_pairs(table, index), gather_pairs(table, index + kSimdWidth<float> / 2),
      std::make_integer_sequence<int, kSimdWidth<float>>());
}
#endif

// The cells `step` further than those of the footprint, and their neighbours to the right.
template <typename T>
ATTNZOO_INLINE Neighbours<T> read(const T* table, const Footprint<T>& at, int64_t step) {
  if (at.in_a_row) {
    const T* first = table + at.cells[0] + step;
    return {load<Simd<T>>(first), load<Simd<T>>(first + 1)};
  }
  return gather_neighbours(table + step, at.cells);
}

template <typename T>
ATTNZOO_INLINE void add(T* table, const Footprint<T>& at, int64_t step, const Simd<T>& left, const Simd<T>& right) {
  T* cells = table + step;
  if (at.in_a_row) {
    cells += at.cells[0];
    store(cells, load<Simd<T>>(cells) + left);
    store(cells + 1, load<Simd<T>>(cells + 1) + right);
    return;
  }
  // One side after the other: the right cell of a lane is often the left cell of the next, which would have to wait.
  for (int i = 0; i < kSimdWidth<T>; ++i) {
    cells[at.cells[i]] += left[i];
  }
  for (int i = 0; i < kSimdWidth<T>; ++i) {
    cells[at.cells[i] + 1] += right[i];
  }
}

// The bias of a vector of queries, and how it changes with each cell of displacement.
template <typename T>
struct Bias {
  Simd<T> value;
  Simd<T> by_x;
  Simd<T> by_y;
};

template <typename T>
ATTNZOO_INLINE Bias<T> interpolate(const T* table, const Footprint<T>& at, const Level& level) {
  const int64_t below = level.framed_width();
  const Neighbours<T> upper = read(table, at, 0);
  const Neighbours<T> lower = read(table, at, below);
  const Simd<T> along_top = upper.right - upper.left;
  const Simd<T> along_bottom = lower.right - lower.left;
  const Simd<T> top = upper.left + at.fx * along_top;
  const Simd<T> by_y = lower.left + at.fx * along_bottom - top;
  return {top + at.fy * by_y, along_top + at.fy * (along_bottom - along_top), by_y};
}

// Adds the gradients of a vector of biases to the cells that they were read from.
template <typename T>
ATTNZOO_INLINE void spread(T* by_table, const Footprint<T>& at, const Level& level, const Simd<T>& gradient) {
  const int64_t below = level.framed_width();
  const Simd<T> bottom = gradient * at.fy;
  const Simd<T> top = gradient - bottom;
  add<T>(by_table, at, 0, top - top * at.fx, top * at.fx);
  add<T>(by_table, at, below, bottom - bottom * at.fx, bottom * at.fx);
}

// The tables of one head.
template <typename T>
struct TableBias {
  const Problem& problem;
  const T* tables;
  T* by_tables;

  TableBias(const Problem& p, const T* parameters, T* by_parameters, T*)
      : problem(p), tables(parameters), by_tables(by_parameters) {}

  static int64_t scratch_size(const Problem&) {
    return 0;
  }

  // What is added to displacements: the middle of the table, counted from the first cell of its frame.
  static Place<T> origin(const Level& level) {
    const T frame = static_cast<T>(kFrame);
    return {frame + static_cast<T>(level.width - 1) / 2, frame + static_cast<T>(level.height - 1) / 2};
  }

  // The biases (kBlock) of one key.
  ATTNZOO_INLINE void evaluate(const Level& level, const Places<T>& places, const T* key, T* biases) const {
    for (int v = 0; v < kVectors; ++v) {
      const Footprint<T> at = locate<T>(places.x[v] - key[0], places.y[v] - key[1], level);
      store(biases + v * kSimdWidth<T>, interpolate(tables + level.parameters, at, level).value);
    }
  }

  // Gradients by displacement, given those by the biases (kBlock) of one key; those by the table are added up.
  ATTNZOO_INLINE Places<T> differentiate(
      const Level& level, const Places<T>& places, const T* key, const T* by_biases) const {
    Places<T> by_places;
    for (int v = 0; v < kVectors; ++v) {
      const Simd<T> gradient = load<Simd<T>>(by_biases + v * kSimdWidth<T>);
      const Footprint<T> at = locate<T>(places.x[v] - key[0], places.y[v] - key[1], level);
      const Bias<T> bias = interpolate(tables + level.parameters, at, level);
      spread(by_tables + level.parameters, at, level, gradient);
      by_places.x[v] = gradient * bias.by_x;
      by_places.y[v] = gradient * bias.by_y;
    }
    return by_places;
  }

  void finish() const {}
};

}  // namespace attnzoo::deform_kv_attn::ATTNZOO_ISA

// The bias from a table: bilinear interpolation at the displacements of a vector of queries from one key.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu_block.h"
#include "problem.h"

namespace attnzoo::deform_kv_attn::ATTNZOO_ISA {

// The footprints of a vector of displacements in a padded table.
template <typename T>
struct Footprint {
  Mask<Simd<T>> cells;  // the cell to the upper left of each displacement
  Simd<T> fx;           // distance from it in x, in [0, 1)
  Simd<T> fy;
  bool is_contiguous;  // the cells of the lanes are consecutive
};

// `x` and `y` are positions in cells of the padded table. Positions outside the table, NaN and infinity included, are
// clamped into the padding, where values and derivatives are zero.
template <typename T>
ATTNZOO_INLINE Footprint<T> compute_footprint(Simd<T> x, Simd<T> y, const Level& level) {
  const Simd<T> right = broadcast<Simd<T>>(static_cast<T>(level.width + kTablePadding));
  const Simd<T> bottom = broadcast<Simd<T>>(static_cast<T>(level.height + kTablePadding));
  x = x > 0 ? x : broadcast<Simd<T>>(T(0));
  y = y > 0 ? y : broadcast<Simd<T>>(T(0));
  x = x < right ? x : right;
  y = y < bottom ? y : bottom;
  const auto column = __builtin_convertvector(x, Mask<Simd<T>>);
  const auto row = __builtin_convertvector(y, Mask<Simd<T>>);
  Footprint<T> footprint;
  footprint.fx = x - __builtin_convertvector(column, Simd<T>);
  footprint.fy = y - __builtin_convertvector(row, Simd<T>);
  footprint.cells = row * static_cast<Element<Mask<Simd<T>>>>(level.padded_width()) + column;
  Mask<Simd<T>> expected;
  for (int i = 0; i < kSimdWidth<T>; ++i) {
    expected[i] = i;
  }
  const Mask<Simd<T>> difference = (footprint.cells - footprint.cells[0]) ^ expected;
  uint64_t words[ATTNZOO_VECTOR_BYTES / 8];
  std::memcpy(words, &difference, sizeof(words));
  uint64_t any = 0;
  for (const uint64_t word : words) {
    any |= word;
  }
  footprint.is_contiguous = any == 0;
  return footprint;
}

// For every lane, a cell of a table and its right neighbour.
template <typename T>
struct CellPair {
  Simd<T> left;
  Simd<T> right;
};

template <typename T>
ATTNZOO_INLINE CellPair<T> gather_cell_pairs(const T* table, const Mask<Simd<T>>& cells) {
  CellPair<T> pair;
  for (int i = 0; i < kSimdWidth<T>; ++i) {
    pair.left[i] = table[cells[i]];
    pair.right[i] = table[cells[i] + 1];
  }
  return pair;
}

#if ATTNZOO_VECTOR_BYTES > 16  // AVX2 and AVX-512
// Gathers each pair of floats as one 64-bit element: half as many loads.
ATTNZOO_INLINE Simd<float> gather_64_bits(const float* table, const int32_t* cells) {
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
ATTNZOO_INLINE CellPair<float> deinterleave(
    const Simd<float>& a, const Simd<float>& b, std::integer_sequence<int, I...>) {
  return {__builtin_shufflevector(a, b, 2 * I...), __builtin_shufflevector(a, b, 2 * I + 1 ...)};
}

ATTNZOO_INLINE CellPair<float> gather_cell_pairs(const float* table, const Mask<Simd<float>>& cells) {
  alignas(sizeof(cells)) int32_t index[kSimdWidth<float>];
  store(index, cells);
  return deinterleave(
      gather_64_bits(table, index), gather_64_bits(table, index + kSimdWidth<float> / 2),
      std::make_integer_sequence<int, kSimdWidth<float>>());
}
#endif

// The cells of the footprint, plus `offset`.
template <typename T>
ATTNZOO_INLINE CellPair<T> load_cells(const T* table, const Footprint<T>& footprint, int64_t offset) {
  if (footprint.is_contiguous) {
    const T* first = table + footprint.cells[0] + offset;
    return {load<Simd<T>>(first), load<Simd<T>>(first + 1)};
  }
  return gather_cell_pairs(table + offset, footprint.cells);
}

template <typename T>
ATTNZOO_INLINE void add_to_cells(
    T* table, const Footprint<T>& footprint, int64_t offset, const Simd<T>& left, const Simd<T>& right) {
  T* cells = table + offset;
  if (footprint.is_contiguous) {
    cells += footprint.cells[0];
    store(cells, load<Simd<T>>(cells) + left);
    store(cells + 1, load<Simd<T>>(cells + 1) + right);
    return;
  }
  // First all left cells, then all right ones. The right cell of a lane is often the left cell of the next lane, which
  // would have to wait for the store.
  for (int i = 0; i < kSimdWidth<T>; ++i) {
    cells[footprint.cells[i]] += left[i];
  }
  for (int i = 0; i < kSimdWidth<T>; ++i) {
    cells[footprint.cells[i] + 1] += right[i];
  }
}

// The bias of a vector of queries and its derivatives with respect to the displacement.
template <typename T>
struct Bias {
  Simd<T> value;
  Simd<T> dx;
  Simd<T> dy;
};

template <typename T>
ATTNZOO_INLINE Bias<T> interpolate(const T* table, const Footprint<T>& footprint, const Level& level) {
  const int64_t below = level.padded_width();
  const CellPair<T> upper = load_cells(table, footprint, 0);
  const CellPair<T> lower = load_cells(table, footprint, below);
  const Simd<T> upper_dx = upper.right - upper.left;
  const Simd<T> lower_dx = lower.right - lower.left;
  const Simd<T> top = upper.left + footprint.fx * upper_dx;
  const Simd<T> dy = lower.left + footprint.fx * lower_dx - top;
  return {top + footprint.fy * dy, upper_dx + footprint.fy * (lower_dx - upper_dx), dy};
}

// Adds the gradients of a vector of biases to the gradient of the table.
template <typename T>
ATTNZOO_INLINE void interpolate_backward(
    T* grad_table, const Footprint<T>& footprint, const Level& level, const Simd<T>& grad_bias) {
  const int64_t below = level.padded_width();
  const Simd<T> bottom = grad_bias * footprint.fy;
  const Simd<T> top = grad_bias - bottom;
  add_to_cells<T>(grad_table, footprint, 0, top - top * footprint.fx, top * footprint.fx);
  add_to_cells<T>(grad_table, footprint, below, bottom - bottom * footprint.fx, bottom * footprint.fx);
}

// The tables of one head.
template <typename T>
struct TableBias {
  const Problem& problem;
  const T* tables;
  T* grad_tables;

  TableBias(const Problem& p, const T* parameters, T* grad_parameters, T*)
      : problem(p), tables(parameters), grad_tables(grad_parameters) {}

  static int64_t scratch_size(const Problem&) {
    return 0;
  }

  // The centre of the padded table, where a displacement of zero is read.
  static Position<T> position_offset(const Level& level) {
    const T padding = static_cast<T>(kTablePadding);
    return {padding + static_cast<T>(level.width - 1) / 2, padding + static_cast<T>(level.height - 1) / 2};
  }

  // The biases (kQueryBlock) of one key.
  ATTNZOO_INLINE void evaluate(
      const Level& level, const BlockPositions<T>& positions, const T* key_position, T* biases) const {
    for (int v = 0; v < kBlockVectors; ++v) {
      const Footprint<T> footprint =
          compute_footprint<T>(positions.x[v] - key_position[0], positions.y[v] - key_position[1], level);
      store(biases + v * kSimdWidth<T>, interpolate(tables + level.parameter_offset, footprint, level).value);
    }
  }

  // Given the gradients of the biases (kQueryBlock) of one key, returns the gradients of the displacements and adds to
  // the gradient of the table.
  ATTNZOO_INLINE BlockPositions<T> backward(
      const Level& level, const BlockPositions<T>& positions, const T* key_position, const T* grad_biases) const {
    BlockPositions<T> grads;
    for (int v = 0; v < kBlockVectors; ++v) {
      const Simd<T> grad_bias = load<Simd<T>>(grad_biases + v * kSimdWidth<T>);
      const Footprint<T> footprint =
          compute_footprint<T>(positions.x[v] - key_position[0], positions.y[v] - key_position[1], level);
      const Bias<T> bias = interpolate(tables + level.parameter_offset, footprint, level);
      interpolate_backward(grad_tables + level.parameter_offset, footprint, level, grad_bias);
      grads.x[v] = grad_bias * bias.dx;
      grads.y[v] = grad_bias * bias.dy;
    }
    return grads;
  }

  void finish() const {}
};

}  // namespace attnzoo::deform_kv_attn::ATTNZOO_ISA

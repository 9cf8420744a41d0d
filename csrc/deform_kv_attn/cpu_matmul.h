// Products of vectors and small matrices in memory.
//
// A source file that compiles kernels also defines ATTNZOO_VECTOR_REGISTERS, how many vectors the instruction set holds.
#pragma once

#include <cstdint>

#include "../common/simd_math.h"

namespace attnzoo::deform_kv_attn::ATTNZOO_ISA {

using namespace attnzoo::ATTNZOO_ISA;

template <typename T>
ATTNZOO_INLINE T product(const T* a, const T* b, int64_t size) {
  Simd<T> sums{};
  int64_t i = 0;
  for (; i + kSimdWidth<T> <= size; i += kSimdWidth<T>) {
    sums += load<Simd<T>>(a + i) * load<Simd<T>>(b + i);
  }
  T sum = reduce_add(sums);
  for (; i < size; ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

// A matrix in memory: element (i, j) lies at data[i * row + j * column].
template <typename T>
struct Matrix {
  const T* data;
  int64_t row;
  int64_t column;
};

// `kRows` rows and `kVectors` vectors of columns of `c` += `a` `b`; c and b have `columns` numbers to a row.
template <int kRows, int kVectors, typename T>
ATTNZOO_INLINE void add_product_tile(const Matrix<T>& a, int64_t depth, const T* b, T* c, int64_t columns) {
  Simd<T> sums[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] = load<Simd<T>>(c + i * columns + v * kSimdWidth<T>);
    }
  }
  const T* factors = a.data;
  for (int64_t k = 0; k < depth; ++k, b += columns, factors += a.column) {
    Simd<T> row[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      row[v] = load<Simd<T>>(b + v * kSimdWidth<T>);
    }
    for (int i = 0; i < kRows; ++i) {
      const Simd<T> factor = broadcast<Simd<T>>(factors[i * a.row]);
      for (int v = 0; v < kVectors; ++v) {
        sums[i][v] += factor * row[v];
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      store(c + i * columns + v * kSimdWidth<T>, sums[i][v]);
    }
  }
}

template <int kVectors, typename T>
ATTNZOO_INLINE void add_product_columns(
    Matrix<T> a, int64_t rows, int64_t depth, const T* b, T* c, int64_t columns) {
  // As many rows as leave registers for one row of b and one factor.
  constexpr int kRows = (ATTNZOO_VECTOR_REGISTERS - kVectors - 1) / kVectors > 4
                            ? 4
                            : (ATTNZOO_VECTOR_REGISTERS - kVectors - 1) / kVectors;
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows, a.data += kRows * a.row, c += kRows * columns) {
    add_product_tile<kRows, kVectors>(a, depth, b, c, columns);
  }
  for (; i < rows; ++i, a.data += a.row, c += columns) {
    add_product_tile<1, kVectors>(a, depth, b, c, columns);
  }
}

// c (rows × columns) += a (rows × depth) b (depth × columns); `columns` is a multiple of the number of lanes.
template <typename T>
ATTNZOO_INLINE void add_product(
    const Matrix<T>& a, int64_t rows, int64_t depth, const T* b, T* c, int64_t columns) {
  int64_t j = 0;
  for (; j + 4 * kSimdWidth<T> <= columns; j += 4 * kSimdWidth<T>) {
    add_product_columns<4>(a, rows, depth, b + j, c + j, columns);
  }
  for (; j + 2 * kSimdWidth<T> <= columns; j += 2 * kSimdWidth<T>) {
    add_product_columns<2>(a, rows, depth, b + j, c + j, columns);
  }
  for (; j < columns; j += kSimdWidth<T>) {
    add_product_columns<1>(a, rows, depth, b + j, c + j, columns);
  }
}

}  // namespace attnzoo::deform_kv_attn::ATTNZOO_ISA

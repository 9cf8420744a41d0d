// Dot products, and products of small matrices.
//
// A source file that compiles kernels also defines ATTNZOO_VECTOR_REGISTERS, the number of vector registers of the
// instruction set.
#pragma once

#include <cstdint>

#include "../common/simd_math.h"

namespace attnzoo::deform_kv_attn::ATTNZOO_ISA {

using namespace attnzoo::ATTNZOO_ISA;

template <typename T>
ATTNZOO_INLINE T dot(const T* a, const T* b, int64_t size) {
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

template <typename T>
struct StridedMatrix {
  const T* data;
  int64_t row_stride;
  int64_t column_stride;
};

// c += a b for kRows rows and kVectors vectors of columns, which stay in registers. Rows of b and c have a stride of
// `columns`.
template <int kRows, int kVectors, typename T>
ATTNZOO_INLINE void matmul_add_tile(const StridedMatrix<T>& a, int64_t depth, const T* b, T* c, int64_t columns) {
  Simd<T> sums[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] = load<Simd<T>>(c + i * columns + v * kSimdWidth<T>);
    }
  }
  const T* factors = a.data;
  for (int64_t k = 0; k < depth; ++k, b += columns, factors += a.column_stride) {
    Simd<T> row[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      row[v] = load<Simd<T>>(b + v * kSimdWidth<T>);
    }
    for (int i = 0; i < kRows; ++i) {
      const Simd<T> factor = broadcast<Simd<T>>(factors[i * a.row_stride]);
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
ATTNZOO_INLINE void matmul_add_columns(
    StridedMatrix<T> a, int64_t rows, int64_t depth, const T* b, T* c, int64_t columns) {
  // As many rows as fit in the registers together with one row of b and one factor; at most four.
  constexpr int kRows = (ATTNZOO_VECTOR_REGISTERS - kVectors - 1) / kVectors > 4
                            ? 4
                            : (ATTNZOO_VECTOR_REGISTERS - kVectors - 1) / kVectors;
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows, a.data += kRows * a.row_stride, c += kRows * columns) {
    matmul_add_tile<kRows, kVectors>(a, depth, b, c, columns);
  }
  for (; i < rows; ++i, a.data += a.row_stride, c += columns) {
    matmul_add_tile<1, kVectors>(a, depth, b, c, columns);
  }
}

// c += a b, with c (rows × columns), a (rows × depth), b (depth × columns). `columns` is a multiple of the lanes of a
// vector; b and c are contiguous.
template <typename T>
ATTNZOO_INLINE void matmul_add(
    const StridedMatrix<T>& a, int64_t rows, int64_t depth, const T* b, T* c, int64_t columns) {
  int64_t j = 0;
  for (; j + 4 * kSimdWidth<T> <= columns; j += 4 * kSimdWidth<T>) {
    matmul_add_columns<4>(a, rows, depth, b + j, c + j, columns);
  }
  for (; j + 2 * kSimdWidth<T> <= columns; j += 2 * kSimdWidth<T>) {
    matmul_add_columns<2>(a, rows, depth, b + j, c + j, columns);
  }
  for (; j < columns; j += kSimdWidth<T>) {
    matmul_add_columns<1>(a, rows, depth, b + j, c + j, columns);
  }
}

}  // namespace attnzoo::deform_kv_attn::ATTNZOO_ISA

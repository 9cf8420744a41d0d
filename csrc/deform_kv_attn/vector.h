// Vectors of one instruction set over the vector extensions of GCC and Clang, the exponential function and the product
// of small matrices on them.
//
// A source file that compiles kernels first defines ATTNZOO_ISA, a name, and ATTNZOO_VECTOR_BYTES. Everything lives in
// the namespace of that name, so that the linker cannot take a function for another instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../common/macros.h"

namespace attnzoo::deform_kv_attn::ATTNZOO_ISA {

template <typename T>
struct VectorOf {
  using type __attribute__((vector_size(ATTNZOO_VECTOR_BYTES))) = T;
};

template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <typename T>
constexpr int kLanes = ATTNZOO_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <typename T>
ATTNZOO_INLINE Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
ATTNZOO_INLINE void store(T* to, const Vector<T>& v) {
  std::memcpy(to, &v, sizeof(v));
}

template <typename T>
ATTNZOO_INLINE Vector<T> broadcast(T x) {
  return x - Vector<T>{};
}

template <typename T>
ATTNZOO_INLINE T sum_of_lanes(const Vector<T>& v) {
  T sum = 0;
  for (int i = 0; i < kLanes<T>; ++i) {
    sum += v[i];
  }
  return sum;
}

// e^x for x of at most 0, to within two units in the last place; exactly 0 where float32 has no normal number for it.
// NaN stays NaN.
ATTNZOO_INLINE Vector<float> exp_nonpositive(const Vector<float>& x) {
  constexpr float kLowest = -87.0f;
  const Vector<float> bounded = x < kLowest ? broadcast(kLowest) : x;
  // x = n ln 2 + r: ln 2 in two parts, of which the first times n is exact; n by rounding to the nearest.
  const Vector<float> shifted = bounded * 1.44269504f + 12582912.0f;
  const Vector<float> n = shifted - 12582912.0f;
  const Vector<float> r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  // The Taylor series of degree 7: its remainder for |r| ≤ ½ ln 2 is below 6e-9.
  Vector<float> series = broadcast(1.0f / 5040);
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    series = series * r + term;
  }
  const auto exponent = __builtin_convertvector(n, Vector<int32_t>);
  Vector<float> power;
  const Vector<int32_t> bits = (exponent + 127) << 23;
  std::memcpy(&power, &bits, sizeof(power));
  return x < kLowest ? broadcast(0.0f) : series * power;
}

ATTNZOO_INLINE Vector<double> exp_nonpositive(const Vector<double>& x) {
  Vector<double> result;
  for (int i = 0; i < kLanes<double>; ++i) {
    result[i] = std::exp(x[i]);
  }
  return result;
}

// ln x for x of at least 1, to within an absolute error of 1e-7 · (1 + ln x); infinity and NaN stay what they are.
ATTNZOO_INLINE Vector<float> log_of_at_least_one(const Vector<float>& x) {
  // x = 2^n m with m in [1 / √2, √2): subtracting the bits of 1 / √2 carries into the exponent from √2 on.
  constexpr int32_t kRootHalf = 0x3f3504f3;
  Vector<int32_t> bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const Vector<int32_t> exponent = (bits - kRootHalf) >> 23;
  bits -= exponent << 23;
  Vector<float> m;
  std::memcpy(&m, &bits, sizeof(m));
  // ln m = 2 artanh s with s = (m - 1) / (m + 1), |s| < 0.172: the series up to s^9 leaves less than 1e-9.
  const Vector<float> s = (m - 1.0f) / (m + 1.0f);
  const Vector<float> square = s * s;
  Vector<float> series = broadcast(2.0f / 9);
  for (const float term : {2.0f / 7, 2.0f / 5, 2.0f / 3, 2.0f}) {
    series = series * square + term;
  }
  const Vector<float> result = __builtin_convertvector(exponent, Vector<float>) * 0.69314718f + s * series;
  return x < std::numeric_limits<float>::infinity() ? result : x;
}

ATTNZOO_INLINE Vector<double> log_of_at_least_one(const Vector<double>& x) {
  Vector<double> result;
  for (int i = 0; i < kLanes<double>; ++i) {
    result[i] = std::log(x[i]);
  }
  return result;
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
  Vector<T> sums[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] = load(c + i * columns + v * kLanes<T>);
    }
  }
  const T* factors = a.data;
  for (int64_t k = 0; k < depth; ++k, b += columns, factors += a.column) {
    Vector<T> row[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      row[v] = load(b + v * kLanes<T>);
    }
    for (int i = 0; i < kRows; ++i) {
      const Vector<T> factor = broadcast(factors[i * a.row]);
      for (int v = 0; v < kVectors; ++v) {
        sums[i][v] += factor * row[v];
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      store(c + i * columns + v * kLanes<T>, sums[i][v]);
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
  for (; j + 4 * kLanes<T> <= columns; j += 4 * kLanes<T>) {
    add_product_columns<4>(a, rows, depth, b + j, c + j, columns);
  }
  for (; j + 2 * kLanes<T> <= columns; j += 2 * kLanes<T>) {
    add_product_columns<2>(a, rows, depth, b + j, c + j, columns);
  }
  for (; j < columns; j += kLanes<T>) {
    add_product_columns<1>(a, rows, depth, b + j, c + j, columns);
  }
}

}  // namespace attnzoo::deform_kv_attn::ATTNZOO_ISA

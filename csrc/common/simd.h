// SIMD vectors built on the vector extensions of GCC and Clang: the same code for SSE2, AVX2, AVX-512 and NEON.
//
// A source file that compiles kernels for an instruction set first defines ATTNZOO_ISA, its name, and
// ATTNZOO_VECTOR_BYTES, the size of its widest vector. All code lives in a namespace of that name. Otherwise the linker
// would merge the versions of an inline function that were compiled for different instruction sets.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "macros.h"

namespace attnzoo::ATTNZOO_ISA {

template <typename T, int N>
struct VectorOf {
  using type __attribute__((vector_size(N * sizeof(T)))) = T;
};

template <typename T, int N>
using Vector = typename VectorOf<T, N>::type;

// Lanes of the widest vector.
template <typename T>
constexpr int kSimdWidth = ATTNZOO_VECTOR_BYTES / static_cast<int>(sizeof(T));

// The widest vector.
template <typename T>
using Simd = Vector<T, kSimdWidth<T>>;

// The widest vector with at most kCount lanes; kCount is a power of two.
template <typename T, int kCount>
using ChunkVector = Vector<T, (kCount < kSimdWidth<T> ? kCount : kSimdWidth<T>)>;

template <typename V>
using Element = std::remove_cvref_t<decltype(std::declval<V>()[0])>;

template <typename V>
constexpr int kLanes = static_cast<int>(sizeof(V) / sizeof(Element<V>));

// The type of a comparison of two V: one signed integer per lane, 0 or -1. Also used for integers of the same size as
// the elements of V.
template <typename V>
using Mask = std::remove_cvref_t<decltype(std::declval<V>() < std::declval<V>())>;

template <typename V>
ATTNZOO_INLINE V load(const Element<V>* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V>
ATTNZOO_INLINE void store(Element<V>* to, const V& v) {
  std::memcpy(to, &v, sizeof(V));
}

template <typename V>
ATTNZOO_INLINE V broadcast(Element<V> x) {
  return x - V{};  // x + V{} would turn -0 into +0
}

template <typename To, typename From>
ATTNZOO_INLINE To bit_cast(const From& v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &v, sizeof(To));
  return to;
}

// Lane i of the result is lane kPattern(i, N) of the 2N lanes of a and b together.
template <auto kPattern, typename V, int... I>
ATTNZOO_INLINE V shuffle(const V& a, const V& b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, kPattern(I, static_cast<int>(sizeof...(I)))...);
}

template <auto kPattern, typename V>
ATTNZOO_INLINE V shuffle(const V& a, const V& b) {
  return shuffle<kPattern>(a, b, std::make_integer_sequence<int, kLanes<V>>());
}

// Transposes the N × N matrix whose rows are N vectors of N lanes: first in blocks of 2 × 2, then of 4 × 4, …
template <int kStep = 1, typename V>
ATTNZOO_INLINE void transpose_square(V (&rows)[kLanes<V>]) {
  if constexpr (kStep < kLanes<V>) {
    for (int i = 0; i < kLanes<V>; ++i) {
      if (!(i & kStep)) {
        const V above = rows[i];
        const V below = rows[i + kStep];
        rows[i] = shuffle<[](int j, int n) { return j & kStep ? n + j - kStep : j; }>(above, below);
        rows[i + kStep] = shuffle<[](int j, int n) { return j & kStep ? n + j : j + kStep; }>(above, below);
      }
    }
    transpose_square<2 * kStep>(rows);
  }
}

// Loads N pairs (x0, y0, x1, y1, …) and deinterleaves them.
template <typename V>
ATTNZOO_INLINE void load_interleaved2(const Element<V>* from, V& x, V& y) {
  const V a = load<V>(from);
  const V b = load<V>(from + kLanes<V>);
  x = shuffle<[](int i, int) { return 2 * i; }>(a, b);
  y = shuffle<[](int i, int) { return 2 * i + 1; }>(a, b);
}

// Stores N pairs (x0, y0, x1, y1, …).
template <typename V>
ATTNZOO_INLINE void store_interleaved2(Element<V>* to, const V& x, const V& y) {
  store(to, shuffle<[](int i, int n) { return i / 2 + i % 2 * n; }>(x, y));
  store(to + kLanes<V>, shuffle<[](int i, int n) { return n / 2 + i / 2 + i % 2 * n; }>(x, y));
}

// Loads N groups of four elements; lane i of v[k] is element k of group i.
template <typename V>
ATTNZOO_INLINE void load_interleaved4(const Element<V>* from, V (&v)[4]) {
  V even[2];
  V odd[2];
  load_interleaved2(from, even[0], odd[0]);
  load_interleaved2(from + 2 * kLanes<V>, even[1], odd[1]);
  v[0] = shuffle<[](int i, int) { return 2 * i; }>(even[0], even[1]);
  v[1] = shuffle<[](int i, int) { return 2 * i; }>(odd[0], odd[1]);
  v[2] = shuffle<[](int i, int) { return 2 * i + 1; }>(even[0], even[1]);
  v[3] = shuffle<[](int i, int) { return 2 * i + 1; }>(odd[0], odd[1]);
}

template <typename V, int... I>
ATTNZOO_INLINE auto add_halves(const V& v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, I...) + __builtin_shufflevector(v, v, (static_cast<int>(sizeof...(I)) + I)...);
}

// to[k] += the sum of the lanes k, k + 4, k + 8, … of v, for k < 4.
template <typename V>
ATTNZOO_INLINE void add_sum_of_quads(Element<V>* to, const V& v) {
  if constexpr (kLanes<V> > 4) {
    add_sum_of_quads(to, add_halves(v, std::make_integer_sequence<int, kLanes<V> / 2>()));
  } else {
    store(to, load<V>(to) + v);
  }
}

// to[k] += the sum over the lanes of v[k], for k < 4.
template <typename V>
ATTNZOO_INLINE void add_horizontal_sums(Element<V>* to, const V (&v)[4]) {
  if constexpr (kLanes<V> >= 4) {
    // v = {a, b, c, d}. In every four lanes: ab = (a0 b0 a1 b1) + (a2 b2 a3 b3), cd likewise, then the sums a, b, c, d.
    constexpr auto low = [](int i, int n) { return i / 4 * 4 + i % 4 / 2 + i % 2 * n; };
    constexpr auto high = [](int i, int n) { return i / 4 * 4 + i % 4 / 2 + 2 + i % 2 * n; };
    const V ab = shuffle<low>(v[0], v[1]) + shuffle<high>(v[0], v[1]);
    const V cd = shuffle<low>(v[2], v[3]) + shuffle<high>(v[2], v[3]);
    const V abcd = shuffle<[](int i, int n) { return i % 4 < 2 ? i : n + i - 2; }>(ab, cd) +
                   shuffle<[](int i, int n) { return i % 4 < 2 ? i + 2 : n + i; }>(ab, cd);
    add_sum_of_quads(to, abcd);
  } else {
    for (int k = 0; k < 4; ++k) {
      for (int i = 0; i < kLanes<V>; ++i) {
        to[k] += v[k][i];
      }
    }
  }
}

}  // namespace attnzoo::ATTNZOO_ISA

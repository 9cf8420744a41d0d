// Vectors of the widest kind that an instruction set has, over the vector extensions of GCC and Clang: the same code
// for SSE2, AVX2, AVX-512 and NEON.
//
// A source file that compiles kernels for an instruction set first defines ATTNZOO_ISA, its name, and
// ATTNZOO_VECTOR_BYTES. Everything lives in the namespace of that name, so that the linker cannot take a function
// compiled for one instruction set for the same function compiled for another.
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

template <typename T>
constexpr int kWidest = ATTNZOO_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <typename T>
using Wide = Vector<T, kWidest<T>>;

// The widest vector that divides a chunk of kCount numbers, a power of two.
template <typename T, int kCount>
using ChunkVector = Vector<T, (kCount < kWidest<T> ? kCount : kWidest<T>)>;

template <typename V>
using Element = std::remove_cvref_t<decltype(std::declval<V>()[0])>;

template <typename V>
constexpr int kLanes = static_cast<int>(sizeof(V) / sizeof(Element<V>));

// What a comparison of two V gives: an integer per lane, 0 or -1. Also the integers of the same size.
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
  return x - V{};  // not plus: -0 + 0 is 0
}

template <typename To, typename From>
ATTNZOO_INLINE To same_bits(const From& v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &v, sizeof(To));
  return to;
}

// Lane i of the result is lane kPattern(i, N) of the 2N lanes of a and b.
template <auto kPattern, typename V, int... I>
ATTNZOO_INLINE V shuffle(const V& a, const V& b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, kPattern(I, static_cast<int>(sizeof...(I)))...);
}

template <auto kPattern, typename V>
ATTNZOO_INLINE V shuffle(const V& a, const V& b) {
  return shuffle<kPattern>(a, b, std::make_integer_sequence<int, kLanes<V>>());
}

// As many vectors as they have lanes, as rows of a square, transposed: first within squares of two, then of four, …
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

// N pairs from memory, their first and second members apart.
template <typename V>
ATTNZOO_INLINE void load_pairs(const Element<V>* from, V& first, V& second) {
  const V a = load<V>(from);
  const V b = load<V>(from + kLanes<V>);
  first = shuffle<[](int i, int) { return 2 * i; }>(a, b);
  second = shuffle<[](int i, int) { return 2 * i + 1; }>(a, b);
}

template <typename V>
ATTNZOO_INLINE void store_pairs(Element<V>* to, const V& first, const V& second) {
  store(to, shuffle<[](int i, int n) { return i / 2 + i % 2 * n; }>(first, second));
  store(to + kLanes<V>, shuffle<[](int i, int n) { return n / 2 + i / 2 + i % 2 * n; }>(first, second));
}

template <typename V>
ATTNZOO_INLINE void load_quadruples(const Element<V>* from, V (&members)[4]) {
  V even[2];
  V odd[2];
  load_pairs(from, even[0], odd[0]);
  load_pairs(from + 2 * kLanes<V>, even[1], odd[1]);
  members[0] = shuffle<[](int i, int) { return 2 * i; }>(even[0], even[1]);
  members[1] = shuffle<[](int i, int) { return 2 * i; }>(odd[0], odd[1]);
  members[2] = shuffle<[](int i, int) { return 2 * i + 1; }>(even[0], even[1]);
  members[3] = shuffle<[](int i, int) { return 2 * i + 1; }>(odd[0], odd[1]);
}

template <typename V, int... I>
ATTNZOO_INLINE auto fold_halves(const V& v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, I...) + __builtin_shufflevector(v, v, (static_cast<int>(sizeof...(I)) + I)...);
}

// Adds to four numbers in memory the sum of all groups of four lanes.
template <typename V>
ATTNZOO_INLINE void add_folded(Element<V>* to, const V& v) {
  if constexpr (kLanes<V> > 4) {
    add_folded(to, fold_halves(v, std::make_integer_sequence<int, kLanes<V> / 2>()));
  } else {
    store(to, load<V>(to) + v);
  }
}

// Adds to four numbers in memory the sums over the lanes of four vectors.
template <typename V>
ATTNZOO_INLINE void add_sums(Element<V>* to, const V (&v)[4]) {
  if constexpr (kLanes<V> >= 4) {
    // Within every four lanes: a0 b0 a1 b1 + a2 b2 a3 b3, the same of c and d, and of these a b c d.
    constexpr auto low = [](int i, int n) { return i / 4 * 4 + i % 4 / 2 + i % 2 * n; };
    constexpr auto high = [](int i, int n) { return i / 4 * 4 + i % 4 / 2 + 2 + i % 2 * n; };
    const V ab = shuffle<low>(v[0], v[1]) + shuffle<high>(v[0], v[1]);
    const V cd = shuffle<low>(v[2], v[3]) + shuffle<high>(v[2], v[3]);
    const V abcd = shuffle<[](int i, int n) { return i % 4 < 2 ? i : n + i - 2; }>(ab, cd) +
                   shuffle<[](int i, int n) { return i % 4 < 2 ? i + 2 : n + i; }>(ab, cd);
    add_folded(to, abcd);
  } else {
    for (int k = 0; k < 4; ++k) {
      for (int i = 0; i < kLanes<V>; ++i) {
        to[k] += v[k][i];
      }
    }
  }
}

}  // namespace attnzoo::ATTNZOO_ISA

// Functions of vectors.
#pragma once

#include <limits>

#include "simd.h"

namespace attnzoo::ATTNZOO_ISA {

// Largest integers not above numbers that fit in 32 bits.
template <typename V>
ATTNZOO_INLINE Mask<V> floor_to_integer(const V& x) {
  using Narrow = Vector<int32_t, kLanes<V>>;  // most instruction sets convert double to 32 bits only
  const Mask<V> truncated = __builtin_convertvector(__builtin_convertvector(x, Narrow), Mask<V>);
  return truncated + (x < __builtin_convertvector(truncated, V));
}

template <typename T>
struct ExpConstants;

// Below `smallest` the result would leave the normal range: it is 0 instead. ln 2 in two parts, the first short
// enough for its products with integers to be exact. Terms of the series of e^r up to |r| = ln 2 / 2.
template <>
struct ExpConstants<float> {
  static constexpr float smallest = -87.0f;
  static constexpr float ln2_high = 0x1.62ep-1f;
  static constexpr float ln2_low = 0x1.0bfbe8e7bcd5ep-15f;
  static constexpr int terms = 7;
  static constexpr int mantissa_bits = 23;
  static constexpr int bias = 127;
};

template <>
struct ExpConstants<double> {
  static constexpr double smallest = -708.0;
  static constexpr double ln2_high = 0x1.62e42feep-1;
  static constexpr double ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr int terms = 13;
  static constexpr int mantissa_bits = 52;
  static constexpr int bias = 1023;
};

// 1 / k!
template <typename T>
constexpr T reciprocal_factorial(int k) {
  double product = 1;
  for (int i = 2; i <= k; ++i) {
    product *= i;
  }
  return static_cast<T>(1 / product);
}

// e^x for x up to 0, within two units in the last place: 2^n · e^r with x = n · ln 2 + r. NaN stays NaN.
template <typename V>
ATTNZOO_INLINE V exp_of_negative(const V& x) {
  using T = Element<V>;
  using C = ExpConstants<T>;
  const Mask<V> usual = x > C::smallest;
  const V inside = usual ? x : V{};
  const Mask<V> n = floor_to_integer<V>(inside * T(0x1.71547652b82fep+0) + T(0.5));
  const V whole = __builtin_convertvector(n, V);
  const V r = inside - whole * C::ln2_high - whole * C::ln2_low;
  V series{};
  for (int k = C::terms; k >= 0; --k) {
    series = series * r + reciprocal_factorial<T>(k);
  }
  const V power = same_bits<V>((n + C::bias) << C::mantissa_bits);
  return usual ? series * power : (x == x ? V{} : x);
}

template <typename V, int... I>
ATTNZOO_INLINE auto upper_half(const V& v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (static_cast<int>(sizeof...(I)) + I)...);
}

template <typename V, int... I>
ATTNZOO_INLINE auto lower_half(const V& v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, I...);
}

// All lanes combined by `combine`, which takes two vectors or two numbers.
template <typename V, typename Combine>
ATTNZOO_INLINE Element<V> reduce(const V& v, const Combine& combine) {
  if constexpr (kLanes<V> > 4) {
    constexpr auto half = std::make_integer_sequence<int, kLanes<V> / 2>();
    return reduce(combine(lower_half(v, half), upper_half(v, half)), combine);
  } else {
    Element<V> result = v[0];
    for (int i = 1; i < kLanes<V>; ++i) {
      result = combine(result, v[i]);
    }
    return result;
  }
}

// Softmax over `count` numbers in whole vectors of type V, the last filled up with -inf. `scores` and `weights` may
// be the same.
template <typename V>
ATTNZOO_INLINE void softmax(const Element<V>* scores, int64_t count, Element<V>* weights) {
  const auto larger = [](const auto& a, const auto& b) __attribute__((always_inline)) { return a > b ? a : b; };
  const auto plus = [](const auto& a, const auto& b) __attribute__((always_inline)) { return a + b; };
  V highest = load<V>(scores);
  for (int64_t i = kLanes<V>; i < count; i += kLanes<V>) {
    highest = larger(highest, load<V>(scores + i));
  }
  const Element<V> top = reduce(highest, larger);
  V total{};
  for (int64_t i = 0; i < count; i += kLanes<V>) {
    const V v = exp_of_negative<V>(load<V>(scores + i) - top);
    store(weights + i, v);
    total += v;
  }
  const Element<V> share = 1 / reduce(total, plus);
  for (int64_t i = 0; i < count; i += kLanes<V>) {
    store(weights + i, load<V>(weights + i) * share);
  }
}

}  // namespace attnzoo::ATTNZOO_ISA

// Functions of vectors.
#pragma once

#include <array>
#include <limits>
#include <utility>

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
struct MathConstants;

// How T is laid out, and how many terms series need to come within the rounding of T: e^r up to |r| = ln 2 / 2,
// artanh s up to |s| = (√2 - 1) / (√2 + 1). ln 2 is in two parts, the first short enough for its products with
// exponents to be exact. Below `smallest_exponent` e^x would leave the normal range. Added to a number,
// `integer_spacing` leaves its nearest integer in the lowest bits.
template <>
struct MathConstants<float> {
  static constexpr int mantissa_bits = 23;
  static constexpr int bias = 127;
  static constexpr int32_t root_half_bits = 0x3f3504f3;
  static constexpr float ln2_high = 0x1.62ep-1f;
  static constexpr float ln2_low = 0x1.0bfbe8e7bcd5ep-15f;
  static constexpr float smallest_exponent = -87.0f;
  static constexpr float integer_spacing = 0x1.8p23f;
  static constexpr int exp_terms = 8;
  static constexpr int artanh_terms = 5;
};

template <>
struct MathConstants<double> {
  static constexpr int mantissa_bits = 52;
  static constexpr int bias = 1023;
  static constexpr int64_t root_half_bits = 0x3fe6a09e667f3bcd;
  static constexpr double ln2_high = 0x1.62e42feep-1;
  static constexpr double ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double smallest_exponent = -708.0;
  static constexpr double integer_spacing = 0x1.8p52;
  static constexpr int exp_terms = 14;
  static constexpr int artanh_terms = 11;
};

// 1 / k!, tabulated: in a large function the compiler leaves a loop for the factorial.
template <typename T>
constexpr auto kReciprocalFactorials = [] {
  std::array<T, MathConstants<T>::exp_terms> reciprocals{};
  double factorial = 1;
  for (size_t k = 0; k < reciprocals.size(); factorial *= ++k) {
    reciprocals[k] = static_cast<T>(1 / factorial);
  }
  return reciprocals;
}();

// 2 / (2k + 1)
template <typename T>
constexpr auto kTwiceReciprocalOdds = [] {
  std::array<T, MathConstants<T>::artanh_terms> coefficients{};
  for (size_t k = 0; k < coefficients.size(); ++k) {
    coefficients[k] = static_cast<T>(2.0 / (2.0 * k + 1.0));
  }
  return coefficients;
}();

// e^x for x up to 0, within two units in the last place: 2^n · e^r with x = n · ln 2 + r. NaN stays NaN.
template <typename V>
ATTNZOO_INLINE V exp_of_negative(const V& x) {
  using T = Element<V>;
  using C = MathConstants<T>;
  const V inside = x < C::smallest_exponent ? broadcast<V>(C::smallest_exponent) : x;
  const V shifted = inside * T(0x1.71547652b82fep+0) + C::integer_spacing;
  const V n = shifted - C::integer_spacing;
  const V r = inside - n * C::ln2_high - n * C::ln2_low;
  V series = broadcast<V>(kReciprocalFactorials<T>[C::exp_terms - 1]);
  for (int k = C::exp_terms - 2; k >= 0; --k) {
    series = series * r + kReciprocalFactorials<T>[k];
  }
  const V power = same_bits<V>((same_bits<Mask<V>>(shifted) + C::bias) << C::mantissa_bits);
  return x < C::smallest_exponent ? V{} : series * power;
}

// ln x for x from 1 on, within two units in the last place of 1 + ln x: x = 2^n · m with m in [1 / √2, √2) and
// ln m = 2 artanh s with s = (m - 1) / (m + 1). Infinity and NaN stay what they are.
template <typename V>
ATTNZOO_INLINE V log_from_one(const V& x) {
  using T = Element<V>;
  using C = MathConstants<T>;
  const auto bits = same_bits<Mask<V>>(x);
  const Mask<V> n = (bits - C::root_half_bits) >> C::mantissa_bits;  // carries into the exponent from √2 on
  const V m = same_bits<V>(bits - (n << C::mantissa_bits));
  const V s = (m - T(1)) / (m + T(1));
  const V square = s * s;
  V series = broadcast<V>(kTwiceReciprocalOdds<T>[C::artanh_terms - 1]);
  for (int k = C::artanh_terms - 2; k >= 0; --k) {
    series = series * square + kTwiceReciprocalOdds<T>[k];
  }
  const V whole = __builtin_convertvector(n, V);
  const V result = whole * C::ln2_high + (whole * C::ln2_low + s * series);
  return x < std::numeric_limits<T>::infinity() ? result : x;
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

template <typename V>
ATTNZOO_INLINE Element<V> sum_of_lanes(const V& v) {
  return reduce(v, [](const auto& a, const auto& b) __attribute__((always_inline)) { return a + b; });
}

// Softmax over `count` numbers in whole vectors of type V, the last filled up with -inf. `scores` and `weights` may
// be the same.
template <typename V>
ATTNZOO_INLINE void softmax(const Element<V>* scores, int64_t count, Element<V>* weights) {
  const auto larger = [](const auto& a, const auto& b) __attribute__((always_inline)) { return a > b ? a : b; };
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
  const Element<V> share = 1 / sum_of_lanes(total);
  for (int64_t i = 0; i < count; i += kLanes<V>) {
    store(weights + i, load<V>(weights + i) * share);
  }
}

}  // namespace attnzoo::ATTNZOO_ISA

// Math functions on SIMD vectors.
#pragma once

#include <array>
#include <limits>
#include <utility>

#include "simd.h"

namespace attnzoo::ATTNZOO_ISA {

// floor(x) as integers; x must fit in 32 bits.
template <typename V>
ATTNZOO_INLINE Mask<V> floor_to_int(const V& x) {
  using Narrow = Vector<int32_t, kLanes<V>>;  // most instruction sets convert double to int32 only
  const Mask<V> truncated = __builtin_convertvector(__builtin_convertvector(x, Narrow), Mask<V>);
  return truncated + (x < __builtin_convertvector(truncated, V));
}

template <typename T>
struct MathConstants;

// - mantissa_bits, bias: the format of T.
// - sqrt_half_bits: the bits of 1 / √2.
// - ln2_high + ln2_low = ln 2. ln2_high has few bits, so that its products with exponents are exact.
// - exp_min_argument: for smaller x, e^x would be subnormal; exp_nonpositive returns 0.
// - rounding_shift: x + rounding_shift has round(x) in its lowest bits.
// - exp_terms, artanh_terms: terms of the series that reach the precision of T, for e^r with |r| up to ln 2 / 2 and for
//   artanh s with |s| up to (√2 - 1) / (√2 + 1).
template <>
struct MathConstants<float> {
  static constexpr int mantissa_bits = 23;
  static constexpr int bias = 127;
  static constexpr int32_t sqrt_half_bits = 0x3f3504f3;
  static constexpr float ln2_high = 0x1.62ep-1f;
  static constexpr float ln2_low = 0x1.0bfbe8e7bcd5ep-15f;
  static constexpr float exp_min_argument = -87.0f;
  static constexpr float rounding_shift = 0x1.8p23f;
  static constexpr int exp_terms = 8;
  static constexpr int artanh_terms = 5;
};

template <>
struct MathConstants<double> {
  static constexpr int mantissa_bits = 52;
  static constexpr int bias = 1023;
  static constexpr int64_t sqrt_half_bits = 0x3fe6a09e667f3bcd;
  static constexpr double ln2_high = 0x1.62e42feep-1;
  static constexpr double ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double exp_min_argument = -708.0;
  static constexpr double rounding_shift = 0x1.8p52;
  static constexpr int exp_terms = 14;
  static constexpr int artanh_terms = 11;
};

// 1 / k!. A table, because the compiler does not always evaluate the factorials at compile time.
template <typename T>
constexpr auto kExpCoefficients = [] {
  std::array<T, MathConstants<T>::exp_terms> coefficients{};
  double factorial = 1;
  for (size_t k = 0; k < coefficients.size(); factorial *= ++k) {
    coefficients[k] = static_cast<T>(1 / factorial);
  }
  return coefficients;
}();

// 2 / (2k + 1)
template <typename T>
constexpr auto kArtanhCoefficients = [] {
  std::array<T, MathConstants<T>::artanh_terms> coefficients{};
  for (size_t k = 0; k < coefficients.size(); ++k) {
    coefficients[k] = static_cast<T>(2.0 / (2.0 * k + 1.0));
  }
  return coefficients;
}();

// e^x for x ≤ 0, as 2^n · e^r with x = n · ln 2 + r. The error is at most 2 ulp. NaN gives NaN.
template <typename V>
ATTNZOO_INLINE V exp_nonpositive(const V& x) {
  using T = Element<V>;
  using C = MathConstants<T>;
  const V clamped = x < C::exp_min_argument ? broadcast<V>(C::exp_min_argument) : x;
  const V shifted = clamped * T(0x1.71547652b82fep+0) + C::rounding_shift;  // log2(e) · x
  const V n = shifted - C::rounding_shift;
  const V r = clamped - n * C::ln2_high - n * C::ln2_low;
  V series = broadcast<V>(kExpCoefficients<T>[C::exp_terms - 1]);
  for (int k = C::exp_terms - 2; k >= 0; --k) {
    series = series * r + kExpCoefficients<T>[k];
  }
  const V power = bit_cast<V>((bit_cast<Mask<V>>(shifted) + C::bias) << C::mantissa_bits);
  return x < C::exp_min_argument ? V{} : series * power;
}

// ln x for x ≥ 1, as n · ln 2 + ln m with x = 2^n · m, m in [1 / √2, √2), and ln m = 2 artanh((m - 1) / (m + 1)). The
// error is at most 2 ulp of 1 + ln x. Infinity and NaN are returned unchanged.
template <typename V>
ATTNZOO_INLINE V log_ge_one(const V& x) {
  using T = Element<V>;
  using C = MathConstants<T>;
  const auto bits = bit_cast<Mask<V>>(x);
  const Mask<V> n = (bits - C::sqrt_half_bits) >> C::mantissa_bits;  // floor(log2(√2 · x))
  const V m = bit_cast<V>(bits - (n << C::mantissa_bits));
  const V s = (m - T(1)) / (m + T(1));
  const V square = s * s;
  V series = broadcast<V>(kArtanhCoefficients<T>[C::artanh_terms - 1]);
  for (int k = C::artanh_terms - 2; k >= 0; --k) {
    series = series * square + kArtanhCoefficients<T>[k];
  }
  const V exponent = __builtin_convertvector(n, V);
  const V result = exponent * C::ln2_high + (exponent * C::ln2_low + s * series);
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

// Reduces the lanes of v with `combine`, which takes two vectors or two scalars.
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
ATTNZOO_INLINE Element<V> reduce_add(const V& v) {
  return reduce(v, [](const auto& a, const auto& b) __attribute__((always_inline)) { return a + b; });
}

// Softmax over `count` logits. `count` is a multiple of the lanes of V: pad with -inf. `weights` may be `logits`.
template <typename V>
ATTNZOO_INLINE void softmax(const Element<V>* logits, int64_t count, Element<V>* weights) {
  const auto maximum = [](const auto& a, const auto& b) __attribute__((always_inline)) { return a > b ? a : b; };
  V lane_max = load<V>(logits);
  for (int64_t i = kLanes<V>; i < count; i += kLanes<V>) {
    lane_max = maximum(lane_max, load<V>(logits + i));
  }
  const Element<V> max = reduce(lane_max, maximum);
  V lane_sums{};
  for (int64_t i = 0; i < count; i += kLanes<V>) {
    const V v = exp_nonpositive<V>(load<V>(logits + i) - max);
    store(weights + i, v);
    lane_sums += v;
  }
  const Element<V> inverse_sum = 1 / reduce_add(lane_sums);
  for (int64_t i = 0; i < count; i += kLanes<V>) {
    store(weights + i, load<V>(weights + i) * inverse_sum);
  }
}

}  // namespace attnzoo::ATTNZOO_ISA

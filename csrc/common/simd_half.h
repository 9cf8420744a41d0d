// Numbers in two bytes, read as and written from vectors of float. Rounding is to nearest, ties to even.
#pragma once

#include "simd.h"

#if ATTNZOO_HAS_F16C
#include <immintrin.h>
#endif

namespace attnzoo {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

}  // namespace attnzoo

namespace attnzoo::ATTNZOO_ISA {

template <typename V>
using Bits = Vector<uint32_t, kLanes<V>>;

template <typename V>
ATTNZOO_INLINE Bits<V> load_two_bytes(const void* from) {
  Vector<uint16_t, kLanes<V>> narrow;
  std::memcpy(&narrow, from, sizeof(narrow));
  return __builtin_convertvector(narrow, Bits<V>);
}

template <typename V>
ATTNZOO_INLINE void store_two_bytes(void* to, const Bits<V>& bits) {
  const auto narrow = __builtin_convertvector(bits, Vector<uint16_t, kLanes<V>>);
  std::memcpy(to, &narrow, sizeof(narrow));
}

template <typename V>
ATTNZOO_INLINE V load_as(const Element<V>* from) {
  return load<V>(from);
}

template <typename V>
ATTNZOO_INLINE void store_as(Element<V>* to, const V& v) {
  store(to, v);
}

template <typename V>
ATTNZOO_INLINE V load_as(const BFloat16* from) {
  return same_bits<V>(load_two_bytes<V>(from) << 16);
}

template <typename V>
ATTNZOO_INLINE void store_as(BFloat16* to, const V& v) {
  const auto bits = same_bits<Bits<V>>(v);
  const auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  store_two_bytes<V>(to, v == v ? rounded : Bits<V>{} + 0x7fc0);
}

#if ATTNZOO_HAS_F16C

constexpr uint16_t kAllLanes = 0xffff;  // GCC warns of its own header where no mask is given

template <typename V>
ATTNZOO_INLINE V load_as(const Half* from) {
  if constexpr (kLanes<V> == 4) {
    return same_bits<V>(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  } else if constexpr (kLanes<V> == 8) {
    return same_bits<V>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  } else {
    return same_bits<V>(_mm512_maskz_cvtph_ps(kAllLanes, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  }
}

template <typename V>
ATTNZOO_INLINE void store_as(Half* to, const V& v) {
  if constexpr (kLanes<V> == 4) {
    const __m128i narrow = _mm_cvtps_ph(same_bits<__m128>(v), _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to, &narrow, 8);
  } else if constexpr (kLanes<V> == 8) {
    const __m128i narrow = _mm256_cvtps_ph(same_bits<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to, &narrow, 16);
  } else {
    const __m256i narrow = _mm512_maskz_cvtps_ph(kAllLanes, same_bits<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to, &narrow, 32);
  }
}

#else

// The exponent of a half is biased by 15, that of a float by 127: a product with 2^112 moves from one to the other,
// numbers below the normal range included.
template <typename V>
ATTNZOO_INLINE V load_as(const Half* from) {
  const Bits<V> bits = load_two_bytes<V>(from);
  const Bits<V> magnitude = (bits & 0x7fff) << 13;
  const Bits<V> finite = same_bits<Bits<V>>(same_bits<V>(magnitude) * 0x1p112f);
  const Bits<V> not_finite = magnitude | 0x7f800000;
  return same_bits<V>((magnitude < 0x0f800000 ? finite : not_finite) | (bits & 0x8000) << 16);
}

// Below the normal range of a half, adding ½ leaves as many bits as a half has there, rounded by the addition.
template <typename V>
ATTNZOO_INLINE void store_as(Half* to, const V& v) {
  const auto bits = same_bits<Bits<V>>(v);
  const Bits<V> magnitude = bits & 0x7fffffff;
  const Bits<V> rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  const Bits<V> normal = (rounded - (112u << 23)) >> 13;
  const Bits<V> small = same_bits<Bits<V>>(same_bits<V>(magnitude) + 0.5f) - 0x3f000000;
  Bits<V> half = magnitude < 0x38800000 ? small : normal;
  half = rounded < 0x47800000 ? half : Bits<V>{} + 0x7c00;
  half = magnitude <= 0x7f800000 ? half : Bits<V>{} + 0x7e00;
  store_two_bytes<V>(to, half | (bits >> 16 & 0x8000));
}

#endif

}  // namespace attnzoo::ATTNZOO_ISA

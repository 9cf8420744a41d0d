// float16 and bfloat16 in memory, float in registers. Stores round to nearest, ties to even.
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
ATTNZOO_INLINE Bits<V> load_u16(const void* from) {
  Vector<uint16_t, kLanes<V>> narrow;
  std::memcpy(&narrow, from, sizeof(narrow));
  return __builtin_convertvector(narrow, Bits<V>);
}

template <typename V>
ATTNZOO_INLINE void store_u16(void* to, const Bits<V>& bits) {
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
  return bit_cast<V>(load_u16<V>(from) << 16);
}

template <typename V>
ATTNZOO_INLINE void store_as(BFloat16* to, const V& v) {
  const auto bits = bit_cast<Bits<V>>(v);
  const auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  store_u16<V>(to, v == v ? rounded : Bits<V>{} + 0x7fc0);
}

#if ATTNZOO_HAS_F16C

constexpr uint16_t kFullMask = 0xffff;  // the intrinsics without a mask cause warnings in GCC's own header

template <typename V>
ATTNZOO_INLINE V load_as(const Half* from) {
  if constexpr (kLanes<V> == 4) {
    return bit_cast<V>(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  } else if constexpr (kLanes<V> == 8) {
    return bit_cast<V>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  } else {
    return bit_cast<V>(_mm512_maskz_cvtph_ps(kFullMask, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  }
}

template <typename V>
ATTNZOO_INLINE void store_as(Half* to, const V& v) {
  if constexpr (kLanes<V> == 4) {
    const __m128i narrow = _mm_cvtps_ph(bit_cast<__m128>(v), _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to, &narrow, 8);
  } else if constexpr (kLanes<V> == 8) {
    const __m128i narrow = _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to, &narrow, 16);
  } else {
    const __m256i narrow = _mm512_maskz_cvtps_ph(kFullMask, bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to, &narrow, 32);
  }
}

#else

// The exponent bias is 15 in float16 and 127 in float. Multiplying by 2^112 converts one to the other, for subnormal
// numbers too.
template <typename V>
ATTNZOO_INLINE V load_as(const Half* from) {
  const Bits<V> bits = load_u16<V>(from);
  const Bits<V> magnitude = (bits & 0x7fff) << 13;
  const Bits<V> finite = bit_cast<Bits<V>>(bit_cast<V>(magnitude) * 0x1p112f);
  const Bits<V> infinite_or_nan = magnitude | 0x7f800000;
  return bit_cast<V>((magnitude < 0x0f800000 ? finite : infinite_or_nan) | (bits & 0x8000) << 16);
}

// For a subnormal result, adding ½ rounds to the bits that a subnormal float16 has.
template <typename V>
ATTNZOO_INLINE void store_as(Half* to, const V& v) {
  const auto bits = bit_cast<Bits<V>>(v);
  const Bits<V> magnitude = bits & 0x7fffffff;
  const Bits<V> rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  const Bits<V> normal = (rounded - (112u << 23)) >> 13;
  const Bits<V> subnormal = bit_cast<Bits<V>>(bit_cast<V>(magnitude) + 0.5f) - 0x3f000000;
  Bits<V> half = magnitude < 0x38800000 ? subnormal : normal;
  half = rounded < 0x47800000 ? half : Bits<V>{} + 0x7c00;
  half = magnitude <= 0x7f800000 ? half : Bits<V>{} + 0x7e00;
  store_u16<V>(to, half | (bits >> 16 & 0x8000));
}

#endif

}  // namespace attnzoo::ATTNZOO_ISA

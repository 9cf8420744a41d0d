// From sampling locations, or from references, offsets and logits, to the tokens that are read and their shares.
#pragma once

#include <cstring>

#include "../common/simd.h"
#include "../common/simd_math.h"
#include "cpu.h"

namespace attnzoo::ms_deform_attn::ATTNZOO_ISA {

using namespace attnzoo::ATTNZOO_ISA;

// The samples of one query and head. Corner k of sample i is at k * padded + i. A corner off the map has the share 0
// and the token after the last, where the kernels keep a row of zeros.
template <typename T>
struct Footprints {
  int64_t padded;
  Token<T>* tokens;
  T* shares;   // of the corners, attention weight included
  T* fx;       // distances to the left column and the top row
  T* fy;
  T* weights;  // 0 for a sample that touches no pixel
};

template <typename T>
constexpr int kFootprintSize = 11;  // numbers per sample

template <typename T>
ATTNZOO_INLINE Footprints<T> footprints_at(T* memory, int64_t padded) {
  static_assert(sizeof(Token<T>) == sizeof(T));
  return {
      padded,
      reinterpret_cast<Token<T>*>(memory),
      memory + 4 * padded,
      memory + 8 * padded,
      memory + 9 * padded,
      memory + 10 * padded};
}

// A vector of samples at (column, row) in pixels, pixel centres at integers. As `locate` in bilinear.h, without
// branches: a NaN fails every comparison, and nothing that fails them is converted to an integer.
template <typename V>
ATTNZOO_INLINE void place(
    const SampleLevels<Element<V>>& levels,
    Token<Element<V>> off_map,
    int64_t i,
    const V& column,
    const V& row,
    const V& weight,
    const Footprints<Element<V>>& at) {
  using I = Mask<V>;
  const I touches = (column > V{} - 1) & (column < load<V>(levels.width + i)) & (row > V{} - 1) &
                    (row < load<V>(levels.height + i));
  const V x = touches ? column : V{};
  const V y = touches ? row : V{};
  const I left = floor_to_integer(x);
  const I top = floor_to_integer(y);
  const V fx = x - __builtin_convertvector(left, V);
  const V fy = y - __builtin_convertvector(top, V);
  const V masked = touches ? weight : V{};
  store(at.fx + i, fx);
  store(at.fy + i, fy);
  store(at.weights + i, masked);

  const I columns = load<I>(levels.columns + i);
  const I first = load<I>(levels.start + i) + top * columns + left;
  const I on_left = touches & (left >= 0);
  const I on_right = touches & (left + 1 < columns);
  const I on_top = top >= 0;
  const I on_bottom = top + 1 < load<I>(levels.rows + i);
  const I on_map[4] = {on_left & on_top, on_right & on_top, on_left & on_bottom, on_right & on_bottom};
  const I tokens[4] = {first, first + 1, first + columns, first + columns + 1};
  const V upper = masked * (1 - fy);
  const V lower = masked * fy;
  const V shares[4] = {upper * (1 - fx), upper * fx, lower * (1 - fx), lower * fx};
  for (int k = 0; k < 4; ++k) {
    store(at.tokens + k * at.padded + i, on_map[k] ? tokens[k] : I{} + off_map);
    store(at.shares + k * at.padded + i, on_map[k] ? shares[k] : V{});
  }
}

// `count` numbers that can be read in whole vectors: where they lie, or else copied with zeros after them.
template <typename T>
ATTNZOO_INLINE const T* in_whole_vectors(const T* from, int64_t count, int64_t padded_count, T* copy) {
  if (count == padded_count) {
    return from;
  }
  std::memcpy(copy, from, count * sizeof(T));
  std::memset(copy + count, 0, (padded_count - count) * sizeof(T));
  return copy;
}

template <typename T>
void place_located(const Call<T>& call, int64_t item, T* staging, const Footprints<T>& at) {
  using V = Vector<T, kWidest<T>>;
  const int64_t count = call.samples();
  const T* places = in_whole_vectors(call.places + item * count * 2, count * 2, at.padded * 2, staging);
  const T* weights = in_whole_vectors(call.scores + item * count, count, at.padded, staging + at.padded * 2);
  for (int64_t i = 0; i < at.padded; i += kLanes<V>) {
    V x, y;
    load_pairs(places + 2 * i, x, y);
    const V column = x * load<V>(call.levels.width + i) - T(0.5);
    const V row = y * load<V>(call.levels.height + i) - T(0.5);
    place(call.levels, static_cast<Token<T>>(call.tokens), i, column, row, load<V>(weights + i), at);
  }
}

}  // namespace attnzoo::ms_deform_attn::ATTNZOO_ISA

// Where one sampling point falls on a map, and its gradients. cpu_footprints.h does the same for vectors of samples.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/macros.h"

namespace attnzoo::ms_deform_attn {

template <typename Index>
struct LevelOf {
  Index height;
  Index width;
  Index start;  // index of the level's first token
};

using Level = LevelOf<int64_t>;

// The four pixels around a point. Corner k lies (k & 1) to the right of and (k >> 1) below the first.
template <typename T, typename Index = int64_t>
struct Footprint {
  Index left;
  Index top;
  T fx;  // distance to the left column, in [0, 1)
  T fy;  // distance to the top row, in [0, 1)

  // Share of corner k, in [0, 1]; the four add up to 1.
  ATTNZOO_HOST_DEVICE T share(int k) const {
    return ((k & 1) ? fx : T(1) - fx) * ((k >> 1) ? fy : T(1) - fy);
  }

  // Token of corner k, or -1 where the corner is off the map.
  ATTNZOO_HOST_DEVICE Index token(int k, const LevelOf<Index>& level) const {
    const Index x = left + (k & 1);
    const Index y = top + (k >> 1);
    const bool on_map = x >= 0 && x < level.width && y >= 0 && y < level.height;
    return on_map ? level.start + y * level.width + x : -1;
  }
};

// The footprint of a point at (column, row) in pixels, pixel centres at integers. False where no corner is on the map,
// NaN and infinity included: every comparison with NaN fails, and nothing is converted to an integer then.
template <typename T, typename Index>
ATTNZOO_HOST_DEVICE bool locate(T column, T row, const LevelOf<Index>& level, Footprint<T, Index>& footprint) {
  const bool touches = column > T(-1) && column < static_cast<T>(level.width) && row > T(-1) &&
                       row < static_cast<T>(level.height);
  if (!touches) {
    return false;
  }
  const T left = std::floor(column);
  const T top = std::floor(row);
  footprint = {static_cast<Index>(left), static_cast<Index>(top), column - left, row - top};
  return true;
}

// Gradients of one point by its weight and its place in pixels.
template <typename T>
struct PointGradient {
  T weight;
  T x;
  T y;
};

// Given the products Σ_d grad_output[d] · value[corner k][d] and the attention weight.
template <typename T, typename Index>
ATTNZOO_HOST_DEVICE PointGradient<T> differentiate(
    const Footprint<T, Index>& at, const T (&products)[4], T weight) {
  T sampled = 0;
  for (int k = 0; k < 4; ++k) {
    sampled += at.share(k) * products[k];
  }
  const T along_x = (T(1) - at.fy) * (products[1] - products[0]) + at.fy * (products[3] - products[2]);
  const T along_y = (T(1) - at.fx) * (products[2] - products[0]) + at.fx * (products[3] - products[1]);
  return {sampled, weight * along_x, weight * along_y};
}

}  // namespace attnzoo::ms_deform_attn

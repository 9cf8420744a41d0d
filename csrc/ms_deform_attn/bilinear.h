// Bilinear interpolation of one sampling point and its gradients. cpu_footprints.h does the same for vectors of points.
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

// The four pixels around a sampling point. Corner 0 is the upper left, 1 the upper right, 2 the lower left, 3 the lower
// right.
template <typename T, typename Index = int64_t>
struct Footprint {
  Index left;
  Index top;
  T fx;  // distance from the left column, in [0, 1)
  T fy;  // distance from the top row, in [0, 1)

  // Bilinear weight of corner k, in [0, 1]; the four add up to 1.
  ATTNZOO_HOST_DEVICE T corner_weight(int k) const {
    return ((k & 1) ? fx : T(1) - fx) * ((k >> 1) ? fy : T(1) - fy);
  }

  // Token of corner k, or -1 if the corner is outside the map.
  ATTNZOO_HOST_DEVICE Index token(int k, const LevelOf<Index>& level) const {
    const Index x = left + (k & 1);
    const Index y = top + (k >> 1);
    const bool inside = x >= 0 && x < level.width && y >= 0 && y < level.height;
    return inside ? level.start + y * level.width + x : -1;
  }
};

// The footprint of a point at (column, row) in pixels; pixel centres are integers. Returns false if all four corners
// are outside the map, or if the position is NaN: comparisons with NaN are false. NaN and infinity are never converted
// to an integer.
template <typename T, typename Index>
ATTNZOO_HOST_DEVICE bool compute_footprint(
    T column, T row, const LevelOf<Index>& level, Footprint<T, Index>& footprint) {
  const bool inside = column > T(-1) && column < static_cast<T>(level.width) && row > T(-1) &&
                      row < static_cast<T>(level.height);
  if (!inside) {
    return false;
  }
  const T left = std::floor(column);
  const T top = std::floor(row);
  footprint = {static_cast<Index>(left), static_cast<Index>(top), column - left, row - top};
  return true;
}

// Gradients of one sampling point.
template <typename T>
struct SampleGrads {
  T weight;  // w.r.t. the attention weight
  T x;       // w.r.t. the position in pixels
  T y;
};

// dots[k] = Σ_d grad_output[d] · value[corner k][d]; `weight` is the attention weight.
template <typename T, typename Index>
ATTNZOO_HOST_DEVICE SampleGrads<T> bilinear_backward(
    const Footprint<T, Index>& footprint, const T (&dots)[4], T weight) {
  T sampled = 0;
  for (int k = 0; k < 4; ++k) {
    sampled += footprint.corner_weight(k) * dots[k];
  }
  const T dx = (T(1) - footprint.fy) * (dots[1] - dots[0]) + footprint.fy * (dots[3] - dots[2]);
  const T dy = (T(1) - footprint.fx) * (dots[2] - dots[0]) + footprint.fx * (dots[3] - dots[1]);
  return {sampled, weight * dx, weight * dy};
}

}  // namespace attnzoo::ms_deform_attn

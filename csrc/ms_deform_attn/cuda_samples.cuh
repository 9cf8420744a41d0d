// Where samples come from: given locations and weights, or made from references, offsets and logits in the kernel.
//
// Both kinds offer: `begin`, what a group finds out once per item; `sample`, the place and weight of one sample;
// `add_gradients`, which takes the gradients of one sample; `finish`, which completes those of an item.
// Lane i of a group handles the samples i, i + lanes, … of its item in all of these.
#pragma once

#include <cmath>

#include "../common/cuda_launch.cuh"
#include "cuda_sizes.cuh"

namespace attnzoo::ms_deform_attn {

// A sampling point at (column, row) in pixels of its level, pixel centres at integers.
template <typename A>
struct Sample {
  Level32 level;
  A column;
  A row;
  A weight;
};

template <typename A>
__device__ A group_max(A x, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    x = std::fmax(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  return x;
}

template <typename A>
__device__ A group_sum(A x, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

template <typename A>
struct GivenSamples {
  const A* locations;  // (B, Q, M, L, P, 2)
  const A* weights;    // (B, Q, M, L, P)
  A* grad_locations;
  A* grad_weights;

  // The same for a single image of the batch.
  GivenSamples of_image(const Sizes& sizes, int64_t image) const {
    const int64_t skipped = image * sizes.queries * sizes.heads * sizes.samples();
    return {locations + 2 * skipped, weights + skipped, grad_locations + 2 * skipped, grad_weights + skipped};
  }

  struct State {};

  __device__ State begin(const Sizes&, const Item&, const Position&) const {
    return {};
  }

  __device__ Sample<A> sample(const Sizes& sizes, const Item& item, const State&, int32_t i) const {
    const int64_t at = item.index(sizes) * sizes.samples() + i;
    const Level32 level = sizes.levels[i / sizes.points];
    return {
        level,
        locations[2 * at] * static_cast<A>(level.width) - A(0.5),
        locations[2 * at + 1] * static_cast<A>(level.height) - A(0.5),
        weights[at]};
  }

  __device__ void add_gradients(
      const Sizes& sizes, const Item& item, State&, int32_t i, const Sample<A>& sample, const PointGradient<A>& by)
      const {
    const int64_t at = item.index(sizes) * sizes.samples() + i;
    grad_weights[at] = by.weight;
    grad_locations[2 * at] = by.x * static_cast<A>(sample.level.width);
    grad_locations[2 * at + 1] = by.y * static_cast<A>(sample.level.height);
  }

  __device__ void finish(const Sizes&, const Item&, const Position&, const State&) const {}
};

template <typename A>
struct FusedSamples {
  const A* references;  // (B, Q, L, box ? 4 : 2)
  const A* offsets;     // (B, Q, M, L, P, 2)
  const A* logits;      // (B, Q, M, L, P)
  bool box;
  A* grad_offsets;  // by the place in pixels, until `references_kernel` has run
  A* grad_logits;

  FusedSamples of_image(const Sizes& sizes, int64_t image) const {
    const int64_t skipped = image * sizes.queries * sizes.heads * sizes.samples();
    return {
        references + image * sizes.queries * sizes.num_levels * (box ? 4 : 2),
        offsets + 2 * skipped,
        logits + skipped,
        box,
        grad_offsets + 2 * skipped,
        grad_logits + skipped};
  }

  // The softmax over an item's samples, and, going backward, this lane's part of Σ weight · gradient.
  struct State {
    A largest;
    A scale;
    A dot;
  };

  __device__ State begin(const Sizes& sizes, const Item& item, const Position& group) const {
    const A* of_item = logits + item.index(sizes) * sizes.samples();
    A largest = -INFINITY;
    for (int32_t i = group.lane; i < sizes.samples(); i += group.lanes) {
      largest = std::fmax(largest, of_item[i]);
    }
    largest = group_max(largest, group.lanes);
    A sum = 0;
    for (int32_t i = group.lane; i < sizes.samples(); i += group.lanes) {
      sum += std::exp(of_item[i] - largest);
    }
    return {largest, A(1) / group_sum(sum, group.lanes), A(0)};
  }

  __device__ A weight(const State& state, int64_t at) const {
    return std::exp(logits[at] - state.largest) * state.scale;
  }

  __device__ Sample<A> sample(const Sizes& sizes, const Item& item, const State& state, int32_t i) const {
    const int64_t at = item.index(sizes) * sizes.samples() + i;
    const int32_t l = i / sizes.points;
    const Level32 level = sizes.levels[l];
    const A* reference = references + (item.query * sizes.num_levels + l) * (box ? 4 : 2);
    const A width = static_cast<A>(level.width);
    const A height = static_cast<A>(level.height);
    // A box turns offsets into half box sizes per point; else they are in pixels.
    const A across = box ? reference[2] * width * (A(0.5) / static_cast<A>(sizes.points)) : A(1);
    const A down = box ? reference[3] * height * (A(0.5) / static_cast<A>(sizes.points)) : A(1);
    return {
        level,
        reference[0] * width + offsets[2 * at] * across - A(0.5),
        reference[1] * height + offsets[2 * at + 1] * down - A(0.5),
        weight(state, at)};
  }

  __device__ void add_gradients(
      const Sizes& sizes,
      const Item& item,
      State& state,
      int32_t i,
      const Sample<A>& sample,
      const PointGradient<A>& by) const {
    const int64_t at = item.index(sizes) * sizes.samples() + i;
    grad_logits[at] = by.weight;
    grad_offsets[2 * at] = by.x;
    grad_offsets[2 * at + 1] = by.y;
    state.dot += sample.weight * by.weight;
  }

  // Through the softmax: each lane rewrites what it wrote itself.
  __device__ void finish(const Sizes& sizes, const Item& item, const Position& group, const State& state) const {
    const A dot = group_sum(state.dot, group.lanes);
    if (!item.active) {
      return;
    }
    for (int32_t i = group.lane; i < sizes.samples(); i += group.lanes) {
      const int64_t at = item.index(sizes) * sizes.samples() + i;
      grad_logits[at] = weight(state, at) * (grad_logits[at] - dot);
    }
  }
};

}  // namespace attnzoo::ms_deform_attn

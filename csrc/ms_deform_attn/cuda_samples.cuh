// The samples of a query and head. `UnfusedSamples` reads sampling locations and attention weights; `FusedSamples`
// computes them from references, offsets and logits. Both have the same methods:
// - init: the state that a group of threads needs for a query and head
// - sample: the position and weight of one sample
// - store_grads: stores the gradients of one sample
// - finish: completes the gradients of a query and head
// Lane i of a group processes the samples i, i + lanes, … in all of them.
#pragma once

#include <cmath>

#include "../common/cuda_launch.cuh"
#include "cuda_sizes.cuh"

namespace attnzoo::ms_deform_attn {

// A sampling point. (column, row) is in pixels of its level; pixel centres are integers.
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
    x = std::fmax(x, __shfl_xor_sync(kFullMask, x, offset));
  }
  return x;
}

template <typename A>
__device__ A group_sum(A x, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kFullMask, x, offset);
  }
  return x;
}

// W: the type of attention weights in memory.
template <typename A, typename W>
struct UnfusedSamples {
  static constexpr bool kFused = false;

  const A* locations;  // (B, Q, M, L, P, 2)
  const W* weights;    // (B, Q, M, L, P)
  A* grad_locations;
  W* grad_weights;

  // The samples of one image of the batch.
  UnfusedSamples slice_image(const Sizes& sizes, int64_t image) const {
    const int64_t first = image * sizes.queries * sizes.heads * sizes.samples();
    return {locations + 2 * first, weights + first, grad_locations + 2 * first, grad_weights + first};
  }

  struct State {};

  __device__ State init(const Sizes&, const QueryHead&, const ThreadIndex&) const {
    return {};
  }

  __device__ Sample<A> sample(const Sizes& sizes, const QueryHead& query_head, const State&, int32_t i) const {
    const int64_t index = query_head.index(sizes) * sizes.samples() + i;
    const Level32 level = sizes.levels[i / sizes.points];
    return {
        level,
        locations[2 * index] * static_cast<A>(level.width) - A(0.5),
        locations[2 * index + 1] * static_cast<A>(level.height) - A(0.5),
        static_cast<A>(weights[index])};
  }

  __device__ void store_grads(
      const Sizes& sizes,
      const QueryHead& query_head,
      State&,
      int32_t i,
      const Sample<A>& sample,
      const SampleGrads<A>& grads) const {
    const int64_t index = query_head.index(sizes) * sizes.samples() + i;
    grad_weights[index] = static_cast<W>(grads.weight);
    grad_locations[2 * index] = grads.x * static_cast<A>(sample.level.width);
    grad_locations[2 * index + 1] = grads.y * static_cast<A>(sample.level.height);
  }

  __device__ void finish(const Sizes&, const QueryHead&, const ThreadIndex&, const State&) const {}
};

// W: the type of logits in memory. Their gradients are in the compute type, because `finish` subtracts from them.
template <typename A, typename W>
struct FusedSamples {
  static constexpr bool kFused = true;

  const A* references;  // (B, Q, L, box ? 4 : 2)
  const A* offsets;     // (B, Q, M, L, P, 2)
  const W* logits;      // (B, Q, M, L, P)
  bool box;
  A* grad_offsets;  // of positions in pixels, until `references_backward_kernel` has run
  A* grad_logits;

  FusedSamples slice_image(const Sizes& sizes, int64_t image) const {
    const int64_t first = image * sizes.queries * sizes.heads * sizes.samples();
    return {
        references + image * sizes.queries * sizes.num_levels * (box ? 4 : 2),
        offsets + 2 * first,
        logits + first,
        box,
        grad_offsets + 2 * first,
        grad_logits + first};
  }

  struct State {
    A max;          // of the logits
    A inverse_sum;  // 1 / Σ exp(logit - max)
    A dot;          // backward: this lane's part of Σ weight · grad_weight
  };

  __device__ State init(const Sizes& sizes, const QueryHead& query_head, const ThreadIndex& thread) const {
    const W* query_logits = logits + query_head.index(sizes) * sizes.samples();
    A max = -INFINITY;
    for (int32_t i = thread.lane; i < sizes.samples(); i += thread.lanes) {
      max = std::fmax(max, static_cast<A>(query_logits[i]));
    }
    max = group_max(max, thread.lanes);
    A sum = 0;
    for (int32_t i = thread.lane; i < sizes.samples(); i += thread.lanes) {
      sum += std::exp(static_cast<A>(query_logits[i]) - max);
    }
    return {max, A(1) / group_sum(sum, thread.lanes), A(0)};
  }

  __device__ A weight(const State& state, int64_t index) const {
    return std::exp(static_cast<A>(logits[index]) - state.max) * state.inverse_sum;
  }

  __device__ Sample<A> sample(const Sizes& sizes, const QueryHead& query_head, const State& state, int32_t i) const {
    const int64_t index = query_head.index(sizes) * sizes.samples() + i;
    const int32_t l = i / sizes.points;
    const Level32 level = sizes.levels[l];
    const A* reference = references + (query_head.query * sizes.num_levels + l) * (box ? 4 : 2);
    const A width = static_cast<A>(level.width);
    const A height = static_cast<A>(level.height);
    // Offsets are in pixels or, with a box, in units of half its size divided by the number of points.
    const A scale_x = box ? reference[2] * width * (A(0.5) / static_cast<A>(sizes.points)) : A(1);
    const A scale_y = box ? reference[3] * height * (A(0.5) / static_cast<A>(sizes.points)) : A(1);
    return {
        level,
        reference[0] * width + offsets[2 * index] * scale_x - A(0.5),
        reference[1] * height + offsets[2 * index + 1] * scale_y - A(0.5),
        weight(state, index)};
  }

  __device__ void store_grads(
      const Sizes& sizes,
      const QueryHead& query_head,
      State& state,
      int32_t i,
      const Sample<A>& sample,
      const SampleGrads<A>& grads) const {
    const int64_t index = query_head.index(sizes) * sizes.samples() + i;
    grad_logits[index] = grads.weight;
    grad_offsets[2 * index] = grads.x;
    grad_offsets[2 * index + 1] = grads.y;
    state.dot += sample.weight * grads.weight;
  }

  // Softmax backward. Each lane reads only gradients that it has stored itself.
  __device__ void finish(
      const Sizes& sizes, const QueryHead& query_head, const ThreadIndex& thread, const State& state) const {
    const A dot = group_sum(state.dot, thread.lanes);
    if (!query_head.active) {
      return;
    }
    for (int32_t i = thread.lane; i < sizes.samples(); i += thread.lanes) {
      const int64_t index = query_head.index(sizes) * sizes.samples() + i;
      grad_logits[index] = weight(state, index) * (grad_logits[index] - dot);
    }
  }
};

}  // namespace attnzoo::ms_deform_attn

// The last step of the fused form's backward: from gradients by places in pixels to those by references and offsets.
#pragma once

#include "../common/cuda_launch.cuh"
#include "cuda_sizes.cuh"

namespace attnzoo::ms_deform_attn {

template <typename A>
struct ReferencesCall {
  Sizes sizes;
  bool box;
  const A* references;  // (B, Q, L, box ? 4 : 2)
  const A* offsets;     // (B, Q, M, L, P, 2)
  A* grad_references;
  A* grad_offsets;  // by the places in pixels at first
};

// A point without a place has no gradient, whatever its offset or box.
template <typename A>
__device__ A chain(A gradient, A factor) {
  return gradient == A(0) ? A(0) : gradient * factor;
}

// One thread per query and level adds over heads and points, always in the same order.
template <typename A>
__global__ void __launch_bounds__(kThreads, 8) references_kernel(const __grid_constant__ ReferencesCall<A> call) {
  const Sizes& sizes = call.sizes;
  const int64_t tasks = int64_t{sizes.batch} * sizes.queries * sizes.num_levels;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t task = int64_t{blockIdx.x} * kThreads + threadIdx.x; task < tasks; task += step) {
    const int64_t query = task / sizes.num_levels;
    const int32_t l = static_cast<int32_t>(task - query * sizes.num_levels);
    const A size[2] = {static_cast<A>(sizes.levels[l].width), static_cast<A>(sizes.levels[l].height)};
    const A per_point = A(0.5) / static_cast<A>(sizes.points);
    const A* box = call.references + task * 4 + 2;
    A by_center[2] = {};
    A by_box[2] = {};
    for (int32_t head = 0; head < sizes.heads; ++head) {
      const int64_t first = ((query * sizes.heads + head) * sizes.num_levels + l) * sizes.points;
      for (int64_t at = 2 * first; at < 2 * (first + sizes.points); at += 2) {
#pragma unroll
        for (int axis = 0; axis < 2; ++axis) {
          const A by_place = call.grad_offsets[at + axis] * size[axis];
          by_center[axis] += by_place;
          if (call.box) {
            by_box[axis] += chain(by_place, call.offsets[at + axis] * per_point);
            call.grad_offsets[at + axis] = chain(by_place, box[axis] * per_point);
          }
        }
      }
    }
    A* grad = call.grad_references + task * (call.box ? 4 : 2);
#pragma unroll
    for (int axis = 0; axis < 2; ++axis) {
      grad[axis] = by_center[axis];
      if (call.box) {
        grad[2 + axis] = by_box[axis];
      }
    }
  }
}

}  // namespace attnzoo::ms_deform_attn

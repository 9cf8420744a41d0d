// The last step of the backward pass of the fused operator: from the gradients of positions in pixels to those of
// references and offsets.
#pragma once

#include "../common/cuda_launch.cuh"
#include "cuda_sizes.cuh"

namespace attnzoo::ms_deform_attn {

template <typename A>
struct ReferencesArgs {
  Sizes sizes;
  bool box;
  const A* references;  // (B, Q, L, box ? 4 : 2)
  const A* offsets;     // (B, Q, M, L, P, 2)
  A* grad_references;
  A* grad_offsets;  // in: gradients of positions in pixels
};

// gradient · factor, but zero for a zero gradient: a sample outside the map may have an infinite or NaN offset or box.
template <typename A>
__device__ A multiply_nonzero(A gradient, A factor) {
  return gradient == A(0) ? A(0) : gradient * factor;
}

// One thread per query and level. It sums over heads and points in a fixed order.
template <typename A>
__global__ void __launch_bounds__(kThreads, 8)
    references_backward_kernel(const __grid_constant__ ReferencesArgs<A> args) {
  const Sizes& sizes = args.sizes;
  const int64_t num_tasks = int64_t{sizes.batch} * sizes.queries * sizes.num_levels;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t task = int64_t{blockIdx.x} * kThreads + threadIdx.x; task < num_tasks; task += step) {
    const int64_t query = task / sizes.num_levels;
    const int32_t l = static_cast<int32_t>(task - query * sizes.num_levels);
    const A level_size[2] = {static_cast<A>(sizes.levels[l].width), static_cast<A>(sizes.levels[l].height)};
    const A per_point = A(0.5) / static_cast<A>(sizes.points);
    const A* box_size = args.references + task * 4 + 2;  // if args.box
    A grad_center[2] = {};
    A grad_box_size[2] = {};
    for (int32_t head = 0; head < sizes.heads; ++head) {
      const int64_t first = ((query * sizes.heads + head) * sizes.num_levels + l) * sizes.points;
      for (int64_t index = 2 * first; index < 2 * (first + sizes.points); index += 2) {
#pragma unroll
        for (int axis = 0; axis < 2; ++axis) {
          const A grad_location = args.grad_offsets[index + axis] * level_size[axis];
          grad_center[axis] += grad_location;
          if (args.box) {
            grad_box_size[axis] += multiply_nonzero(grad_location, args.offsets[index + axis] * per_point);
            args.grad_offsets[index + axis] = multiply_nonzero(grad_location, box_size[axis] * per_point);
          }
        }
      }
    }
    A* grad = args.grad_references + task * (args.box ? 4 : 2);
#pragma unroll
    for (int axis = 0; axis < 2; ++axis) {
      grad[axis] = grad_center[axis];
      if (args.box) {
        grad[2 + axis] = grad_box_size[axis];
      }
    }
  }
}

}  // namespace attnzoo::ms_deform_attn

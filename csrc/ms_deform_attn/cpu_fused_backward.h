// The last step of the backward pass of the fused operator: from the gradients of positions in pixels and attention
// weights to those of references, offsets and logits.
#pragma once

#include "cpu_footprints.h"

namespace attnzoo::ms_deform_attn::ATTNZOO_ISA {

// Softmax backward: the gradient of logit i is w_i (g_i - Σ_j w_j g_j).
template <typename T>
ATTNZOO_INLINE void logits_backward(const KernelArgs<T>& args, int64_t query_head, T* weights) {
  softmax_weights(args, query_head, weights);
  T* const grad = args.grad_weights + query_head * args.samples();
  T dot = 0;
  for (int64_t i = 0; i < args.samples(); ++i) {
    dot += weights[i] * grad[i];
  }
  for (int64_t i = 0; i < args.samples(); ++i) {
    grad[i] = weights[i] * (grad[i] - dot);
  }
}

// gradient · factor, but zero for a zero gradient: a sample outside the map may have an infinite or NaN offset or box.
template <typename T>
ATTNZOO_INLINE T multiply_nonzero(T gradient, T factor) {
  return gradient == 0 ? T(0) : gradient * factor;
}

// Offsets and references along one axis, for one level of a query. The gradient of a reference is a sum over heads and
// points.
template <typename T>
ATTNZOO_INLINE void references_backward(const KernelArgs<T>& args, int64_t query, int64_t l, int axis) {
  const T level_size = static_cast<T>(axis ? args.levels[l].height : args.levels[l].width);
  const bool box = args.reference_size == 4;
  const int64_t reference = (query * args.num_levels + l) * args.reference_size + axis;
  const T per_point = T(0.5) / static_cast<T>(args.points);
  const T scale = box ? args.references[reference + 2] * per_point : T(0);
  T grad_center = 0;
  T grad_box_size = 0;
  for (int64_t head = 0; head < args.heads; ++head) {
    const int64_t first = ((query * args.heads + head) * args.num_levels + l) * args.points;
    for (int64_t i = 2 * first + axis; i < 2 * (first + args.points); i += 2) {
      const T grad_location = args.grad_locations[i] * level_size;
      grad_center += grad_location;
      if (box) {
        grad_box_size += multiply_nonzero(grad_location, args.locations[i] * per_point);
        args.grad_locations[i] = multiply_nonzero(grad_location, scale);
      }
    }
  }
  args.grad_references[reference] = grad_center;
  if (box) {
    args.grad_references[reference + 2] = grad_box_size;
  }
}

template <typename T>
void fused_backward(const KernelArgs<T>& args, int64_t begin, int64_t end, T* scratch) {
  const Workspace<T> workspace(args, scratch);
  for (int64_t query = begin; query < end; ++query) {
    for (int64_t head = 0; head < args.heads; ++head) {
      logits_backward(args, query * args.heads + head, workspace.staging);
    }
    for (int64_t l = 0; l < args.num_levels; ++l) {
      references_backward(args, query, l, 0);
      references_backward(args, query, l, 1);
    }
  }
}

}  // namespace attnzoo::ms_deform_attn::ATTNZOO_ISA

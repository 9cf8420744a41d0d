// The last step of the fused form's backward: from gradients by places in pixels and by weights to those by
// references, offsets and logits.
#pragma once

#include "cpu_footprints.h"

namespace attnzoo::ms_deform_attn::ATTNZOO_ISA {

// Softmax: the gradient by logit i is w_i (g_i - Σ_j w_j g_j).
template <typename T>
ATTNZOO_INLINE void finish_logits(const Call<T>& call, int64_t item, T* weights) {
  weigh(call, item, weights);
  T* const grad = call.grad_scores + item * call.samples();
  T mean = 0;
  for (int64_t i = 0; i < call.samples(); ++i) {
    mean += weights[i] * grad[i];
  }
  for (int64_t i = 0; i < call.samples(); ++i) {
    grad[i] = weights[i] * (grad[i] - mean);
  }
}

// A sample without a place has no gradient, whatever its offset or box.
template <typename T>
ATTNZOO_INLINE T chain(T gradient, T factor) {
  return gradient == 0 ? T(0) : gradient * factor;
}

// One axis of one level of a query: sums over all heads and points.
template <typename T>
ATTNZOO_INLINE void finish_level(const Call<T>& call, int64_t query, int64_t l, int axis) {
  const T size = static_cast<T>(axis ? call.levels[l].height : call.levels[l].width);
  const bool box = call.reference_size == 4;
  const int64_t at = (query * call.num_levels + l) * call.reference_size + axis;
  const T per_point = T(0.5) / static_cast<T>(call.points);
  const T unit = box ? call.references[at + 2] * per_point : T(0);
  T by_center = 0;
  T by_box = 0;
  for (int64_t head = 0; head < call.heads; ++head) {
    const int64_t first = ((query * call.heads + head) * call.num_levels + l) * call.points;
    for (int64_t i = 2 * first + axis; i < 2 * (first + call.points); i += 2) {
      const T by_place = call.grad_places[i] * size;
      by_center += by_place;
      if (box) {
        by_box += chain(by_place, call.places[i] * per_point);
        call.grad_places[i] = chain(by_place, unit);
      }
    }
  }
  call.grad_references[at] = by_center;
  if (box) {
    call.grad_references[at + 2] = by_box;
  }
}

template <typename T>
void finish(const Call<T>& call, int64_t begin, int64_t end, T* scratch) {
  const Workspace<T> workspace(call, scratch);
  for (int64_t query = begin; query < end; ++query) {
    for (int64_t head = 0; head < call.heads; ++head) {
      finish_logits(call, query * call.heads + head, workspace.staging);
    }
    for (int64_t l = 0; l < call.num_levels; ++l) {
      finish_level(call, query, l, 0);
      finish_level(call, query, l, 1);
    }
  }
}

}  // namespace attnzoo::ms_deform_attn::ATTNZOO_ISA

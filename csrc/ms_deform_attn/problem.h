// The sizes of one call. The Python face explains wrong arguments; these checks keep memory safe whoever calls.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

#include "../common/tensor.h"
#include "bilinear.h"

namespace attnzoo::ms_deform_attn {

// The dtype of locations and weights beside a value: float32 for the half precisions, else the value's own.
inline torch::headeronly::ScalarType computed_in(torch::headeronly::ScalarType value) {
  using torch::headeronly::ScalarType;
  const bool half = value == ScalarType::Half || value == ScalarType::BFloat16;
  return half ? ScalarType::Float : value;
}

struct Problem {
  int64_t batch;
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
  int64_t queries;
  int64_t points;
  std::vector<Level> levels;

  int64_t samples_per_head() const {
    return static_cast<int64_t>(levels.size()) * points;
  }
};

// `shapes` holds h, w of each level in turn; value (B, S, M, D), locations (B, Q, M, L, P, 2), weights (B, Q, M, L, P).
inline Problem describe(
    const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& locations, const Tensor& weights) {
  STD_TORCH_CHECK(value.dim() == 4 && locations.dim() == 6 && weights.dim() == 5, "ms_deform_attn: wrong dimensions");
  STD_TORCH_CHECK(
      locations.scalar_type() == weights.scalar_type() && computed_in(value.scalar_type()) == weights.scalar_type(),
      "ms_deform_attn: value, sampling_locations and attention_weights do not fit in dtype");
  Problem problem{
      value.size(0), value.size(1), value.size(2), value.size(3), locations.size(1), locations.size(4), {}};
  int64_t start = 0;
  for (size_t i = 0; i + 1 < shapes.size(); i += 2) {
    STD_TORCH_CHECK(shapes[i] > 0 && shapes[i + 1] > 0, "ms_deform_attn: spatial_shapes must be positive");
    problem.levels.push_back({shapes[i], shapes[i + 1], start});
    start += shapes[i] * shapes[i + 1];
  }
  STD_TORCH_CHECK(
      start == problem.tokens && shapes.size() % 2 == 0,
      "ms_deform_attn: spatial_shapes do not add up to the tokens of value");
  const int64_t expected[] = {
      problem.batch, problem.queries, problem.heads, static_cast<int64_t>(problem.levels.size()), problem.points, 2};
  for (int i = 0; i < 6; ++i) {
    STD_TORCH_CHECK(
        locations.size(i) == expected[i] && (i == 5 || weights.size(i) == expected[i]),
        "ms_deform_attn: value, sampling_locations and attention_weights differ in size");
  }
  return problem;
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& value, const Problem& problem) {
  STD_TORCH_CHECK(
      grad_output.dim() == 3 && grad_output.size(0) == problem.batch && grad_output.size(1) == problem.queries &&
          grad_output.size(2) == problem.heads * problem.head_dim && grad_output.scalar_type() == value.scalar_type(),
      "ms_deform_attn_backward: grad_output does not fit the other tensors");
}

}  // namespace attnzoo::ms_deform_attn

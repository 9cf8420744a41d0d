// The sizes of one call, checked. Error messages for users come from Python (attnzoo/ops/ms_deform_attn/checks.py). The
// checks here keep direct calls of torch.ops.attnzoo memory-safe.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

#include "../common/tensor.h"
#include "bilinear.h"

namespace attnzoo::ms_deform_attn {

struct Problem {
  int64_t batch;
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
  int64_t queries;
  int64_t points;
  std::vector<Level> levels;

  // Per query and head.
  int64_t samples() const {
    return static_cast<int64_t>(levels.size()) * points;
  }
};

// What some kernels support and others do not.
struct Support {
  bool shared_value = false;  // a value (B, S, 1, D), which all heads share
  bool half_weights = false;  // weights or logits in the half precision of value
};

// All floating-point tensors but value are float32, or float64 if value is float64.
inline void check_dtype(const Tensor& value, const Tensor& other, const char* name, bool half_supported = false) {
  using torch::headeronly::ScalarType;
  const auto expected = value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(
      other.scalar_type() == expected || (half_supported && other.scalar_type() == value.scalar_type()),
      "ms_deform_attn: ",
      name,
      " must be float64 if value is float64, and float32 otherwise");
}

// `shapes` is h0, w0, h1, w1, …; value (B, S, M, D), locations (B, Q, M, L, P, 2), weights (B, Q, M, L, P). The fused
// operator passes offsets and logits for locations and weights.
inline Problem make_problem(
    const Tensor& value,
    const std::vector<int64_t>& shapes,
    const Tensor& locations,
    const Tensor& weights,
    const Support& support = {}) {
  STD_TORCH_CHECK(
      value.dim() == 4 && locations.dim() == 6 && weights.dim() == 5, "ms_deform_attn: wrong number of dimensions");
  check_dtype(value, locations, "locations or offsets");
  check_dtype(value, weights, "weights or logits", support.half_weights);
  Problem problem{
      value.size(0), value.size(1), locations.size(2), value.size(3), locations.size(1), locations.size(4), {}};
  STD_TORCH_CHECK(
      value.size(2) == problem.heads || (support.shared_value && value.size(2) == 1),
      "ms_deform_attn: value has ", value.size(2), " heads, but sampling_locations have ", problem.heads);
  int64_t start = 0;
  for (size_t i = 0; i + 1 < shapes.size(); i += 2) {
    STD_TORCH_CHECK(shapes[i] > 0 && shapes[i + 1] > 0, "ms_deform_attn: spatial_shapes must be positive");
    STD_TORCH_CHECK(  // a division, because the product could overflow
        shapes[i + 1] <= (problem.tokens - start) / shapes[i],
        "ms_deform_attn: spatial_shapes do not add up to the tokens of value");
    problem.levels.push_back({shapes[i], shapes[i + 1], start});
    start += shapes[i] * shapes[i + 1];
  }
  STD_TORCH_CHECK(
      start == problem.tokens && shapes.size() % 2 == 0,
      "ms_deform_attn: spatial_shapes do not add up to the tokens of value");
  STD_TORCH_CHECK(
      problem.heads > 0 && problem.head_dim > 0 && problem.points > 0 && !problem.levels.empty(),
      "ms_deform_attn: needs at least one head, channel, level and point");
  const int64_t expected[] = {
      problem.batch, problem.queries, problem.heads, static_cast<int64_t>(problem.levels.size()), problem.points, 2};
  for (int i = 0; i < 6; ++i) {
    STD_TORCH_CHECK(
        locations.size(i) == expected[i] && (i == 5 || weights.size(i) == expected[i]),
        "ms_deform_attn: value, sampling_locations and attention_weights differ in size");
  }
  return problem;
}

// References are points (B, Q, L, 2) or boxes (B, Q, L, 4).
inline void check_references(const Tensor& references, const Tensor& value, const Problem& problem) {
  check_dtype(value, references, "references");
  STD_TORCH_CHECK(
      references.dim() == 4 && references.size(0) == problem.batch && references.size(1) == problem.queries &&
          references.size(2) == static_cast<int64_t>(problem.levels.size()) &&
          (references.size(3) == 2 || references.size(3) == 4),
      "ms_deform_attn: references differ in size from the other tensors");
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& value, const Problem& problem) {
  STD_TORCH_CHECK(
      grad_output.dim() == 3 && grad_output.size(0) == problem.batch && grad_output.size(1) == problem.queries &&
          grad_output.size(2) == problem.heads * problem.head_dim && grad_output.scalar_type() == value.scalar_type(),
      "ms_deform_attn_backward: grad_output does not match the shape or dtype of the output");
}

}  // namespace attnzoo::ms_deform_attn

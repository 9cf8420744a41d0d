// The tensors of one call that do not depend on the kind of bias, checked and made contiguous.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <vector>

#include "../common/tensor.h"
#include "problem.h"

namespace attnzoo::deform_kv_attn {

inline void check(bool condition, const char* message) {
  STD_TORCH_CHECK(condition, "deform_kv_attn: ", message);
}

inline bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> shape) {
  return tensor.dim() == static_cast<int64_t>(shape.size()) &&
         std::equal(shape.begin(), shape.end(), tensor.sizes().begin());
}

inline Tensor with_contiguous_channels(const Tensor& tensor) {
  return tensor.stride(3) == 1 ? tensor : torch::stable::contiguous(tensor);
}

// The dtype of positions, bias and logsumexp, and of the computation, for query, key and value of this dtype.
inline torch::headeronly::ScalarType compute_dtype(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  return dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ? ScalarType::Float : dtype;
}

template <typename T>
StridedTensor<const T> strided(const Tensor& tensor) {
  return {data<T>(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

template <typename T>
StridedTensor<T> mutable_strided(const Tensor& tensor) {
  return {mutable_data<T>(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// A (B, H, N, D) tensor that is stored as (B, N, H, D), so that concatenating its heads needs no copy.
inline Tensor new_token_major(const Tensor& like, const Problem& problem, int64_t length) {
  return torch::stable::transpose(
      torch::stable::new_empty(like, {problem.batch, length, problem.heads, problem.head_dim}), 1, 2);
}

struct Arguments {
  Tensor query;
  Tensor key;
  Tensor value;
  Tensor query_positions;
  Tensor key_positions;
  std::vector<int64_t> key_counts;
  std::optional<Tensor> key_padding;
  double scale;

  // Also sets the keys of `levels`. Error messages for users come from Python (attnzoo/ops/deform_kv_attn/checks.py).
  // The checks here keep direct calls of torch.ops.attnzoo memory-safe.
  Problem make_problem(std::vector<Level>& levels) const {
    check(query.dim() == 4 && key.dim() == 4 && key_positions.dim() == 4, "wrong number of dimensions");
    check(!levels.empty() && levels.size() == key_counts.size(), "the bias and key_counts differ in levels");
    Problem p{};
    p.batch = query.size(0);
    p.heads = query.size(1);
    p.groups = key_positions.size(1);
    p.queries = query.size(2);
    p.keys = key.size(2);
    p.head_dim = query.size(3);
    p.scale = scale;
    p.levels = levels.data();
    p.num_levels = static_cast<int64_t>(levels.size());
    check(p.groups > 0 && p.heads % p.groups == 0 && p.head_dim > 0, "key_positions does not match the heads");
    int64_t keys = 0;
    for (size_t i = 0; i < levels.size(); ++i) {
      check(key_counts[i] >= 0, "key_counts must not be negative");
      levels[i].first_key = keys;
      levels[i].end_key = keys += key_counts[i];
    }
    check(keys == p.keys, "key_counts do not add up to the number of keys");
    check(
        has_shape(key, {p.batch, p.heads, p.keys, p.head_dim}) &&
            has_shape(value, {p.batch, p.heads, p.keys, p.head_dim}) &&
            has_shape(query_positions, {p.batch, p.num_levels, p.queries, 2}) &&
            has_shape(key_positions, {p.batch, p.groups, p.keys, 2}),
        "the tensors differ in size");
    for (const Tensor* tensor : {&key, &value}) {
      check(tensor->scalar_type() == query.scalar_type(), "query, key and value differ in dtype");
    }
    for (const Tensor* tensor : {&query_positions, &key_positions}) {
      check(
          tensor->scalar_type() == compute_dtype(query.scalar_type()),
          "positions must have the dtype of query, or float32 if that is in half precision");
    }
    if (key_padding) {
      check(
          has_shape(*key_padding, {p.batch, p.keys}) &&
              key_padding->scalar_type() == torch::headeronly::ScalarType::Bool,
          "key_padding does not match the keys");
    }
    return p;
  }

  void make_contiguous() {
    query = with_contiguous_channels(query);
    key = with_contiguous_channels(key);
    value = with_contiguous_channels(value);
    query_positions = torch::stable::contiguous(query_positions);
    key_positions = torch::stable::contiguous(key_positions);
    if (key_padding) {
      key_padding = torch::stable::contiguous(*key_padding);
    }
  }
};

// The further tensors of a backward call: the results of the forward pass and the gradient of its output.
struct BackwardArguments {
  Tensor grad_output;
  Tensor output;
  Tensor logsumexp;

  BackwardArguments(
      const Tensor& input_grad_output,
      const Tensor& input_output,
      const Tensor& input_logsumexp,
      const Tensor& query,
      const Problem& problem) {
    for (const Tensor* tensor : {&input_grad_output, &input_output}) {
      check(
          has_shape(*tensor, {problem.batch, problem.heads, problem.queries, problem.head_dim}) &&
              tensor->scalar_type() == query.scalar_type(),
          "grad_output and output do not match the queries");
    }
    check(
        has_shape(input_logsumexp, {problem.batch, problem.heads, problem.queries}) &&
            input_logsumexp.scalar_type() == compute_dtype(query.scalar_type()),
        "logsumexp does not match the queries");
    grad_output = with_contiguous_channels(input_grad_output);
    output = with_contiguous_channels(input_output);
    logsumexp = torch::stable::contiguous(input_logsumexp);
  }
};

}  // namespace attnzoo::deform_kv_attn

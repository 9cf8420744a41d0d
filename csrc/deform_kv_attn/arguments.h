// The arguments that calls with either bias share, checked, and what the kernels need to know of them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <vector>

#include "../common/tensor.h"
#include "problem.h"

namespace attnzoo::deform_kv_attn {

inline void check(bool holds, const char* what) {
  STD_TORCH_CHECK(holds, "deform_kv_attention: ", what);
}

inline bool has_sizes(const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  return tensor.dim() == static_cast<int64_t>(sizes.size()) &&
         std::equal(sizes.begin(), sizes.end(), tensor.sizes().begin());
}

inline Tensor with_neighbouring_channels(const Tensor& tensor) {
  return tensor.stride(3) == 1 ? tensor : torch::stable::contiguous(tensor);
}

template <typename T>
Rows<const T> rows(const Tensor& tensor) {
  return {data<T>(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

template <typename T>
Rows<T> mutable_rows(const Tensor& tensor) {
  return {mutable_data<T>(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// (B, H, N, D), ordered in memory as (B, N, H, D): its heads can be joined without a copy.
inline Tensor new_by_token(const Tensor& like, const Problem& problem, int64_t length) {
  return torch::stable::transpose(
      torch::stable::new_empty(like, {problem.batch, length, problem.heads, problem.dim}), 1, 2);
}

struct Call {
  Tensor query;
  Tensor key;
  Tensor value;
  Tensor query_positions;
  Tensor key_positions;
  std::vector<int64_t> key_counts;
  std::optional<Tensor> key_padding;
  double scale;

  // The Python face explains wrong arguments; these checks keep memory safe whoever calls. `levels` get their keys.
  Problem describe(std::vector<Level>& levels) const {
    check(query.dim() == 4 && key.dim() == 4 && key_positions.dim() == 4, "wrong dimensions");
    check(!levels.empty() && levels.size() == key_counts.size(), "bias and key_counts differ in levels");
    Problem p{};
    p.batch = query.size(0);
    p.heads = query.size(1);
    p.groups = key_positions.size(1);
    p.queries = query.size(2);
    p.keys = key.size(2);
    p.dim = query.size(3);
    p.scale = scale;
    p.levels = levels.data();
    p.level_count = static_cast<int64_t>(levels.size());
    check(p.groups > 0 && p.heads % p.groups == 0 && p.dim > 0, "key_positions does not fit the heads");
    int64_t keys = 0;
    for (size_t i = 0; i < levels.size(); ++i) {
      check(key_counts[i] >= 0, "key_counts must not be negative");
      levels[i].first_key = keys;
      levels[i].end_key = keys += key_counts[i];
    }
    check(keys == p.keys, "key_counts do not add up to the keys");
    check(
        has_sizes(key, {p.batch, p.heads, p.keys, p.dim}) && has_sizes(value, {p.batch, p.heads, p.keys, p.dim}) &&
            has_sizes(query_positions, {p.batch, p.level_count, p.queries, 2}) &&
            has_sizes(key_positions, {p.batch, p.groups, p.keys, 2}),
        "the tensors differ in size");
    for (const Tensor* tensor : {&key, &value, &query_positions, &key_positions}) {
      check(tensor->scalar_type() == query.scalar_type(), "the tensors differ in dtype");
    }
    if (key_padding) {
      check(
          has_sizes(*key_padding, {p.batch, p.keys}) &&
              key_padding->scalar_type() == torch::headeronly::ScalarType::Bool,
          "key_padding does not fit the keys");
    }
    return p;
  }

  void make_contiguous() {
    query = with_neighbouring_channels(query);
    key = with_neighbouring_channels(key);
    value = with_neighbouring_channels(value);
    query_positions = torch::stable::contiguous(query_positions);
    key_positions = torch::stable::contiguous(key_positions);
    if (key_padding) {
      key_padding = torch::stable::contiguous(*key_padding);
    }
  }

  // Per image, its keys that are seen.
  std::vector<std::vector<Run>> runs(const Problem& problem) const {
    const bool* hidden = key_padding ? data<bool>(*key_padding) : nullptr;
    std::vector<std::vector<Run>> runs(problem.batch);
    for (int64_t image = 0; image < problem.batch; ++image) {
      for (int64_t level = 0; level < problem.level_count; ++level) {
        const int64_t end = problem.levels[level].end_key;
        for (int64_t first = problem.levels[level].first_key; first < end;) {
          int64_t stop = hidden ? first : end;
          for (; stop < end && !hidden[image * problem.keys + stop]; ++stop) {
          }
          if (stop > first) {
            runs[image].push_back({level, first, stop});
          }
          first = std::max(stop, first + 1);
        }
      }
    }
    return runs;
  }
};

// What the forward pass gave, and the gradient by its output, checked.
struct Results {
  Tensor by_output;
  Tensor output;
  Tensor log_sums;

  Results(const Tensor& given_gradient, const Tensor& given_output, const Tensor& given_sums, const Tensor& query,
          const Problem& problem) {
    for (const Tensor* tensor : {&given_gradient, &given_output}) {
      check(
          has_sizes(*tensor, {problem.batch, problem.heads, problem.queries, problem.dim}) &&
              tensor->scalar_type() == query.scalar_type(),
          "grad_output and output do not fit the queries");
    }
    check(
        has_sizes(given_sums, {problem.batch, problem.heads, problem.queries}) &&
            given_sums.scalar_type() == query.scalar_type(),
        "log_sums does not fit the queries");
    by_output = with_neighbouring_channels(given_gradient);
    output = with_neighbouring_channels(given_output);
    log_sums = torch::stable::contiguous(given_sums);
  }
};

}  // namespace attnzoo::deform_kv_attn

// From tensors to what the kernels take.
#pragma once

#include <initializer_list>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "../common/cuda_launch.cuh"
#include "../common/cuda_vector.cuh"
#include "../common/tensor.h"
#include "arguments.h"
#include "bias_parameters.h"
#include "cuda_sizes.cuh"

namespace attnzoo::deform_kv_attn {

using Ints = std::vector<int64_t>;
using Padding = std::optional<Tensor>;

inline int32_t checked(int64_t size, const char* what) {
  STD_TORCH_CHECK(
      size <= std::numeric_limits<int32_t>::max(), "deform_kv_attention: on CUDA at most 2**31 - 1 ", what, ", got ",
      size);
  return static_cast<int32_t>(size);
}

// A call with its tables, ready for the kernels.
struct Prepared {
  Call call;
  Tables tables;
  std::vector<Level> levels;
  Problem problem;

  Prepared(Call given, Tables given_tables)
      : call(std::move(given)),
        tables(std::move(given_tables)),
        levels(tables.levels()),
        problem(call.describe(levels)) {
    tables.describe(problem);
    check(tables.has_dtype_of(call.query), "the bias differs in dtype");
    for (const Tensor* tensor :
         {&call.key, &call.value, &call.query_positions, &call.key_positions, &tables.tables}) {
      check_device(*tensor);
    }
    if (call.key_padding) {
      check_device(*call.key_padding);
    }
    call.make_contiguous();
  }
  Prepared(const Prepared&) = delete;  // `problem` points to the other members

  void check_device(const Tensor& tensor) const {
    check(
        tensor.is_cuda() && tensor.get_device_index() == call.query.get_device_index(),
        "all tensors must be on the device of query");
  }

  Sizes sizes() const {
    STD_TORCH_CHECK(levels.size() <= kMaxLevels, "deform_kv_attention: on CUDA at most ", kMaxLevels, " levels");
    Sizes sizes{};
    sizes.batch = checked(problem.batch, "images");
    sizes.heads = checked(problem.heads, "heads");
    sizes.groups = checked(problem.groups, "groups");
    sizes.queries = checked(problem.queries, "queries per image");
    sizes.keys = checked(problem.keys, "keys per image");
    sizes.dim = checked(problem.dim, "channels per head");
    sizes.cells = checked(Tables::given(problem), "cells per head");
    sizes.num_levels = static_cast<int32_t>(levels.size());
    int64_t block = 0;
    for (int l = 0; l < sizes.num_levels; ++l) {
      const Level& level = levels[l];
      sizes.levels[l] = {
          static_cast<int32_t>(level.height),    static_cast<int32_t>(level.width),
          static_cast<int32_t>(level.given),     static_cast<int32_t>(level.first_key),
          static_cast<int32_t>(level.end_key),   checked(block, "blocks of keys")};
      block += ceil_div(level.end_key - level.first_key, kKeys);
    }
    return sizes;
  }

  // `others`: the tensors beside those given whose rows the kernels read or write.
  template <typename T>
  Given<T> given(std::initializer_list<const Tensor*> others) const {
    bool whole = problem.dim % kVectorSize<T> == 0;
    const auto narrow = [&](const Tensor& tensor) {
      whole = whole && is_aligned(tensor.const_data_ptr());
      for (int axis = 0; axis < 3; ++axis) {
        whole = whole && (tensor.size(axis) < 2 || tensor.stride(axis) % kVectorSize<T> == 0);
      }
    };
    for (const Tensor* tensor : {&call.query, &call.key, &call.value}) {
      narrow(*tensor);
    }
    for (const Tensor* tensor : others) {
      narrow(*tensor);
    }
    return {
        sizes(),
        rows<T>(call.query),
        rows<T>(call.key),
        rows<T>(call.value),
        data<T>(call.query_positions),
        data<T>(call.key_positions),
        call.key_padding ? data<bool>(*call.key_padding) : nullptr,
        data<T>(tables.tables),
        static_cast<T>(problem.scale),
        whole};
  }
};

// Calls `body` with a number of the type of `tensor` and the number of channels that kernels are compiled for, at least
// `dim`, as a std::integral_constant.
template <typename Body>
void with_channels(const Tensor& tensor, int64_t dim, const Body& body) {
  dispatch_floating(tensor, "deform_kv_attention", [&](auto scalar) {
    using T = decltype(scalar);
    constexpr int64_t kMost = sizeof(T) == sizeof(float) ? 128 : 64;  // beyond, shared memory does not hold the rows
    STD_TORCH_CHECK(
        dim <= kMost, "deform_kv_attention: on CUDA at most 128 channels per head, 64 in float64; got ", dim);
    if (dim <= 32) {
      return body(scalar, std::integral_constant<int, 32>());
    }
    if (dim <= 64) {
      return body(scalar, std::integral_constant<int, 64>());
    }
    if constexpr (sizeof(T) == sizeof(float)) {
      body(scalar, std::integral_constant<int, 128>());
    }
  });
}

}  // namespace attnzoo::deform_kv_attn

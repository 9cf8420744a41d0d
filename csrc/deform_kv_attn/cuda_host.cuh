// Host code: from tensors to kernel arguments.
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

using IntList = std::vector<int64_t>;

inline int32_t checked_int32(int64_t size, const char* what) {
  STD_TORCH_CHECK(
      size <= std::numeric_limits<int32_t>::max(),
      "deform_kv_attn: the CUDA kernels take at most 2**31 - 1 ", what, ", got ", size);
  return static_cast<int32_t>(size);
}

// A checked call, with the bias from tables.
struct PreparedCall {
  Arguments arguments;
  TableParameters bias;
  std::vector<Level> levels;
  Problem problem;

  PreparedCall(Arguments input_arguments, TableParameters input_bias)
      : arguments(std::move(input_arguments)),
        bias(std::move(input_bias)),
        levels(bias.levels()),
        problem(arguments.make_problem(levels)) {
    bias.prepare(problem);
    check(bias.has_dtype_of(arguments.query_positions), "tables differ in dtype from positions");
    for (const Tensor* tensor :
         {&arguments.key, &arguments.value, &arguments.query_positions, &arguments.key_positions, &bias.tables}) {
      check_device(*tensor);
    }
    if (arguments.key_padding) {
      check_device(*arguments.key_padding);
    }
    arguments.make_contiguous();
  }
  PreparedCall(const PreparedCall&) = delete;  // `problem` points to the other members

  void check_device(const Tensor& tensor) const {
    check(
        tensor.is_cuda() && tensor.get_device_index() == arguments.query.get_device_index(),
        "all tensors must be on the device of query");
  }

  Sizes sizes() const {
    STD_TORCH_CHECK(
        levels.size() <= kMaxLevels, "deform_kv_attn: the CUDA kernels take at most ", kMaxLevels, " levels");
    Sizes sizes{};
    sizes.batch = checked_int32(problem.batch, "images");
    sizes.heads = checked_int32(problem.heads, "heads");
    sizes.groups = checked_int32(problem.groups, "groups");
    sizes.queries = checked_int32(problem.queries, "queries per image");
    sizes.keys = checked_int32(problem.keys, "keys per image");
    sizes.head_dim = checked_int32(problem.head_dim, "channels per head");
    sizes.cells = checked_int32(TableParameters::cells_per_head(problem), "cells per head");
    sizes.padded_cells = checked_int32(problem.parameters_per_head, "cells per head");
    sizes.num_levels = static_cast<int32_t>(levels.size());
    int64_t block = 0;
    for (int l = 0; l < sizes.num_levels; ++l) {
      const Level& level = levels[l];
      sizes.levels[l] = {
          static_cast<int32_t>(level.height),
          static_cast<int32_t>(level.width),
          static_cast<int32_t>(level.table_offset),
          static_cast<int32_t>(level.padded_width()),
          static_cast<int32_t>(level.parameter_offset),
          static_cast<int32_t>(level.first_key),
          static_cast<int32_t>(level.end_key),
          checked_int32(block, "blocks of keys")};
      block += ceil_div(level.end_key - level.first_key, kKeysPerBlock);
    }
    return sizes;
  }

  // The tables as the kernels read them, (H, padded cells, 4): see `Cell`.
  template <typename T>
  Tensor make_cells(const Sizes& sizes, cudaStream_t stream) const;

  // `others`: the other tensors whose rows the kernels read or write.
  template <typename S>
  Inputs<S> inputs(const Tensor& cells, std::initializer_list<const Tensor*> others) const {
    using T = ComputeType<S>;
    bool vectorized = problem.head_dim % kVectorSize<T> == 0;
    const auto check_alignment = [&](const Tensor& tensor) {
      vectorized = vectorized && is_aligned(tensor.const_data_ptr());
      for (int axis = 0; axis < 3; ++axis) {
        vectorized = vectorized && (tensor.size(axis) < 2 || tensor.stride(axis) % kVectorSize<T> == 0);
      }
    };
    for (const Tensor* tensor : {&arguments.query, &arguments.key, &arguments.value}) {
      check_alignment(*tensor);
    }
    for (const Tensor* tensor : others) {
      check_alignment(*tensor);
    }
    return {
        sizes(),
        strided<S>(arguments.query),
        strided<S>(arguments.key),
        strided<S>(arguments.value),
        data<T>(arguments.query_positions),
        data<T>(arguments.key_positions),
        arguments.key_padding ? data<bool>(*arguments.key_padding) : nullptr,
        data<T>(cells),
        static_cast<T>(problem.scale),
        vectorized};
  }
};

// Calls body(scalar, dim): a scalar of the tensor's dtype, and as a std::integral_constant the smallest number of
// channels, at least head_dim, that the kernels are compiled for.
template <typename Body>
void dispatch_head_dim(const Tensor& tensor, int64_t head_dim, const Body& body) {
  dispatch_floating_and_half(tensor, "deform_kv_attn", [&](auto scalar) {
    using T = ComputeType<decltype(scalar)>;
    constexpr int64_t kMaxHeadDim = sizeof(T) == sizeof(float) ? 128 : 64;  // the rows must fit in shared memory
    STD_TORCH_CHECK(
        head_dim <= kMaxHeadDim,
        "deform_kv_attn: the CUDA kernels take at most 128 channels per head, 64 in float64; got ", head_dim);
    if (head_dim <= 32) {
      return body(scalar, std::integral_constant<int, 32>());
    }
    if (head_dim <= 64) {
      return body(scalar, std::integral_constant<int, 64>());
    }
    if constexpr (sizeof(T) == sizeof(float)) {
      body(scalar, std::integral_constant<int, 128>());
    }
  });
}

}  // namespace attnzoo::deform_kv_attn

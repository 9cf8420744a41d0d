// Attention to keys at sampled positions with a relative position bias (DAT, CVPR 2022, equation 9) on CPU, in float32
// and float64. attnzoo/ops/deform_kv_attn/reference.py computes the same in plain PyTorch.
//
// Forward: threads split blocks of queries. Backward: threads split images and heads. Gradients that are shared between
// images or heads are summed afterwards in a fixed order, so the result does not depend on the number of threads, bit
// for bit.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "../common/simd_level.h"
#include "../common/tensor.h"
#include "arguments.h"
#include "bias_parameters.h"
#include "cpu_interface.h"

namespace attnzoo::deform_kv_attn {

namespace {

template <typename T>
Kernels<T> choose_kernels(BiasKind kind) {
  switch (simd_level()) {
#if defined(__x86_64__)
    case SimdLevel::kAvx512:
      return avx512::kernels<T>(kind);
    case SimdLevel::kAvx2:
      return avx2::kernels<T>(kind);
#endif
    default:
      return baseline::kernels<T>(kind);
  }
}

// For each image, the ranges of keys that are not masked.
std::vector<std::vector<KeyRange>> unmasked_ranges(const std::optional<Tensor>& key_padding, const Problem& problem) {
  const bool* masked = key_padding ? data<bool>(*key_padding) : nullptr;
  std::vector<std::vector<KeyRange>> ranges(problem.batch);
  for (int64_t image = 0; image < problem.batch; ++image) {
    for (int64_t level = 0; level < problem.num_levels; ++level) {
      const int64_t end = problem.levels[level].end_key;
      for (int64_t first = problem.levels[level].first_key; first < end;) {
        int64_t stop = masked ? first : end;
        for (; stop < end && !masked[image * problem.keys + stop]; ++stop) {
        }
        if (stop > first) {
          ranges[image].push_back({level, first, stop});
        }
        first = std::max(stop, first + 1);
      }
    }
  }
  return ranges;
}

KeyRanges view(const std::vector<KeyRange>& ranges) {
  return {ranges.data(), ranges.data() + ranges.size()};
}

template <typename T>
Inputs<T> make_inputs(const Arguments& arguments, const std::vector<T>& parameters) {
  return {strided<T>(arguments.query), strided<T>(arguments.key), strided<T>(arguments.value),
          data<T>(arguments.query_positions), data<T>(arguments.key_positions), parameters.data()};
}

// to[i, j] = Σ_k parts[i, k, j], with sizes outer, count, inner of i, k, j
template <typename T>
void sum_parts(const std::vector<T>& parts, int64_t outer, int64_t count, int64_t inner, T* to) {
  std::fill(to, to + outer * inner, T(0));
  for (int64_t i = 0; i < outer * count; ++i) {
    const T* from = parts.data() + i * inner;
    T* sum = to + i / count * inner;
    for (int64_t j = 0; j < inner; ++j) {
      sum[j] += from[j];
    }
  }
}

// Copies (Nk, padded D) to (Nk, D).
template <typename T>
void unpad(const std::vector<T>& padded, int64_t padded_dim, const Problem& problem, T* to, int64_t row_stride) {
  for (int64_t key = 0; key < problem.keys; ++key) {
    std::copy_n(padded.data() + key * padded_dim, problem.head_dim, to + key * row_stride);
  }
}

// A checked call. `Bias` is `TableParameters` or `MlpParameters`.
template <typename Bias>
struct PreparedCall {
  Arguments arguments;
  Bias bias;
  std::vector<Level> levels;
  Problem problem;
  std::vector<std::vector<KeyRange>> key_ranges;  // per image

  PreparedCall(Arguments input_arguments, Bias input_bias)
      : arguments(std::move(input_arguments)),
        bias(std::move(input_bias)),
        levels(bias.levels()),
        problem(arguments.make_problem(levels)) {
    bias.prepare(problem);
    check(bias.has_dtype_of(arguments.query), "the bias differs in dtype");
    arguments.make_contiguous();
    key_ranges = unmasked_ranges(arguments.key_padding, problem);
  }
  PreparedCall(const PreparedCall&) = delete;  // `problem` points to the other members
};

template <typename Bias>
std::tuple<Tensor, Tensor> forward(Arguments arguments, Bias bias) {
  const PreparedCall<Bias> call(std::move(arguments), std::move(bias));
  const Problem& problem = call.problem;
  const Tensor& query = call.arguments.query;
  Tensor output = new_token_major(query, problem, problem.queries);
  Tensor logsumexp = torch::stable::new_empty(query, {problem.batch, problem.heads, problem.queries});
  dispatch_floating(query, "deform_kv_attn", [&](auto scalar) {
    using T = decltype(scalar);
    const Kernels<T> kernels = choose_kernels<T>(Bias::kKind);
    const std::vector<T> parameters = call.bias.template pack<T>(problem);
    const Inputs<T> inputs = make_inputs<T>(call.arguments, parameters);
    const Outputs<T> outputs{mutable_strided<T>(output), mutable_data<T>(logsumexp)};
    const int64_t blocks = (problem.queries + kernels.query_block - 1) / kernels.query_block;
    torch::stable::parallel_for(
        0, problem.batch * problem.heads * blocks, 1, [&](int64_t begin, int64_t end) {
          std::vector<T> scratch(kernels.scratch_size(problem));
          for (int64_t task = begin; task < end; ++task) {
            const int64_t image = task / blocks / problem.heads;
            const int64_t head = task / blocks % problem.heads;
            const int64_t first = task % blocks * kernels.query_block;
            kernels.forward(
                problem, inputs, view(call.key_ranges[image]), image, head, first, scratch.data(), outputs);
          }
        });
  });
  return {output, logsumexp};
}

// Returns the gradients of query, key, value, query_positions, key_positions and the bias.
template <typename Bias, typename BiasGrads>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, BiasGrads> backward(
    Tensor grad_output, Arguments arguments, Bias bias, Tensor output, Tensor logsumexp) {
  const PreparedCall<Bias> call(std::move(arguments), std::move(bias));
  const Problem& problem = call.problem;
  const Tensor& query = call.arguments.query;
  const BackwardArguments saved(grad_output, output, logsumexp, query, problem);
  Tensor grad_query = new_token_major(query, problem, problem.queries);
  Tensor grad_key = new_token_major(query, problem, problem.keys);
  Tensor grad_value = new_token_major(query, problem, problem.keys);
  Tensor grad_query_positions = torch::stable::new_empty(query, call.arguments.query_positions.sizes());
  Tensor grad_key_positions = torch::stable::new_empty(query, call.arguments.key_positions.sizes());
  std::optional<BiasGrads> grad_bias;
  dispatch_floating(query, "deform_kv_attn", [&](auto scalar) {
    using T = decltype(scalar);
    const Kernels<T> kernels = choose_kernels<T>(Bias::kKind);
    const std::vector<T> parameters = call.bias.template pack<T>(problem);
    const int64_t tasks = problem.batch * problem.heads;
    const int64_t padded_dim = (problem.head_dim + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
    const int64_t query_coordinates = problem.num_levels * problem.queries * 2;
    std::vector<T> query_position_parts(tasks * query_coordinates);
    std::vector<T> key_position_parts(tasks * problem.keys * 2);
    std::vector<T> parameter_parts(tasks * problem.parameters_per_head);
    const Inputs<T> inputs = make_inputs<T>(call.arguments, parameters);
    const StridedTensor<T> key_rows = mutable_strided<T>(grad_key);
    const StridedTensor<T> value_rows = mutable_strided<T>(grad_value);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(kernels.scratch_size(problem));
      std::vector<T> padded_key(problem.keys * padded_dim);
      std::vector<T> padded_value(problem.keys * padded_dim);
      const Gradients<T> grads{
          strided<T>(saved.grad_output), strided<T>(saved.output), data<T>(saved.logsumexp),
          mutable_strided<T>(grad_query), padded_key.data(), padded_value.data(), query_position_parts.data(),
          key_position_parts.data(), parameter_parts.data()};
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / problem.heads;
        const int64_t head = task % problem.heads;
        std::fill(padded_key.begin(), padded_key.end(), T(0));
        std::fill(padded_value.begin(), padded_value.end(), T(0));
        kernels.backward(problem, inputs, view(call.key_ranges[image]), image, head, scratch.data(), grads);
        unpad(padded_key, padded_dim, problem, key_rows.head(image, head), key_rows.row_stride);
        unpad(padded_value, padded_dim, problem, value_rows.head(image, head), value_rows.row_stride);
      }
    });
    sum_parts(
        query_position_parts, problem.batch, problem.heads, query_coordinates, mutable_data<T>(grad_query_positions));
    sum_parts(
        key_position_parts, problem.batch * problem.groups, problem.heads / problem.groups, problem.keys * 2,
        mutable_data<T>(grad_key_positions));
    grad_bias = call.bias.template unpack<T>(parameter_parts, problem);
  });
  return {grad_query, grad_key, grad_value, grad_query_positions, grad_key_positions, *grad_bias};
}

using IntList = std::vector<int64_t>;

std::tuple<Tensor, Tensor> table_forward(
    Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions, Tensor tables,
    IntList table_shapes, IntList key_counts, std::optional<Tensor> key_padding, double scale) {
  return forward<TableParameters>(
      {query, key, value, query_positions, key_positions, key_counts, key_padding, scale}, {tables, table_shapes});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> table_backward(
    Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions,
    Tensor tables, IntList table_shapes, IntList key_counts, std::optional<Tensor> key_padding, double scale,
    Tensor output, Tensor logsumexp) {
  return backward<TableParameters, Tensor>(
      grad_output, {query, key, value, query_positions, key_positions, key_counts, key_padding, scale},
      {tables, table_shapes}, output, logsumexp);
}

std::tuple<Tensor, Tensor> mlp_forward(
    Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions, std::vector<Tensor> layers,
    IntList key_counts, std::optional<Tensor> key_padding, double scale) {
  const auto num_levels = static_cast<int64_t>(key_counts.size());
  return forward<MlpParameters>(
      {query, key, value, query_positions, key_positions, key_counts, key_padding, scale}, {layers, num_levels});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> mlp_backward(
    Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions,
    std::vector<Tensor> layers, IntList key_counts, std::optional<Tensor> key_padding, double scale, Tensor output,
    Tensor logsumexp) {
  const auto num_levels = static_cast<int64_t>(key_counts.size());
  return backward<MlpParameters, std::vector<Tensor>>(
      grad_output, {query, key, value, query_positions, key_positions, key_counts, key_padding, scale},
      {layers, num_levels}, output, logsumexp);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CPU, library) {
  library.impl("deform_kv_attn", TORCH_BOX(&table_forward));
  library.impl("deform_kv_attn_backward", TORCH_BOX(&table_backward));
  library.impl("deform_kv_attn_mlp", TORCH_BOX(&mlp_forward));
  library.impl("deform_kv_attn_mlp_backward", TORCH_BOX(&mlp_backward));
}

}  // namespace attnzoo::deform_kv_attn

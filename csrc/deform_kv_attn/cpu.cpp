// Attention to displaced keys with a relative position bias on CPU, float and double: see attnzoo/ops/deform_kv.py.
//
// Forward: blocks of queries are split over threads. Backward: images and heads are split over threads, and what they
// share is added up in a fixed order, so that the result is the same, bit for bit, for any number of threads.

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
#include "problem.h"

namespace attnzoo::deform_kv_attn {

namespace {

template <typename T>
Kernels<T> choose_kernels(Kind kind) {
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

Runs view(const std::vector<Run>& runs) {
  return {runs.data(), runs.data() + runs.size()};
}

template <typename T>
Inputs<T> inputs(const Call& call, const std::vector<T>& parameters) {
  return {rows<T>(call.query), rows<T>(call.key), rows<T>(call.value), data<T>(call.query_positions),
          data<T>(call.key_positions), parameters.data()};
}

// to[outer, inner] = the sum of parts[outer, part, inner]
template <typename T>
void add_up(const std::vector<T>& parts, int64_t outer, int64_t count, int64_t inner, T* to) {
  std::fill(to, to + outer * inner, T(0));
  for (int64_t i = 0; i < outer * count; ++i) {
    const T* from = parts.data() + i * inner;
    T* sum = to + i / count * inner;
    for (int64_t j = 0; j < inner; ++j) {
      sum[j] += from[j];
    }
  }
}

// (Nk, padded D) without the padding
template <typename T>
void unpad(const std::vector<T>& padded, int64_t columns, const Problem& problem, T* to, int64_t row) {
  for (int64_t key = 0; key < problem.keys; ++key) {
    std::copy_n(padded.data() + key * columns, problem.dim, to + key * row);
  }
}

// A call with its bias, `Tables` or `Perceptrons`, ready for the kernels.
template <typename Bias>
struct Prepared {
  Call call;
  Bias bias;
  std::vector<Level> levels;
  Problem problem;
  std::vector<std::vector<Run>> runs;

  Prepared(Call given, Bias given_bias)
      : call(std::move(given)), bias(std::move(given_bias)), levels(bias.levels()), problem(call.describe(levels)) {
    bias.describe(problem);
    check(bias.has_dtype_of(call.query), "the bias differs in dtype");
    call.make_contiguous();
    runs = call.runs(problem);
  }
  Prepared(const Prepared&) = delete;  // `problem` points to the other members
};

template <typename Bias>
std::tuple<Tensor, Tensor> attend(Call call, Bias bias) {
  const Prepared<Bias> given(std::move(call), std::move(bias));
  const Problem& problem = given.problem;
  Tensor output = new_by_token(given.call.query, problem, problem.queries);
  Tensor log_sums = torch::stable::new_empty(given.call.query, {problem.batch, problem.heads, problem.queries});
  dispatch_floating(given.call.query, "deform_kv_attention", [&](auto scalar) {
    using T = decltype(scalar);
    const Kernels<T> kernels = choose_kernels<T>(Bias::kKind);
    const std::vector<T> parameters = given.bias.template pack<T>(problem);
    const Inputs<T> in = inputs<T>(given.call, parameters);
    const Outputs<T> out{mutable_rows<T>(output), mutable_data<T>(log_sums)};
    const int64_t blocks = (problem.queries + kernels.block - 1) / kernels.block;
    torch::stable::parallel_for(
        0, problem.batch * problem.heads * blocks, 1, [&](int64_t begin, int64_t end) {
          std::vector<T> scratch(kernels.scratch(problem));
          for (int64_t task = begin; task < end; ++task) {
            const int64_t image = task / blocks / problem.heads;
            const int64_t head = task / blocks % problem.heads;
            const int64_t first = task % blocks * kernels.block;
            kernels.forward(problem, in, view(given.runs[image]), image, head, first, scratch.data(), out);
          }
        });
  });
  return {output, log_sums};
}

// Gradients by query, key, value, positions of queries and of keys, and the parameters of the bias.
template <typename Bias, typename ByBias>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, ByBias> differentiate(
    Tensor grad_output, Call call, Bias bias, Tensor output, Tensor log_sums) {
  const Prepared<Bias> given(std::move(call), std::move(bias));
  const Problem& problem = given.problem;
  const Tensor& query = given.call.query;
  const Results results(grad_output, output, log_sums, query, problem);
  Tensor by_query = new_by_token(query, problem, problem.queries);
  Tensor by_key = new_by_token(query, problem, problem.keys);
  Tensor by_value = new_by_token(query, problem, problem.keys);
  Tensor by_query_positions = torch::stable::new_empty(query, given.call.query_positions.sizes());
  Tensor by_key_positions = torch::stable::new_empty(query, given.call.key_positions.sizes());
  std::optional<ByBias> by_bias;
  dispatch_floating(query, "deform_kv_attention", [&](auto scalar) {
    using T = decltype(scalar);
    const Kernels<T> kernels = choose_kernels<T>(Bias::kKind);
    const std::vector<T> parameters = given.bias.template pack<T>(problem);
    const int64_t tasks = problem.batch * problem.heads;
    const int64_t columns = (problem.dim + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
    const int64_t level_queries = problem.level_count * problem.queries * 2;
    std::vector<T> query_places(tasks * level_queries);
    std::vector<T> key_places(tasks * problem.keys * 2);
    std::vector<T> by_parameters(tasks * problem.parameters);
    const Inputs<T> in = inputs<T>(given.call, parameters);
    const Rows<T> to_keys = mutable_rows<T>(by_key);
    const Rows<T> to_values = mutable_rows<T>(by_value);
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(kernels.scratch(problem));
      std::vector<T> keys(problem.keys * columns);
      std::vector<T> values(problem.keys * columns);
      const Gradients<T> out{
          rows<T>(results.by_output), rows<T>(results.output), data<T>(results.log_sums), mutable_rows<T>(by_query),
          keys.data(), values.data(), query_places.data(), key_places.data(), by_parameters.data()};
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / problem.heads;
        const int64_t head = task % problem.heads;
        std::fill(keys.begin(), keys.end(), T(0));
        std::fill(values.begin(), values.end(), T(0));
        kernels.backward(problem, in, view(given.runs[image]), image, head, scratch.data(), out);
        unpad(keys, columns, problem, to_keys.of(image, head), to_keys.row);
        unpad(values, columns, problem, to_values.of(image, head), to_values.row);
      }
    });
    add_up(query_places, problem.batch, problem.heads, level_queries, mutable_data<T>(by_query_positions));
    add_up(
        key_places, problem.batch * problem.groups, problem.heads / problem.groups, problem.keys * 2,
        mutable_data<T>(by_key_positions));
    by_bias = given.bias.template unpack<T>(by_parameters, problem);
  });
  return {by_query, by_key, by_value, by_query_positions, by_key_positions, *by_bias};
}

using Ints = std::vector<int64_t>;
using Padding = std::optional<Tensor>;

std::tuple<Tensor, Tensor> table_forward(
    Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions, Tensor tables, Ints shapes,
    Ints counts, Padding padding, double scale) {
  return attend<Tables>({query, key, value, query_positions, key_positions, counts, padding, scale}, {tables, shapes});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> table_backward(
    Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions,
    Tensor tables, Ints shapes, Ints counts, Padding padding, double scale, Tensor output, Tensor log_sums) {
  return differentiate<Tables, Tensor>(
      grad_output, {query, key, value, query_positions, key_positions, counts, padding, scale}, {tables, shapes},
      output, log_sums);
}

std::tuple<Tensor, Tensor> mlp_forward(
    Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions, std::vector<Tensor> layers,
    Ints counts, Padding padding, double scale) {
  const auto levels = static_cast<int64_t>(counts.size());
  return attend<Perceptrons>(
      {query, key, value, query_positions, key_positions, counts, padding, scale}, {layers, levels});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> mlp_backward(
    Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions,
    std::vector<Tensor> layers, Ints counts, Padding padding, double scale, Tensor output, Tensor log_sums) {
  const auto levels = static_cast<int64_t>(counts.size());
  return differentiate<Perceptrons, std::vector<Tensor>>(
      grad_output, {query, key, value, query_positions, key_positions, counts, padding, scale}, {layers, levels},
      output, log_sums);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CPU, library) {
  library.impl("deform_kv_attention", TORCH_BOX(&table_forward));
  library.impl("deform_kv_attention_backward", TORCH_BOX(&table_backward));
  library.impl("deform_kv_attention_mlp", TORCH_BOX(&mlp_forward));
  library.impl("deform_kv_attention_mlp_backward", TORCH_BOX(&mlp_backward));
}

}  // namespace attnzoo::deform_kv_attn

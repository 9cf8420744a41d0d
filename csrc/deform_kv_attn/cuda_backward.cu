// Attention to displaced keys with a bias from tables on CUDA (see attnzoo/ops/deform_kv.py): backward.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "cuda_backward.cuh"
#include "cuda_host.cuh"

namespace attnzoo::deform_kv_attn {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kEnoughBlocks = 2048;  // to keep any GPU busy
constexpr int64_t kLeastQueries = 512;  // of a split, so that its sums are few beside what it reads

// Of each head: of the sum of the norms of its rows, or of the largest norm. `like` is a tensor on the device.
template <typename T>
void find_exponents(
    const Tensor& like, const Sizes& sizes, const Rows<const T>& rows, int32_t length, const bool* hidden, bool of_sum,
    int32_t* exponents, cudaStream_t stream) {
  const int64_t blocks = ceil_div(length, kThreads);
  const Tensor parts = torch::stable::new_empty(like, {2, sizes.tasks() * blocks});
  T* sums = mutable_data<T>(parts);
  T* maxima = sums + sizes.tasks() * blocks;
  if (sizes.tasks() * blocks > 0) {
    launch_with_shared_memory(
        2 * sizeof(T) * kThreads / kWarpSize, &norm_kernel<T>, sizes.tasks() * blocks, kThreads, stream,
        {sizes, rows, length, hidden, sums, maxima});
  }
  launch(&exponent_kernel<T>, sizes.heads, kWarpSize, stream, {sizes.batch * blocks, sums, maxima, of_sum, exponents});
}

template <typename T>
void add_up(const Tensor& parts, int64_t outer, int64_t count, int64_t inner, const Tensor& to, cudaStream_t stream) {
  if (outer * inner > 0) {
    launch(
        &sum_kernel<T>, ceil_div(outer * inner, kThreads), kThreads, stream,
        {data<T>(parts), outer, count, inner, mutable_data<T>(to)});
  }
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients backward(
    Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions,
    Tensor tables, Ints shapes, Ints counts, Padding padding, double scale, Tensor output, Tensor log_sums) {
  const Prepared given(
      {query, key, value, query_positions, key_positions, counts, padding, scale}, {tables, shapes});
  const Problem& problem = given.problem;
  const Results results(grad_output, output, log_sums, query, problem);
  for (const Tensor* tensor : {&grad_output, &output, &log_sums}) {
    given.check_device(*tensor);
  }
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  const cudaStream_t stream = current_stream(query);
  const Sizes sizes = given.sizes();
  const int64_t cells = sizes.cells;
  const Tensor by_query = new_by_token(query, problem, problem.queries);
  const Tensor by_key = new_by_token(query, problem, problem.keys);
  const Tensor by_value = new_by_token(query, problem, problem.keys);
  const Tensor by_query_positions = torch::stable::new_empty(query, given.call.query_positions.sizes());
  const Tensor by_key_positions = torch::stable::new_empty(query, given.call.key_positions.sizes());
  const Tensor by_tables = torch::stable::new_empty(query, {problem.heads, cells});

  const Tensor means = torch::stable::new_empty(query, {problem.batch, problem.heads, problem.queries});
  const Tensor query_places =
      torch::stable::new_empty(query, {problem.batch, problem.heads, problem.level_count, problem.queries, 2});
  const Tensor key_places = torch::stable::new_empty(query, {problem.batch, problem.heads, problem.keys, 2});
  const int64_t words = query.scalar_type() == ScalarType::Double ? kWords<double> : kWords<float>;
  const Tensor sums = torch::stable::new_zeros(query, {problem.heads, cells, words}, ScalarType::Long);
  const Tensor marks = torch::stable::new_zeros(query, {3, problem.heads}, ScalarType::Int);
  int32_t* exponents = mutable_data<int32_t>(marks);
  int64_t key_blocks = 0;
  for (const Level& level : given.levels) {
    key_blocks += ceil_div(level.end_key - level.first_key, kKeys);
  }
  const int64_t busy = std::max<int64_t>(1, sizes.tasks() * key_blocks);
  const int64_t splits =
      std::max<int64_t>(1, std::min(kEnoughBlocks / busy, ceil_div(problem.queries, kLeastQueries)));
  const int64_t row = 2 * problem.dim + 2;
  const Tensor by_keys = torch::stable::new_empty(query, {splits, sizes.tasks(), problem.keys, row});

  with_channels(query, problem.dim, [&](auto scalar, auto channels) {
    using T = decltype(scalar);
    constexpr int kDim = decltype(channels)::value;
    const TableSums<T> table_sums{mutable_data<unsigned long long>(sums), exponents + 2 * problem.heads};
    const BackwardCall<T> call{
        given.given<T>({&results.by_output, &results.output, &by_query}),
        rows<T>(results.by_output),
        rows<T>(results.output),
        data<T>(results.log_sums),
        mutable_data<T>(means),
        mutable_rows<T>(by_query),
        mutable_data<T>(query_places),
        table_sums,
        exponents,
        static_cast<int32_t>(splits),
        static_cast<int32_t>(ceil_div(ceil_div(problem.queries, splits), kThreads) * kThreads),
        mutable_data<T>(by_keys)};
    find_exponents<T>(query, sizes, call.by_output, sizes.queries, nullptr, true, exponents, stream);
    find_exponents<T>(
        query, sizes, call.given.value, sizes.keys, call.given.hidden, false, exponents + problem.heads, stream);
    if (by_query.numel() > 0) {
      launch_with_shared_memory(
          sizeof(T) * kByQueriesNumbers<T, kDim>, &by_queries_kernel<T, kDim>,
          sizes.tasks() * ceil_div(problem.queries, kThreads), kThreads, stream, call);
    }
    if (by_key.numel() > 0) {
      launch_with_shared_memory(
          sizeof(T) * kByKeysNumbers<T, kDim>, &by_keys_kernel<T, kDim>, splits * sizes.tasks() * key_blocks, kThreads,
          stream, call);
      launch(
          &finish_keys_kernel<T>, ceil_div(sizes.tasks() * problem.keys * row, kThreads), kThreads, stream,
          {sizes, call.splits, call.by_keys, mutable_rows<T>(by_key), mutable_rows<T>(by_value),
           mutable_data<T>(key_places)});
    }
    add_up<T>(
        query_places, problem.batch, problem.heads, problem.level_count * problem.queries * 2, by_query_positions,
        stream);
    add_up<T>(
        key_places, problem.batch * problem.groups, problem.heads / problem.groups, problem.keys * 2, by_key_positions,
        stream);
    launch(
        &finish_tables_kernel<T>, ceil_div(problem.heads * cells, kThreads), kThreads, stream,
        {sizes, table_sums, exponents, mutable_data<T>(by_tables)});
  });
  return {by_query, by_key, by_value, by_query_positions, by_key_positions, by_tables};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CUDA, library) {
  library.impl("deform_kv_attention_backward", TORCH_BOX(&backward));
}

}  // namespace attnzoo::deform_kv_attn

// Attention to keys at sampled positions with a bias from tables (DAT, CVPR 2022, equation 9) on CUDA: backward.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "cuda_backward.cuh"
#include "cuda_host.cuh"

namespace attnzoo::deform_kv_attn {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kTargetBlocks = 2048;       // enough for any GPU
constexpr int64_t kMinQueriesPerSplit = 512;  // so that a split writes little compared to what it reads

// Computes the exponents of `ExponentArgs` for all heads. `like` is a tensor on the device.
template <typename S>
void norm_exponents(
    const Tensor& like, const Sizes& sizes, const StridedTensor<const S>& rows, int32_t length, const bool* masked,
    bool use_sum, int32_t* exponents, cudaStream_t stream) {
  using T = ComputeType<S>;
  const int64_t blocks = ceil_div(length, kThreads);
  const Tensor parts = torch::stable::new_empty(like, {2, sizes.tasks() * blocks});
  T* sums = mutable_data<T>(parts);
  T* maxima = sums + sizes.tasks() * blocks;
  if (sizes.tasks() * blocks > 0) {
    launch_with_shared_memory(
        2 * sizeof(T) * kThreads / kWarpSize, &norm_kernel<S>, sizes.tasks() * blocks, kThreads, stream,
        {sizes, rows, length, masked, sums, maxima});
  }
  launch(&exponent_kernel<T>, sizes.heads, kWarpSize, stream, {sizes.batch * blocks, sums, maxima, use_sum, exponents});
}

template <typename T>
void sum_parts(
    const Tensor& parts, int64_t outer, int64_t count, int64_t inner, const Tensor& to, cudaStream_t stream) {
  if (outer * inner > 0) {
    launch(
        &sum_kernel<T>, ceil_div(outer * inner, kThreads), kThreads, stream,
        {data<T>(parts), outer, count, inner, mutable_data<T>(to)});
  }
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients backward(
    Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions,
    Tensor tables, IntList table_shapes, IntList key_counts, std::optional<Tensor> key_padding, double scale,
    Tensor output, Tensor logsumexp) {
  const PreparedCall call(
      {query, key, value, query_positions, key_positions, key_counts, key_padding, scale}, {tables, table_shapes});
  const Problem& problem = call.problem;
  const BackwardArguments saved(grad_output, output, logsumexp, query, problem);
  for (const Tensor* tensor : {&grad_output, &output, &logsumexp}) {
    call.check_device(*tensor);
  }
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  const cudaStream_t stream = current_stream(query);
  const Sizes sizes = call.sizes();
  const int64_t cells = sizes.cells;
  const Tensor grad_query = new_token_major(query, problem, problem.queries);
  const Tensor grad_key = new_token_major(query, problem, problem.keys);
  const Tensor grad_value = new_token_major(query, problem, problem.keys);
  const Tensor grad_query_positions = torch::stable::new_empty(query_positions, call.arguments.query_positions.sizes());
  const Tensor grad_key_positions = torch::stable::new_empty(query_positions, call.arguments.key_positions.sizes());
  const Tensor grad_tables = torch::stable::new_empty(query_positions, {problem.heads, cells});

  const Tensor delta = torch::stable::new_empty(query_positions, {problem.batch, problem.heads, problem.queries});
  const Tensor query_position_parts =
      torch::stable::new_empty(query_positions, {problem.batch, problem.heads, problem.num_levels, problem.queries, 2});
  const Tensor key_position_parts =
      torch::stable::new_empty(query_positions, {problem.batch, problem.heads, problem.keys, 2});
  const int64_t words = query.scalar_type() == ScalarType::Double ? kWordsPerCell<double> : kWordsPerCell<float>;
  const Tensor table_sums = torch::stable::new_zeros(query, {problem.heads, cells, words}, ScalarType::Long);
  // The exponents (2, H) and then the `nonfinite` flags (H).
  const Tensor head_state = torch::stable::new_zeros(query, {3, problem.heads}, ScalarType::Int);
  int32_t* exponents = mutable_data<int32_t>(head_state);
  int64_t key_blocks = 0;
  for (const Level& level : call.levels) {
    key_blocks += ceil_div(level.end_key - level.first_key, kKeysPerBlock);
  }
  const int64_t blocks = std::max<int64_t>(1, sizes.tasks() * key_blocks);
  const int64_t splits =
      std::max<int64_t>(1, std::min(kTargetBlocks / blocks, ceil_div(problem.queries, kMinQueriesPerSplit)));
  const int64_t row = 2 * problem.head_dim + 2;
  const Tensor key_grad_parts =
      torch::stable::new_empty(query_positions, {splits, sizes.tasks(), problem.keys, row});

  dispatch_head_dim(query, problem.head_dim, [&](auto scalar, auto dim) {
    using S = decltype(scalar);
    using T = ComputeType<S>;
    constexpr int kDim = decltype(dim)::value;
    const TableGradSums<T> table_grad_sums{
        mutable_data<unsigned long long>(table_sums), exponents + 2 * problem.heads};
    const Tensor cells_of_tables = call.make_cells<T>(sizes, stream);
    const BackwardArgs<S> args{
        call.inputs<S>(cells_of_tables, {&saved.grad_output, &saved.output, &grad_query}),
        strided<S>(saved.grad_output),
        strided<S>(saved.output),
        data<T>(saved.logsumexp),
        mutable_data<T>(delta),
        mutable_strided<S>(grad_query),
        mutable_data<T>(query_position_parts),
        table_grad_sums,
        exponents,
        static_cast<int32_t>(splits),
        static_cast<int32_t>(ceil_div(ceil_div(problem.queries, splits), kThreads) * kThreads),
        mutable_data<T>(key_grad_parts)};
    norm_exponents<S>(query_positions, sizes, args.grad_output, sizes.queries, nullptr, true, exponents, stream);
    norm_exponents<S>(
        query_positions, sizes, args.inputs.value, sizes.keys, args.inputs.masked, false, exponents + problem.heads, stream);
    if (grad_query.numel() > 0) {
      launch_with_shared_memory(
          sizeof(T) * kGradQuerySharedElements<T, kDim>, &grad_query_kernel<S, kDim>,
          sizes.tasks() * ceil_div(problem.queries, kThreads), kThreads, stream, args);
    }
    if (grad_key.numel() > 0) {
      launch_with_shared_memory(
          sizeof(T) * kGradKeySharedElements<T, kDim>, &grad_key_value_kernel<S, kDim>,
          splits * sizes.tasks() * key_blocks, kThreads, stream, args);
      launch(
          &reduce_key_grads_kernel<S>, ceil_div(sizes.tasks() * problem.keys * row, kThreads), kThreads, stream,
          {sizes, args.splits, args.key_grad_parts, mutable_strided<S>(grad_key), mutable_strided<S>(grad_value),
           mutable_data<T>(key_position_parts)});
    }
    sum_parts<T>(
        query_position_parts, problem.batch, problem.heads, problem.num_levels * problem.queries * 2,
        grad_query_positions, stream);
    sum_parts<T>(
        key_position_parts, problem.batch * problem.groups, problem.heads / problem.groups, problem.keys * 2,
        grad_key_positions, stream);
    launch(
        &table_grads_kernel<T>, ceil_div(problem.heads * cells, kThreads), kThreads, stream,
        {sizes, table_grad_sums, exponents, mutable_data<T>(grad_tables)});
  });
  return {grad_query, grad_key, grad_value, grad_query_positions, grad_key_positions, grad_tables};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CUDA, library) {
  library.impl("deform_kv_attn_backward", TORCH_BOX(&backward));
}

}  // namespace attnzoo::deform_kv_attn

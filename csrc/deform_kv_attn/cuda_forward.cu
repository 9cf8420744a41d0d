// Attention to keys at sampled positions with a bias from tables (DAT, CVPR 2022, equation 9) on CUDA: forward.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda_forward.cuh"
#include "cuda_host.cuh"

namespace attnzoo::deform_kv_attn {
namespace {

std::tuple<Tensor, Tensor> forward(
    Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions, Tensor tables,
    IntList table_shapes, IntList key_counts, std::optional<Tensor> key_padding, double scale) {
  const PreparedCall call(
      {query, key, value, query_positions, key_positions, key_counts, key_padding, scale}, {tables, table_shapes});
  const Problem& problem = call.problem;
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  const Tensor output = new_token_major(query, problem, problem.queries);
  const Tensor logsumexp = torch::stable::new_empty(query_positions, {problem.batch, problem.heads, problem.queries});
  if (output.numel() > 0) {
    dispatch_head_dim(query, problem.head_dim, [&](auto scalar, auto dim) {
      using S = decltype(scalar);
      using T = ComputeType<S>;
      constexpr int kDim = decltype(dim)::value;
      const cudaStream_t stream = current_stream(query);
      const Tensor cells = call.make_cells<T>(call.sizes(), stream);
      const ForwardArgs<S> args{call.inputs<S>(cells, {&output}), mutable_strided<S>(output), mutable_data<T>(logsumexp)};
      const int64_t blocks = ceil_div(problem.queries, kThreads * kQueriesPerThread<T, kDim>);
      launch_with_shared_memory(
          sizeof(T) * kForwardSharedElements<T, kDim>, &forward_kernel<S, kDim>, args.inputs.sizes.tasks() * blocks,
          kThreads, stream, args);
    });
  }
  return {output, logsumexp};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CUDA, library) {
  library.impl("deform_kv_attn", TORCH_BOX(&forward));
}

}  // namespace attnzoo::deform_kv_attn

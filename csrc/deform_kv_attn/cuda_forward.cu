// Attention to displaced keys with a bias from tables on CUDA (see attnzoo/ops/deform_kv.py): forward.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda_forward.cuh"
#include "cuda_host.cuh"

namespace attnzoo::deform_kv_attn {
namespace {

std::tuple<Tensor, Tensor> forward(
    Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions, Tensor tables, Ints shapes,
    Ints counts, Padding padding, double scale) {
  const Prepared given(
      {query, key, value, query_positions, key_positions, counts, padding, scale}, {tables, shapes});
  const Problem& problem = given.problem;
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  const Tensor output = new_by_token(query, problem, problem.queries);
  const Tensor log_sums = torch::stable::new_empty(query, {problem.batch, problem.heads, problem.queries});
  if (output.numel() > 0) {
    with_channels(query, problem.dim, [&](auto scalar, auto channels) {
      using T = decltype(scalar);
      constexpr int kDim = decltype(channels)::value;
      const ForwardCall<T> call{given.given<T>({&output}), mutable_rows<T>(output), mutable_data<T>(log_sums)};
      const int64_t blocks = ceil_div(problem.queries, kThreads * kQueries<T, kDim>);
      launch_with_shared_memory(
          sizeof(T) * kForwardNumbers<T, kDim>, &forward_kernel<T, kDim>, call.given.sizes.tasks() * blocks, kThreads,
          current_stream(query), call);
    });
  }
  return {output, log_sums};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CUDA, library) {
  library.impl("deform_kv_attention", TORCH_BOX(&forward));
}

}  // namespace attnzoo::deform_kv_attn

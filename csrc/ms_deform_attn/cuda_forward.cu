// Multi-scale deformable attention on CUDA (Deformable DETR, arXiv:2010.04159, equation 3): forward.

#include <torch/csrc/stable/library.h>

#include "cuda_forward.cuh"
#include "cuda_host.cuh"

namespace attnzoo::ms_deform_attn {
namespace {

template <typename T, typename Samples>
void launch_forward(const Problem& problem, const Tensor& value, const Samples& samples, const Tensor& output) {
  const ForwardCall<T, Samples> call{
      sizes_of(problem), share_rows<T>(problem.queries, problem.head_dim), data<T>(value), samples, mutable_data<T>(output)};
  const auto kernel = in_whole_vectors<T>(problem.head_dim, call.value, call.output)
      ? &forward_kernel<T, true, Samples>
      : &forward_kernel<T, false, Samples>;
  launch(kernel, blocks_of(call.sizes, call.work), kThreads, current_stream(value), call);
}

// `make_samples` is called with a number of the type computed with, on the device of value.
template <typename MakeSamples>
Tensor run_forward(const Problem& problem, const Tensor& value, const MakeSamples& make_samples) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const Tensor rows = torch::stable::contiguous(value);
  const Tensor output =
      torch::stable::new_empty(value, {problem.batch, problem.queries, problem.heads * problem.head_dim});
  if (output.numel() > 0) {
    with_storage(value, "ms_deform_attn", [&](auto stored) {
      using T = decltype(stored);
      launch_forward<T>(problem, rows, make_samples(Compute<T>()), output);
    });
  }
  return output;
}

Tensor forward(Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights) {
  const Problem problem = describe(value, shapes, locations, weights);
  check_device(value, locations);
  check_device(value, weights);
  locations = torch::stable::contiguous(locations);
  weights = torch::stable::contiguous(weights);
  return run_forward(problem, value, [&](auto computed) {
    using A = decltype(computed);
    return GivenSamples<A>{data<A>(locations), data<A>(weights), nullptr, nullptr};
  });
}

Tensor forward_fused(
    Tensor value, std::vector<int64_t> shapes, Tensor references, Tensor offsets, Tensor logits) {
  const Problem problem = describe(value, shapes, offsets, logits);
  check_references(references, value, problem);
  check_device(value, references);
  check_device(value, offsets);
  check_device(value, logits);
  references = torch::stable::contiguous(references);
  offsets = torch::stable::contiguous(offsets);
  logits = torch::stable::contiguous(logits);
  return run_forward(problem, value, [&](auto computed) {
    using A = decltype(computed);
    return FusedSamples<A>{
        data<A>(references), data<A>(offsets), data<A>(logits), references.size(3) == 4, nullptr, nullptr};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CUDA, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&forward));
  library.impl("ms_deform_attn_fused", TORCH_BOX(&forward_fused));
}

}  // namespace attnzoo::ms_deform_attn

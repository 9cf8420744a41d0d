// Multi-scale deformable attention on CUDA (Deformable DETR, arXiv:2010.04159, equation 3): forward.

#include <torch/csrc/stable/library.h>

#include "cuda_forward.cuh"
#include "cuda_host.cuh"

namespace attnzoo::ms_deform_attn {
namespace {

template <typename T, typename Samples>
void launch_forward(const Problem& problem, const Tensor& value, const Samples& samples, const Tensor& output) {
  const ForwardArgs<T, Samples> args{
      make_sizes(problem),
      partition_rows(problem.queries, problem.head_dim, kVectorSize<T>),
      data<T>(value),
      samples,
      mutable_data<T>(output)};
  const auto kernel = can_vectorize(problem.head_dim, kVectorSize<T>, args.value, args.output)
      ? &forward_kernel<T, true, Samples>
      : &forward_kernel<T, false, Samples>;
  launch(kernel, num_blocks(args.sizes, args.partition), kThreads, current_stream(value), args);
}

// make_samples(scalar, weight) returns `UnfusedSamples` or `FusedSamples` in the compute type, which is the type of the
// scalar, with weights or logits in that of `weight`. It is called with the device of value as the current device.
template <typename MakeSamples>
Tensor run_forward(
    const Problem& problem, const Tensor& value, const Tensor& weights, const MakeSamples& make_samples) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const Tensor contiguous_value = torch::stable::contiguous(value);
  const Tensor output =
      torch::stable::new_empty(value, {problem.batch, problem.queries, problem.heads * problem.head_dim});
  if (output.numel() > 0) {
    dispatch_floating_and_half(value, "ms_deform_attn", [&](auto scalar) {
      using T = decltype(scalar);
      dispatch_weights<T>(weights, [&](auto weight) {
        launch_forward<T>(problem, contiguous_value, make_samples(ComputeType<T>(), weight), output);
      });
    });
  }
  return output;
}

Tensor forward(Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights) {
  const Problem problem = make_problem(value, shapes, locations, weights, {.half_weights = true});
  check_device(value, locations);
  check_device(value, weights);
  locations = torch::stable::contiguous(locations);
  weights = torch::stable::contiguous(weights);
  return run_forward(problem, value, weights, [&](auto scalar, auto weight) {
    using A = decltype(scalar);
    using W = decltype(weight);
    return UnfusedSamples<A, W>{data<A>(locations), data<W>(weights), nullptr, nullptr};
  });
}

Tensor forward_fused(
    Tensor value, std::vector<int64_t> shapes, Tensor references, Tensor offsets, Tensor logits) {
  const Problem problem = make_problem(value, shapes, offsets, logits, {.half_weights = true});
  check_references(references, value, problem);
  check_device(value, references);
  check_device(value, offsets);
  check_device(value, logits);
  references = torch::stable::contiguous(references);
  offsets = torch::stable::contiguous(offsets);
  logits = torch::stable::contiguous(logits);
  return run_forward(problem, value, logits, [&](auto scalar, auto weight) {
    using A = decltype(scalar);
    using W = decltype(weight);
    return FusedSamples<A, W>{
        data<A>(references), data<A>(offsets), data<W>(logits), references.size(3) == 4, nullptr, nullptr};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CUDA, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&forward));
  library.impl("ms_deform_attn_fused", TORCH_BOX(&forward_fused));
}

}  // namespace attnzoo::ms_deform_attn

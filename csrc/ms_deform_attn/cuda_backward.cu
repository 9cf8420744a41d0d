// Multi-scale deformable attention on CUDA (Deformable DETR, arXiv:2010.04159, equation 3): backward.
//
// The gradient by value is added up in float32 for half-precision values too, and rounded once: a pixel of a coarse
// level is read hundreds of times, more than eight or eleven bits can add. With `deterministic`, samples are sorted by
// the cell they lie in and every pixel gathers its gradient from four cells, so that nothing depends on the order in
// which threads run.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <utility>

#include "cuda_backward.cuh"
#include "cuda_fused_backward.cuh"
#include "cuda_host.cuh"

namespace attnzoo::ms_deform_attn {
namespace {

using torch::headeronly::ScalarType;

template <typename T, typename Samples>
void launch_backward(const BackwardCall<T, Samples>& call, cudaStream_t stream) {
  const auto kernel = in_whole_vectors<T>(call.sizes.head_dim, call.grad_output, call.value, call.grad_value)
      ? &backward_kernel<T, true, Samples>
      : &backward_kernel<T, false, Samples>;
  launch(kernel, blocks_of(call.sizes, call.work), kThreads, stream, call);
}

Cells number_cells(const Sizes& sizes) {
  Cells cells{};
  int64_t count = 0;
  for (int l = 0; l < sizes.num_levels; ++l) {
    cells.first[l] = checked(count, "cells per image and head");
    count += (int64_t{sizes.levels[l].height} + 1) * (int64_t{sizes.levels[l].width} + 1);
  }
  cells.per_head = checked(count, "cells per image and head");
  return cells;
}

// The keys in order, and where each stood.
std::pair<Tensor, Tensor> sort(const Tensor& keys) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  StableIValue stack[] = {from(keys), from(std::optional<bool>(true)), from(int64_t{-1}), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack, TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// Image by image, because the lists take four times the memory of the samples' weights and more to be sorted.
template <typename T, typename Samples>
Tensor backward_in_order(const BackwardCall<T, Samples>& batch, const Tensor& value) {
  using A = Compute<T>;
  const Sizes& sizes = batch.sizes;
  const Cells cells = number_cells(sizes);
  const int32_t num_cells = checked(int64_t{cells.per_head} * sizes.heads, "cells per image");
  const int32_t num_samples = checked(
      int64_t{sizes.queries} * sizes.heads * sizes.samples(), "samples per image of a deterministic backward pass");
  const Tensor cell_of_sample = torch::stable::new_empty(value, {num_samples}, ScalarType::Int);
  const Tensor starts = torch::stable::new_empty(value, {int64_t{num_cells} + 1}, ScalarType::Int);
  const Tensor contributions = torch::stable::new_empty(
      value, {num_samples, 4}, sizeof(A) == sizeof(double) ? ScalarType::Double : ScalarType::Float);
  const Tensor grad_value = torch::stable::new_empty(value, value.sizes());
  const cudaStream_t stream = current_stream(value);

  BackwardCall<T, Samples> call = batch;
  call.sizes.batch = 1;
  call.cells = cells;
  call.list = {mutable_data<int32_t>(cell_of_sample), mutable_data<Contribution<A>>(contributions)};
  GatherCall<T> gather{
      call.sizes,
      share_rows<T>(sizes.tokens, sizes.head_dim),
      cells,
      data<int32_t>(starts),
      nullptr,
      call.list.contributions,
      nullptr,
      nullptr};
  for (int64_t image = 0; image < sizes.batch; ++image) {
    call.samples = batch.samples.of_image(sizes, image);
    call.grad_output = batch.grad_output + image * sizes.queries * sizes.stride();
    call.value = batch.value + image * sizes.tokens * sizes.stride();
    launch_backward(call, stream);

    const auto [sorted, order] = sort(cell_of_sample);
    launch(
        &starts_kernel,
        divide_up(int64_t{num_cells} + 1, kThreads),
        kThreads,
        stream,
        num_cells,
        num_samples,
        data<int32_t>(sorted),
        mutable_data<int32_t>(starts));

    gather.order = data<int64_t>(order);
    gather.grad_output = call.grad_output;
    gather.grad_value = mutable_data<T>(grad_value) + image * sizes.tokens * sizes.stride();
    const auto kernel = in_whole_vectors<T>(sizes.head_dim, gather.grad_output, gather.grad_value)
        ? &gather_kernel<T, true>
        : &gather_kernel<T, false>;
    launch(kernel, blocks_of(gather.sizes, gather.work), kThreads, stream, gather);
  }
  return grad_value;
}

template <typename T, typename Samples>
Tensor backward_in_any_order(BackwardCall<T, Samples> call, const Tensor& value) {
  const bool half = sizeof(T) < sizeof(float);
  const Tensor sums = torch::stable::new_zeros(
      value, value.sizes(), half ? ScalarType::Float : value.scalar_type());
  call.grad_value = mutable_data<Compute<T>>(sums);
  launch_backward(call, current_stream(value));
  return half ? torch::stable::to(sums, value.scalar_type()) : sums;
}

// The gradient by value; those by samples go where `make_samples` says, which is called as in the forward.
template <typename MakeSamples>
Tensor run_backward(
    const Problem& problem,
    const Tensor& grad_output,
    const Tensor& value,
    bool deterministic,
    const MakeSamples& make_samples) {
  if (grad_output.numel() == 0) {
    return torch::stable::new_zeros(value, value.sizes());
  }
  const Tensor grad_rows = torch::stable::contiguous(grad_output);
  const Tensor rows = torch::stable::contiguous(value);
  Tensor grad_value = rows;
  with_storage(value, "ms_deform_attn", [&](auto stored) {
    using T = decltype(stored);
    const auto samples = make_samples(Compute<T>());
    const BackwardCall<T, std::remove_const_t<decltype(samples)>> call{
        sizes_of(problem),
        share_rows<T>(problem.queries, problem.head_dim),
        data<T>(grad_rows), data<T>(rows), samples, nullptr, {}, {}};
    grad_value = deterministic ? backward_in_order(call, rows) : backward_in_any_order(call, rows);
  });
  return grad_value;
}

std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor grad_output,
    Tensor value,
    std::vector<int64_t> shapes,
    Tensor locations,
    Tensor weights,
    bool deterministic) {
  const Problem problem = describe(value, shapes, locations, weights);
  check_grad_output(grad_output, value, problem);
  check_device(value, grad_output);
  check_device(value, locations);
  check_device(value, weights);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  locations = torch::stable::contiguous(locations);
  weights = torch::stable::contiguous(weights);
  const Tensor grad_locations = torch::stable::new_empty(locations, locations.sizes());
  const Tensor grad_weights = torch::stable::new_empty(weights, weights.sizes());
  const Tensor grad_value = run_backward(problem, grad_output, value, deterministic, [&](auto computed) {
    using A = decltype(computed);
    return GivenSamples<A>{
        data<A>(locations), data<A>(weights), mutable_data<A>(grad_locations), mutable_data<A>(grad_weights)};
  });
  return {grad_value, grad_locations, grad_weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_fused(
    Tensor grad_output,
    Tensor value,
    std::vector<int64_t> shapes,
    Tensor references,
    Tensor offsets,
    Tensor logits,
    bool deterministic) {
  const Problem problem = describe(value, shapes, offsets, logits);
  check_references(references, value, problem);
  check_grad_output(grad_output, value, problem);
  check_device(value, grad_output);
  check_device(value, references);
  check_device(value, offsets);
  check_device(value, logits);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  references = torch::stable::contiguous(references);
  offsets = torch::stable::contiguous(offsets);
  logits = torch::stable::contiguous(logits);
  const bool box = references.size(3) == 4;
  const Tensor grad_references = torch::stable::new_empty(references, references.sizes());
  const Tensor grad_offsets = torch::stable::new_empty(offsets, offsets.sizes());
  const Tensor grad_logits = torch::stable::new_empty(logits, logits.sizes());
  const Tensor grad_value = run_backward(problem, grad_output, value, deterministic, [&](auto computed) {
    using A = decltype(computed);
    return FusedSamples<A>{
        data<A>(references),
        data<A>(offsets),
        data<A>(logits),
        box,
        mutable_data<A>(grad_offsets),
        mutable_data<A>(grad_logits)};
  });
  if (grad_output.numel() > 0) {
    with_scalar(references, "ms_deform_attn", [&](auto computed) {
      using A = decltype(computed);
      const ReferencesCall<A> call{
          sizes_of(problem),
          box,
          data<A>(references),
          data<A>(offsets),
          mutable_data<A>(grad_references),
          mutable_data<A>(grad_offsets)};
      const int64_t tasks = problem.batch * problem.queries * static_cast<int64_t>(problem.levels.size());
      launch(
          &references_kernel<A>, divide_up(tasks, kThreads), kThreads, current_stream(value), call);
    });
  }
  return {grad_value, grad_references, grad_offsets, grad_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CUDA, library) {
  library.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
  library.impl("ms_deform_attn_fused_backward", TORCH_BOX(&backward_fused));
}

}  // namespace attnzoo::ms_deform_attn

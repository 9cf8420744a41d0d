// Multi-scale deformable attention on CUDA (Deformable DETR, arXiv:2010.04159, equation 3): backward.
//
// grad_value is accumulated in float32 even if value is in half precision, and rounded once. A pixel of a coarse level
// is read by hundreds of samples, too many to add in the 8 or 11 significant bits of bfloat16 or float16. With
// `deterministic`, samples are sorted by cell, and every pixel gathers its gradient from four cells. Then the result
// does not depend on the order in which threads run.

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
void launch_backward(const BackwardArgs<T, Samples>& args, cudaStream_t stream) {
  const auto kernel = can_vectorize(
                          args.sizes.head_dim, kBackwardVectorSize<T>, args.grad_output, args.value, args.grad_value)
      ? &backward_kernel<T, true, Samples>
      : &backward_kernel<T, false, Samples>;
  launch(kernel, num_blocks(args.sizes, args.partition), kThreads, stream, args);
}

CellNumbering number_cells(const Sizes& sizes) {
  CellNumbering cells{};
  int64_t count = 0;
  for (int l = 0; l < sizes.num_levels; ++l) {
    cells.level_begin[l] = checked_int32(count, "cells per image and head");
    count += (int64_t{sizes.levels[l].height} + 1) * (int64_t{sizes.levels[l].width} + 1);
  }
  cells.per_head = checked_int32(count, "cells per image and head");
  return cells;
}

// torch.sort(keys, stable=True), called through the dispatcher: the sorted keys and their indices.
std::pair<Tensor, Tensor> stable_sort(const Tensor& keys) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  StableIValue stack[] = {from(keys), from(std::optional<bool>(true)), from(int64_t{-1}), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack, TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// Processes one image at a time: the list of samples takes four times the memory of the attention weights, and sorting
// takes more.
template <typename T, typename Samples>
Tensor backward_deterministic(const BackwardArgs<T, Samples>& batch, const Tensor& value) {
  using A = ComputeType<T>;
  const Sizes& sizes = batch.sizes;
  const CellNumbering cells = number_cells(sizes);
  const int32_t num_cells = checked_int32(int64_t{cells.per_head} * sizes.heads, "cells per image");
  const int32_t num_samples = checked_int32(
      int64_t{sizes.queries} * sizes.heads * sizes.samples(), "samples per image of a deterministic backward pass");
  const Tensor cell_of_sample = torch::stable::new_empty(value, {num_samples}, ScalarType::Int);
  const Tensor cell_starts = torch::stable::new_empty(value, {int64_t{num_cells} + 1}, ScalarType::Int);
  const Tensor contributions = torch::stable::new_empty(
      value, {num_samples, 4}, sizeof(A) == sizeof(double) ? ScalarType::Double : ScalarType::Float);
  const Tensor grad_value = torch::stable::new_empty(value, value.sizes());
  const cudaStream_t stream = current_stream(value);

  BackwardArgs<T, Samples> args = batch;
  args.sizes.batch = 1;
  args.cells = cells;
  args.list = {mutable_data<int32_t>(cell_of_sample), mutable_data<Contribution<A>>(contributions)};
  GatherArgs<T> gather{
      args.sizes,
      partition_rows(sizes.tokens, sizes.head_dim, kVectorSize<T>),
      cells,
      data<int32_t>(cell_starts),
      nullptr,
      args.list.contributions,
      nullptr,
      nullptr};
  for (int64_t image = 0; image < sizes.batch; ++image) {
    args.samples = batch.samples.slice_image(sizes, image);
    args.grad_output = batch.grad_output + image * sizes.queries * sizes.token_stride();
    args.value = batch.value + image * sizes.tokens * sizes.token_stride();
    launch_backward(args, stream);

    const auto [sorted_cells, order] = stable_sort(cell_of_sample);
    launch(
        &cell_starts_kernel,
        ceil_div(int64_t{num_cells} + 1, kThreads),
        kThreads,
        stream,
        num_cells,
        num_samples,
        data<int32_t>(sorted_cells),
        mutable_data<int32_t>(cell_starts));

    gather.order = data<int64_t>(order);
    gather.grad_output = args.grad_output;
    gather.grad_value = mutable_data<T>(grad_value) + image * sizes.tokens * sizes.token_stride();
    const auto kernel = can_vectorize(sizes.head_dim, kVectorSize<T>, gather.grad_output, gather.grad_value)
        ? &gather_kernel<T, true>
        : &gather_kernel<T, false>;
    launch(kernel, num_blocks(gather.sizes, gather.partition), kThreads, stream, gather);
  }
  return grad_value;
}

template <typename T, typename Samples>
Tensor backward_atomic(BackwardArgs<T, Samples> args, const Tensor& value) {
  const bool half = sizeof(T) < sizeof(float);
  const Tensor sums = torch::stable::new_zeros(
      value, value.sizes(), half ? ScalarType::Float : value.scalar_type());
  args.grad_value = mutable_data<ComputeType<T>>(sums);
  launch_backward(args, current_stream(value));
  return half ? torch::stable::to(sums, value.scalar_type()) : sums;
}

// Returns grad_value. `make_samples` is called as in `run_forward`; what it returns also points to the tensors for the
// gradients of samples.
template <typename MakeSamples>
Tensor run_backward(
    const Problem& problem,
    const Tensor& grad_output,
    const Tensor& value,
    const Tensor& weights,
    bool deterministic,
    const MakeSamples& make_samples) {
  if (grad_output.numel() == 0) {
    return torch::stable::new_zeros(value, value.sizes());
  }
  const Tensor contiguous_grad_output = torch::stable::contiguous(grad_output);
  const Tensor contiguous_value = torch::stable::contiguous(value);
  Tensor grad_value = contiguous_value;
  dispatch_floating_and_half(value, "ms_deform_attn", [&](auto scalar) {
    using T = decltype(scalar);
    dispatch_weights<T>(weights, [&](auto weight) {
      const auto samples = make_samples(ComputeType<T>(), weight);
      const BackwardArgs<T, std::remove_const_t<decltype(samples)>> args{
          make_sizes(problem),
          partition_rows(problem.queries, problem.head_dim, kBackwardVectorSize<T>),
          data<T>(contiguous_grad_output), data<T>(contiguous_value), samples, nullptr, {}, {}};
      grad_value =
          deterministic ? backward_deterministic(args, contiguous_value) : backward_atomic(args, contiguous_value);
    });
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
  const Problem problem = make_problem(value, shapes, locations, weights, {.half_weights = true});
  check_grad_output(grad_output, value, problem);
  check_device(value, grad_output);
  check_device(value, locations);
  check_device(value, weights);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  locations = torch::stable::contiguous(locations);
  weights = torch::stable::contiguous(weights);
  const Tensor grad_locations = torch::stable::new_empty(locations, locations.sizes());
  const Tensor grad_weights = torch::stable::new_empty(weights, weights.sizes());
  const Tensor grad_value = run_backward(
      problem, grad_output, value, weights, deterministic, [&](auto scalar, auto weight) {
        using A = decltype(scalar);
        using W = decltype(weight);
        return UnfusedSamples<A, W>{
            data<A>(locations), data<W>(weights), mutable_data<A>(grad_locations), mutable_data<W>(grad_weights)};
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
  const Problem problem = make_problem(value, shapes, offsets, logits, {.half_weights = true});
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
  const Tensor grad_logits = torch::stable::new_empty(logits, logits.sizes(), offsets.scalar_type());
  const Tensor grad_value = run_backward(
      problem, grad_output, value, logits, deterministic, [&](auto scalar, auto weight) {
        using A = decltype(scalar);
        using W = decltype(weight);
        return FusedSamples<A, W>{
            data<A>(references),
            data<A>(offsets),
            data<W>(logits),
            box,
            mutable_data<A>(grad_offsets),
            mutable_data<A>(grad_logits)};
      });
  if (grad_output.numel() > 0) {
    dispatch_floating(references, "ms_deform_attn", [&](auto scalar) {
      using A = decltype(scalar);
      const ReferencesArgs<A> args{
          make_sizes(problem),
          box,
          data<A>(references),
          data<A>(offsets),
          mutable_data<A>(grad_references),
          mutable_data<A>(grad_offsets)};
      const int64_t tasks = problem.batch * problem.queries * static_cast<int64_t>(problem.levels.size());
      launch(
          &references_backward_kernel<A>, ceil_div(tasks, kThreads), kThreads, current_stream(value), args);
    });
  }
  return {grad_value, grad_references, grad_offsets, torch::stable::to(grad_logits, logits.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CUDA, library) {
  library.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
  library.impl("ms_deform_attn_fused_backward", TORCH_BOX(&backward_fused));
}

}  // namespace attnzoo::ms_deform_attn

// Multi-scale deformable attention on CUDA (Deformable DETR, arXiv:2010.04159, equation 3), float and double.
//
// One warp per query and head; its lanes are the channels, so that a corner is read in one coalesced access.

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../common/cuda.h"
#include "problem.h"

namespace attnzoo::ms_deform_attn {
namespace {

constexpr int kWarpsPerBlock = 8;
constexpr int kThreads = kWarpsPerBlock * kWarp;
constexpr int kMaxLevels = 64;  // they travel as a kernel argument

// `Problem` as a kernel argument.
struct Sizes {
  explicit Sizes(const Problem& problem)
      : batch(problem.batch),
        tokens(problem.tokens),
        heads(problem.heads),
        head_dim(problem.head_dim),
        queries(problem.queries),
        points(problem.points),
        num_levels(static_cast<int>(problem.levels.size())) {
    STD_TORCH_CHECK(num_levels <= kMaxLevels, "ms_deform_attn: CUDA takes at most 64 levels");
    std::copy(problem.levels.begin(), problem.levels.end(), levels);
  }

  int64_t batch, tokens, heads, head_dim, queries, points;
  int num_levels;
  Level levels[kMaxLevels];
};

__device__ int64_t first_warp() {
  return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
}

__device__ int64_t warps_in_grid() {
  return static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Sizes sizes, const T* value, const T* locations, const T* weights, T* output) {
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = sizes.heads * sizes.head_dim;
  const int64_t items = sizes.batch * sizes.queries * sizes.heads;
  for (int64_t item = first_warp(); item < items; item += warps_in_grid()) {
    const int64_t head = item % sizes.heads;
    const int64_t image = item / (sizes.heads * sizes.queries);
    const T* base = value + image * sizes.tokens * stride + head * sizes.head_dim;
    for (int64_t d = lane; d < sizes.head_dim; d += kWarp) {
      T sum = 0;
      int64_t sample = item * sizes.num_levels * sizes.points;
      for (int l = 0; l < sizes.num_levels; ++l) {
        const Level level = sizes.levels[l];
        for (int64_t point = 0; point < sizes.points; ++point, ++sample) {
          Footprint<T> at;
          if (!locate(locations[2 * sample], locations[2 * sample + 1], level, at)) {
            continue;
          }
          for (int k = 0; k < 4; ++k) {
            const int64_t token = at.token(k, level);
            if (token >= 0) {
              sum += weights[sample] * at.share(k) * base[token * stride + d];
            }
          }
        }
      }
      output[item * sizes.head_dim + d] = sum;
    }
  }
}

// The gradients of all samples of one query and head, by one warp.
template <typename T>
__device__ void backward_item(
    const Sizes& sizes,
    int64_t item,
    const T* grad_output,
    const T* value,
    const T* locations,
    const T* weights,
    T* grad_value,
    T* grad_locations,
    T* grad_weights) {
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = sizes.heads * sizes.head_dim;
  const int64_t image = item / (sizes.heads * sizes.queries);
  const int64_t base = image * sizes.tokens * stride + item % sizes.heads * sizes.head_dim;
  const T* grad = grad_output + item * sizes.head_dim;
  int64_t sample = item * sizes.num_levels * sizes.points;
  for (int l = 0; l < sizes.num_levels; ++l) {
    const Level level = sizes.levels[l];
    for (int64_t point = 0; point < sizes.points; ++point, ++sample) {
      Footprint<T> at;
      PointGradient<T> gradient{0, 0, 0};
      // All lanes look at the same point, so the warp does not diverge here.
      if (locate(locations[2 * sample], locations[2 * sample + 1], level, at)) {
        const T weight = weights[sample];
        T products[4] = {0, 0, 0, 0};
        for (int k = 0; k < 4; ++k) {
          const int64_t token = at.token(k, level);
          if (token >= 0) {
            const T share = weight * at.share(k);
            const int64_t row = base + token * stride;
            for (int64_t d = lane; d < sizes.head_dim; d += kWarp) {
              products[k] += grad[d] * value[row + d];
              atomicAdd(grad_value + row + d, share * grad[d]);
            }
          }
          products[k] = warp_sum(products[k]);
        }
        gradient = differentiate(at, products, weight, level);
      }
      if (lane == 0) {
        grad_weights[sample] = gradient.weight;
        grad_locations[2 * sample] = gradient.x;
        grad_locations[2 * sample + 1] = gradient.y;
      }
    }
  }
}

// With `deterministic`, one warp takes all queries of an image and head in turn: then it alone adds to that head's
// gradient, always in the same order. Otherwise each query has a warp of its own, and the order varies.
template <typename T>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    Sizes sizes,
    bool deterministic,
    const T* grad_output,
    const T* value,
    const T* locations,
    const T* weights,
    T* grad_value,
    T* grad_locations,
    T* grad_weights) {
  const int64_t in_turn = deterministic ? sizes.queries : 1;
  const int64_t tasks = sizes.batch * sizes.queries * sizes.heads / in_turn;
  for (int64_t task = first_warp(); task < tasks; task += warps_in_grid()) {
    const int64_t first = deterministic ? task / sizes.heads * sizes.queries * sizes.heads + task % sizes.heads : task;
    for (int64_t query = 0; query < in_turn; ++query) {
      backward_item(
          sizes,
          first + query * sizes.heads,
          grad_output,
          value,
          locations,
          weights,
          grad_value,
          grad_locations,
          grad_weights);
    }
  }
}

void check_device(const Tensor& value, const Tensor& other) {
  STD_TORCH_CHECK(
      other.is_cuda() && other.get_device_index() == value.get_device_index(),
      "ms_deform_attn: all tensors must be on the device of value");
}

Tensor forward(Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights) {
  const Problem problem = describe(value, shapes, locations, weights);
  check_device(value, locations);
  check_device(value, weights);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  value = torch::stable::contiguous(value);
  locations = torch::stable::contiguous(locations);
  weights = torch::stable::contiguous(weights);
  Tensor output =
      torch::stable::new_empty(value, {problem.batch, problem.queries, problem.heads * problem.head_dim});
  const int64_t items = problem.batch * problem.queries * problem.heads;
  if (items == 0) {
    return output;
  }
  with_scalar(value, "ms_deform_attn", [&](auto scalar) {
    using T = decltype(scalar);
    forward_kernel<T><<<blocks_for(items, kWarpsPerBlock), kThreads, 0, current_stream(value)>>>(
        Sizes(problem), data<T>(value), data<T>(locations), data<T>(weights), mutable_data<T>(output));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return output;
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
  grad_output = torch::stable::contiguous(grad_output);
  value = torch::stable::contiguous(value);
  locations = torch::stable::contiguous(locations);
  weights = torch::stable::contiguous(weights);
  Tensor grad_value = torch::stable::new_zeros(value, value.sizes());
  Tensor grad_locations = torch::stable::empty_like(locations);
  Tensor grad_weights = torch::stable::empty_like(weights);
  const int64_t tasks = problem.batch * problem.heads * (deterministic ? 1 : problem.queries);
  if (tasks == 0 || problem.queries == 0) {
    return {grad_value, grad_locations, grad_weights};
  }
  with_scalar(value, "ms_deform_attn", [&](auto scalar) {
    using T = decltype(scalar);
    backward_kernel<T><<<blocks_for(tasks, kWarpsPerBlock), kThreads, 0, current_stream(value)>>>(
        Sizes(problem),
        deterministic,
        data<T>(grad_output),
        data<T>(value),
        data<T>(locations),
        data<T>(weights),
        mutable_data<T>(grad_value),
        mutable_data<T>(grad_locations),
        mutable_data<T>(grad_weights));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CUDA, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&forward));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
}

}  // namespace attnzoo::ms_deform_attn

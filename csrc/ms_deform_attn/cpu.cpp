// Multi-scale deformable attention on CPU (Deformable DETR, arXiv:2010.04159, equation 3), float and double.
//
// Forward: queries are split over threads. Backward: images and heads are split over threads, so that no two threads
// add to the same gradient; the result is the same, bit for bit, for any number of threads.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../common/simd.h"
#include "problem.h"

namespace attnzoo::ms_deform_attn {
namespace {

template <typename T>
struct Inputs {
  const T* value;
  const T* locations;
  const T* weights;
};

// D is the number of channels per head where the compiler knows it, 0 where it is `Problem::head_dim`.
// `zeros` is a row of zeros, read in place of corners that are off the map.
template <typename T, int D>
ATTNZOO_INLINE void forward_query(
    const Problem& problem, const Inputs<T>& in, int64_t query, const T* zeros, T* output) {
  const int64_t channels = D ? D : problem.head_dim;
  const int64_t stride = problem.heads * channels;
  const T* image = in.value + query / problem.queries * problem.tokens * stride;
  for (int64_t head = 0; head < problem.heads; ++head) {
    const int64_t item = query * problem.heads + head;
    const T* locations = in.locations + item * problem.samples_per_head() * 2;
    const T* weights = in.weights + item * problem.samples_per_head();
    T registers[D ? D : 1] = {};
    T* sum = D ? registers : output + item * channels;
    std::fill(sum, sum + channels, T(0));
    for (const Level& level : problem.levels) {
      for (int64_t point = 0; point < problem.points; ++point, locations += 2, ++weights) {
        Footprint<T> at;
        if (!locate(locations[0], locations[1], level, at)) {
          continue;
        }
        const T* rows[4];
        T shares[4];
        for (int k = 0; k < 4; ++k) {
          const int64_t token = at.token(k, level);
          rows[k] = token < 0 ? zeros : image + token * stride + head * channels;
          shares[k] = *weights * at.share(k);
        }
#pragma omp simd
        for (int64_t d = 0; d < channels; ++d) {
          sum[d] += shares[0] * rows[0][d] + shares[1] * rows[1][d] + shares[2] * rows[2][d] + shares[3] * rows[3][d];
        }
      }
    }
    if (D) {
      std::copy(sum, sum + channels, output + item * channels);
    }
  }
}

template <typename T, int D>
void forward_queries(const Problem& problem, const Inputs<T>& in, T* output) {
  const std::vector<T> zeros(problem.head_dim, T(0));
  const int64_t work = problem.heads * problem.samples_per_head() * problem.head_dim;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, work));
  torch::stable::parallel_for(0, problem.batch * problem.queries, grain, [&](int64_t begin, int64_t end) {
    run_vectorised([&]() __attribute__((always_inline)) {
      for (int64_t query = begin; query < end; ++query) {
        forward_query<T, D>(problem, in, query, zeros.data(), output);
      }
    });
  });
}

template <typename T>
struct Gradients {
  T* value;
  T* locations;
  T* weights;
};

// `dump` is a row that takes the gradients of corners that are off the map.
template <typename T, int D>
ATTNZOO_INLINE void backward_head(
    const Problem& problem,
    const Inputs<T>& in,
    const T* grad_output,
    int64_t image,
    int64_t head,
    const T* zeros,
    T* dump,
    const Gradients<T>& out) {
  const int64_t channels = D ? D : problem.head_dim;
  const int64_t stride = problem.heads * channels;
  const int64_t base = image * problem.tokens * stride + head * channels;
  for (int64_t query = 0; query < problem.queries; ++query) {
    const int64_t item = (image * problem.queries + query) * problem.heads + head;
    const T* grad = grad_output + item * channels;
    int64_t sample = item * problem.samples_per_head();
    for (const Level& level : problem.levels) {
      for (int64_t point = 0; point < problem.points; ++point, ++sample) {
        Footprint<T> at;
        if (!locate(in.locations[2 * sample], in.locations[2 * sample + 1], level, at)) {
          out.weights[sample] = out.locations[2 * sample] = out.locations[2 * sample + 1] = T(0);
          continue;
        }
        const T weight = in.weights[sample];
        T products[4];
        for (int k = 0; k < 4; ++k) {
          const int64_t token = at.token(k, level);
          const T* row = token < 0 ? zeros : in.value + base + token * stride;
          T* grad_row = token < 0 ? dump : out.value + base + token * stride;
          const T share = weight * at.share(k);
          T product = 0;
#pragma omp simd reduction(+ : product)
          for (int64_t d = 0; d < channels; ++d) {
            product += grad[d] * row[d];
            grad_row[d] += share * grad[d];
          }
          products[k] = product;
        }
        const PointGradient<T> gradient = differentiate(at, products, weight, level);
        out.weights[sample] = gradient.weight;
        out.locations[2 * sample] = gradient.x;
        out.locations[2 * sample + 1] = gradient.y;
      }
    }
  }
}

template <typename T, int D>
void backward_heads(const Problem& problem, const Inputs<T>& in, const T* grad_output, const Gradients<T>& out) {
  const std::vector<T> zeros(problem.head_dim, T(0));
  torch::stable::parallel_for(0, problem.batch * problem.heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> dump(problem.head_dim);
    run_vectorised([&]() __attribute__((always_inline)) {
      for (int64_t task = begin; task < end; ++task) {
        backward_head<T, D>(
            problem, in, grad_output, task / problem.heads, task % problem.heads, zeros.data(), dump.data(), out);
      }
    });
  });
}

// Calls `body` with the number of channels as a constant where it is a usual one.
template <typename Body>
void with_channels(int64_t channels, const Body& body) {
  switch (channels) {
    case 8:
      return body(std::integral_constant<int, 8>());
    case 16:
      return body(std::integral_constant<int, 16>());
    case 32:
      return body(std::integral_constant<int, 32>());
    case 64:
      return body(std::integral_constant<int, 64>());
    default:
      return body(std::integral_constant<int, 0>());
  }
}

Tensor forward(Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights) {
  const Problem problem = describe(value, shapes, locations, weights);
  value = torch::stable::contiguous(value);
  locations = torch::stable::contiguous(locations);
  weights = torch::stable::contiguous(weights);
  Tensor output =
      torch::stable::new_empty(value, {problem.batch, problem.queries, problem.heads * problem.head_dim});
  with_scalar(value, "ms_deform_attn", [&](auto scalar) {
    using T = decltype(scalar);
    const Inputs<T> in{data<T>(value), data<T>(locations), data<T>(weights)};
    with_channels(problem.head_dim, [&](auto channels) {
      forward_queries<T, channels.value>(problem, in, mutable_data<T>(output));
    });
  });
  return output;
}

// The last argument asks for a deterministic result, which this one always is.
std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor grad_output, Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights, bool) {
  const Problem problem = describe(value, shapes, locations, weights);
  check_grad_output(grad_output, value, problem);
  grad_output = torch::stable::contiguous(grad_output);
  value = torch::stable::contiguous(value);
  locations = torch::stable::contiguous(locations);
  weights = torch::stable::contiguous(weights);
  Tensor grad_value = torch::stable::new_zeros(value, value.sizes());
  Tensor grad_locations = torch::stable::empty_like(locations);
  Tensor grad_weights = torch::stable::empty_like(weights);
  with_scalar(value, "ms_deform_attn", [&](auto scalar) {
    using T = decltype(scalar);
    const Inputs<T> in{data<T>(value), data<T>(locations), data<T>(weights)};
    const Gradients<T> out{mutable_data<T>(grad_value), mutable_data<T>(grad_locations), mutable_data<T>(grad_weights)};
    with_channels(problem.head_dim, [&](auto channels) {
      backward_heads<T, channels.value>(problem, in, data<T>(grad_output), out);
    });
  });
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CPU, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&forward));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
}

}  // namespace attnzoo::ms_deform_attn

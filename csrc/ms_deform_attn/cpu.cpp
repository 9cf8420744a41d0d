// Multi-scale deformable attention on CPU (Deformable DETR, arXiv:2010.04159, equation 3).
//
// Forward: threads split the queries of every head. Backward: threads split images and heads, and also levels if there
// are fewer images and heads than threads. If all heads share value, threads split the queries or, for the gradient of
// value, images and channels. No two threads add to the same gradient, so the result does not depend on the number of
// threads, bit for bit.

#include "cpu_interface.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/huge_pages.h"
#include "../common/simd_level.h"
#include "../common/workspace.h"
#include "problem.h"

namespace attnzoo::ms_deform_attn {
namespace {

constexpr int64_t kMinWorkPerThread = 262144;  // multiply-accumulates

template <typename T>
Kernels<T> choose_kernels() {
  switch (simd_level()) {
#if defined(__x86_64__)
    case SimdLevel::kAvx512:
      return avx512::kernels<T>();
    case SimdLevel::kAvx2:
      return avx2::kernels<T>();
#endif
    default:
      return baseline::kernels<T>();
  }
}

std::vector<PackedLevel> packed_levels(const Problem& problem) {
  std::vector<PackedLevel> levels;
  int64_t packed_start = 0;
  for (const Level& level : problem.levels) {
    levels.push_back({level.height, level.width, level.start, packed_start});
    packed_start = levels.back().packed_end();
  }
  return levels;
}

// In an encoder the queries are the tokens, and every query samples around its own position. Processing the rows of all
// levels together, from the top of the image to the bottom, keeps these samples in the caches. The order is empty if
// there are not as many queries as tokens.
std::vector<int64_t> locality_order(const Problem& problem) {
  std::vector<int64_t> order;
  if (problem.queries != problem.tokens) {
    return order;
  }
  struct Row {
    double center;  // 0: top of the image, 1: bottom
    int64_t start;
    int64_t width;
  };
  std::vector<Row> rows;
  for (const Level& level : problem.levels) {
    for (int64_t y = 0; y < level.height; ++y) {
      rows.push_back({(y + 0.5) / level.height, level.start + y * level.width, level.width});
    }
  }
  std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.center < b.center; });
  order.reserve(problem.queries);
  for (const Row& row : rows) {
    for (int64_t x = 0; x < row.width; ++x) {
      order.push_back(row.start + x);
    }
  }
  return order;
}

// The arrays of a `TokenLayout`.
template <typename T>
class TokenLayoutBuffer {
 public:
  // `layout_of` returns the pitch and the origin of a level.
  template <typename LayoutOf>
  TokenLayoutBuffer(const std::vector<PackedLevel>& levels, int64_t points, const LayoutOf& layout_of) {
    for (const PackedLevel& level : levels) {
      const auto [pitch, origin] = layout_of(level);
      width_.insert(width_.end(), points, static_cast<T>(level.width));
      height_.insert(height_.end(), points, static_cast<T>(level.height));
      pitch_.insert(pitch_.end(), points, static_cast<Token<T>>(pitch));
      origin_.insert(origin_.end(), points, static_cast<Token<T>>(origin));
    }
    const int64_t padded_size = width_.size() + kMaxVectorBytes / sizeof(T);
    width_.resize(padded_size);
    height_.resize(padded_size);
    pitch_.resize(padded_size);
    origin_.resize(padded_size);
  }

  TokenLayout<T> view() const {
    return {width_.data(), height_.data(), pitch_.data(), origin_.data()};
  }

 private:
  std::vector<T> width_;
  std::vector<T> height_;
  std::vector<Token<T>> pitch_;
  std::vector<Token<T>> origin_;
};

template <typename T>
using Buffer = AlignedBuffer<T, kMaxVectorBytes>;

ValueDtype value_dtype_of(const Tensor& value) {
  using torch::headeronly::ScalarType;
  switch (value.scalar_type()) {
    case ScalarType::BFloat16:
      return ValueDtype::kBFloat16;
    case ScalarType::Half:
      return ValueDtype::kHalf;
    case ScalarType::Float:
    case ScalarType::Double:
      return ValueDtype::kCompute;
    default:
      STD_TORCH_CHECK(false, "ms_deform_attn: value must be float16, bfloat16, float32 or float64");
  }
}

// The tables that `KernelArgs` points to.
template <typename T>
struct CallTables {
  explicit CallTables(const Problem& problem)
      : levels(packed_levels(problem)),
        packed_layout(
            levels,
            problem.points,
            [](const PackedLevel& level) { return std::pair(level.pitch(), level.packed_start + level.pitch() + 1); }),
        value_layout(
            levels, problem.points, [](const PackedLevel& level) { return std::pair(level.width, level.start); }),
        order(locality_order(problem)) {}

  std::vector<PackedLevel> levels;
  TokenLayoutBuffer<T> packed_layout;
  TokenLayoutBuffer<T> value_layout;
  std::vector<int64_t> order;
};

// The tensors of one call, checked and made contiguous. `value` is not copied if the channels of each token are
// contiguous. The fused operator passes offsets and logits for locations and weights.
struct Arguments {
  Arguments(
      const Tensor& input_value,
      const std::vector<int64_t>& shapes,
      const Tensor& input_locations,
      const Tensor& input_weights,
      std::optional<Tensor> input_references)
      : problem(make_problem(input_value, shapes, input_locations, input_weights, {.shared_value = true})),
        value(
            input_value.stride(3) == 1 || problem.head_dim == 1 ? input_value : torch::stable::contiguous(input_value)),
        locations(torch::stable::contiguous(input_locations)),
        weights(torch::stable::contiguous(input_weights)) {
    if (input_references) {
      check_references(*input_references, value, problem);
      references = torch::stable::contiguous(*input_references);
    }
  }

  template <typename T>
  KernelArgs<T> kernel_args(const CallTables<T>& tables) const {
    STD_TORCH_CHECK(
        tables.levels.back().packed_end() <= std::numeric_limits<Token<T>>::max(), "ms_deform_attn: too many tokens");
    for (const PackedLevel& level : tables.levels) {
      STD_TORCH_CHECK(
          std::max(level.height, level.width) <= int64_t{1} << std::numeric_limits<T>::digits,
          "ms_deform_attn: a level is too large for coordinates of this dtype");
    }
    KernelArgs<T> args{};
    args.tokens = problem.tokens;
    args.heads = problem.heads;
    args.value_heads = value.size(2);
    args.head_dim = problem.head_dim;
    args.queries = problem.queries;
    args.points = problem.points;
    args.num_levels = static_cast<int64_t>(problem.levels.size());
    args.levels = tables.levels.data();
    args.packed_layout = tables.packed_layout.view();
    args.value_layout = tables.value_layout.view();
    args.order = tables.order.empty() ? nullptr : tables.order.data();
    args.value_dtype = value_dtype_of(value);
    args.value = value.const_data_ptr();
    for (int64_t i = 0; i < 3; ++i) {
      args.value_strides[i] = value.stride(i);
    }
    if (args.shares_value()) {
      STD_TORCH_CHECK(
          args.whole_vectors_per_token(), "ms_deform_attn: the channels of a shared value must be a multiple of 4");
      args.value_strides[2] = 0;
    }
    args.locations = data<T>(locations);
    args.weights = data<T>(weights);
    if (references) {
      args.references = data<T>(*references);
      args.reference_size = references->size(3);
    }
    return args;
  }

  Problem problem;
  Tensor value;
  Tensor locations;
  Tensor weights;
  std::optional<Tensor> references;
};

Tensor run_forward(const Arguments& arguments) {
  const Problem& problem = arguments.problem;
  Tensor output = with_huge_pages(
      torch::stable::new_empty(arguments.value, {problem.batch, problem.queries, problem.heads * problem.head_dim}));
  if (output.numel() == 0) {
    return output;
  }
  dispatch_floating(arguments.locations, "ms_deform_attn", [&](auto scalar) {
    using T = decltype(scalar);
    const CallTables<T> tables(problem);
    KernelArgs<T> args = arguments.kernel_args(tables);
    args.output = output.mutable_data_ptr();
    const Kernels<T> kernels = choose_kernels<T>();
    const int64_t heads = problem.batch * problem.heads;
    const int64_t work_per_query = args.samples() * args.head_dim;
    const auto grain_size = [](int64_t work_per_index) {
      return std::max<int64_t>(1, kMinWorkPerThread / std::max<int64_t>(1, work_per_index));
    };
    const auto forward = [&](int64_t begin, int64_t end) {
      torch::stable::parallel_for(begin, end, grain_size(work_per_query), [&](int64_t first, int64_t last) {
        const Buffer<T> scratch(workspace_size(args));
        kernels.forward(args, first, last, scratch.data);
      });
    };
    if (args.shares_value()) {
      const int64_t grain = grain_size(problem.heads * work_per_query);
      torch::stable::parallel_for(0, problem.batch * problem.queries, grain, [&](int64_t begin, int64_t end) {
        const Buffer<T> scratch(workspace_size(args));
        kernels.forward_shared(args, begin, end, scratch.data);
      });
      return;
    }
    if (!args.forward_is_packed()) {
      forward(0, heads * problem.queries);
      return;
    }
    // Pack enough heads at a time to give work to all threads: a single one if it is large.
    const int64_t packed_size = args.packed_size(0, args.num_levels, 1);
    const int64_t work_per_head = std::max(problem.queries * work_per_query, packed_size);
    const int64_t heads_per_pass =
        std::clamp<int64_t>(torch::stable::get_num_threads() * kMinWorkPerThread / work_per_head, 1, heads);
    const Buffer<T> packed_heads(heads_per_pass * packed_size);
    args.packed_heads = packed_heads.data;
    const int64_t rows = args.pixel_rows(0, args.num_levels);
    for (args.first_head = 0; args.first_head < heads; args.first_head += heads_per_pass) {
      const int64_t last_head = std::min(heads, args.first_head + heads_per_pass);
      torch::stable::parallel_for(
          0, (last_head - args.first_head) * rows, grain_size(problem.tokens / rows * args.head_dim),
          [&](int64_t begin, int64_t end) { kernels.pack(args, begin, end); });
      forward(args.first_head * problem.queries, last_head * problem.queries);
    }
  });
  return output;
}

// The gradients of `Arguments`.
struct Gradients {
  explicit Gradients(const Arguments& arguments)
      : value(with_huge_pages(torch::stable::new_empty(arguments.value, arguments.value.sizes()))),
        locations(with_huge_pages(torch::stable::empty_like(arguments.locations))),
        weights(with_huge_pages(torch::stable::empty_like(arguments.weights))) {
    if (arguments.references) {
      references = torch::stable::empty_like(*arguments.references);
    }
  }

  Tensor value;
  Tensor locations;
  Tensor weights;
  std::optional<Tensor> references;
};

// Elements of the largest packed head that a task of the backward pass needs.
template <typename T>
int64_t max_backward_packed_size(const KernelArgs<T>& args) {
  const int64_t levels = args.num_levels / args.level_groups;
  int64_t size = 0;
  for (int64_t first = 0; first < args.num_levels; first += levels) {
    size = std::max(size, args.packed_size(first, first + levels, 2));
  }
  return size;
}

void zero_fill(void* memory, int64_t bytes) {
  torch::stable::parallel_for(0, bytes, kMinWorkPerThread, [&](int64_t begin, int64_t end) {
    std::memset(static_cast<char*>(memory) + begin, 0, end - begin);
  });
}

template <typename T>
void run_backward_by_head(const KernelArgs<T>& args, int64_t heads, const Kernels<T>& kernels) {
  const int64_t packed_size = args.backward_is_packed() ? max_backward_packed_size(args) : 0;
  const int64_t scratch_size = workspace_size(args) + packed_size;
  torch::stable::parallel_for(0, heads * args.level_groups, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(scratch_size);
    kernels.backward(args, begin, end, scratch.data);
  });
}

template <typename T>
void run_shared_backward(KernelArgs<T>& args, const Problem& problem, const Kernels<T>& kernels) {
  STD_TORCH_CHECK(
      args.value_dtype == ValueDtype::kCompute,
      "ms_deform_attn_backward: a value shared by all heads must be float32 or float64");
  const int64_t work_per_query = std::max<int64_t>(1, problem.heads * args.samples() * args.head_dim);
  const int64_t grain_size = std::max<int64_t>(1, kMinWorkPerThread / work_per_query);
  torch::stable::parallel_for(0, problem.batch * problem.queries, grain_size, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(workspace_size(args));
    kernels.backward_shared(args, begin, end, scratch.data);
  });
  const int64_t threads = torch::stable::get_num_threads();
  args.channel_groups =
      std::clamp<int64_t>((threads + problem.batch - 1) / problem.batch, 1, std::max<int64_t>(1, args.head_dim / 16));
  torch::stable::parallel_for(0, problem.batch * args.channel_groups, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(workspace_size(args));
    kernels.add_shared_gradients(args, begin, end, scratch.data);
  });
}

Gradients run_backward(const Tensor& input_grad_output, const Arguments& arguments) {
  const Problem& problem = arguments.problem;
  check_grad_output(input_grad_output, arguments.value, problem);
  const Tensor grad_output = torch::stable::contiguous(input_grad_output);
  Gradients grads(arguments);
  dispatch_floating(arguments.locations, "ms_deform_attn_backward", [&](auto scalar) {
    using T = decltype(scalar);
    const CallTables<T> tables(problem);
    KernelArgs<T> args = arguments.kernel_args(tables);
    args.grad_output = grad_output.const_data_ptr();
    args.grad_value = grads.value.mutable_data_ptr();
    args.grad_locations = mutable_data<T>(grads.locations);
    args.grad_weights = mutable_data<T>(grads.weights);
    const int64_t heads = problem.batch * problem.heads;
    args.level_groups = heads < torch::stable::get_num_threads() ? args.num_levels : 1;
    const Kernels<T> kernels = choose_kernels<T>();
    if (!args.backward_is_packed() || args.shares_value()) {
      zero_fill(args.grad_value, problem.batch * problem.tokens * args.grad_token_stride() * sizeof(T));
    }
    if (args.shares_value()) {
      run_shared_backward(args, problem, kernels);
    } else {
      run_backward_by_head(args, heads, kernels);
    }
    if (grads.references) {
      args.grad_references = mutable_data<T>(*grads.references);
      const int64_t grain_size = std::max<int64_t>(1, kMinWorkPerThread / (64 * problem.heads * args.samples()));
      torch::stable::parallel_for(0, problem.batch * problem.queries, grain_size, [&](int64_t begin, int64_t end) {
        const Buffer<T> scratch(workspace_size(args));
        kernels.fused_backward(args, begin, end, scratch.data);
      });
    }
  });
  return grads;
}

Tensor forward(Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights) {
  return run_forward(Arguments(value, shapes, locations, weights, std::nullopt));
}

Tensor forward_fused(Tensor value, std::vector<int64_t> shapes, Tensor references, Tensor offsets, Tensor logits) {
  return run_forward(Arguments(value, shapes, offsets, logits, references));
}

// The last argument is `deterministic`; on CPU, the result always is.
std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor grad_output, Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights, bool) {
  const Gradients grads = run_backward(grad_output, Arguments(value, shapes, locations, weights, std::nullopt));
  return {grads.value, grads.locations, grads.weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_fused(
    Tensor grad_output,
    Tensor value,
    std::vector<int64_t> shapes,
    Tensor references,
    Tensor offsets,
    Tensor logits,
    bool) {
  const Gradients grads = run_backward(grad_output, Arguments(value, shapes, offsets, logits, references));
  return {grads.value, *grads.references, grads.locations, grads.weights};
}

void release_workspace() {
  WorkspaceCache::instance().release();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CompositeExplicitAutograd, library) {
  library.impl("release_workspace", TORCH_BOX(&release_workspace));
}

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CPU, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&forward));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
  library.impl("ms_deform_attn_fused", TORCH_BOX(&forward_fused));
  library.impl("ms_deform_attn_fused_backward", TORCH_BOX(&backward_fused));
}

}  // namespace attnzoo::ms_deform_attn

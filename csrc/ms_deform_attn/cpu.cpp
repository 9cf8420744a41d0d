// Multi-scale deformable attention on CPU (Deformable DETR, arXiv:2010.04159, equation 3).
//
// Forward: the queries are split over threads; those of a head share its map. Backward: images, heads and, where these
// are fewer than the threads, levels are split over threads, so that no two threads add to the same gradient; the
// result is the same, bit for bit, for any number of threads.

#include "cpu_interface.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/huge_pages.h"
#include "../common/simd_level.h"
#include "problem.h"

namespace attnzoo::ms_deform_attn {
namespace {

constexpr int64_t kWorthAThread = 262144;  // multiply-accumulates

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

std::vector<MapLevel> map_levels(const Problem& problem) {
  std::vector<MapLevel> levels;
  int64_t first = 0;
  for (const Level& level : problem.levels) {
    levels.push_back({level.height, level.width, level.start, first});
    first = levels.back().end();
  }
  return levels;
}

// An encoder's queries are the tokens themselves and look around their own place: taking the rows of all levels from
// top to bottom of the image keeps what they read in the caches. Empty where the queries are not as many as the tokens.
std::vector<int64_t> locality_order(const Problem& problem) {
  std::vector<int64_t> order;
  if (problem.queries != problem.tokens) {
    return order;
  }
  struct Row {
    double center;  // from 0 at the top of the image to 1
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

// `SampleLevels` and the memory that it points to.
template <typename T>
class SampleLevelTable {
 public:
  // `describe_level` gives the pitch and the origin of a level.
  template <typename DescribeLevel>
  SampleLevelTable(const std::vector<MapLevel>& levels, int64_t points, const DescribeLevel& describe_level) {
    for (const MapLevel& level : levels) {
      const auto [pitch, origin] = describe_level(level);
      width_.insert(width_.end(), points, static_cast<T>(level.width));
      height_.insert(height_.end(), points, static_cast<T>(level.height));
      pitch_.insert(pitch_.end(), points, static_cast<Token<T>>(pitch));
      origin_.insert(origin_.end(), points, static_cast<Token<T>>(origin));
    }
    const int64_t readable = width_.size() + kVectorBytes / sizeof(T);
    width_.resize(readable);
    height_.resize(readable);
    pitch_.resize(readable);
    origin_.resize(readable);
  }

  SampleLevels<T> view() const {
    return {width_.data(), height_.data(), pitch_.data(), origin_.data()};
  }

 private:
  std::vector<T> width_;
  std::vector<T> height_;
  std::vector<Token<T>> pitch_;
  std::vector<Token<T>> origin_;
};

// Memory aligned to vectors and not touched before it is used.
template <typename T>
struct Scratch {
  explicit Scratch(int64_t size) : memory(new (std::align_val_t(kVectorBytes)) T[size]) {}
  ~Scratch() {
    ::operator delete[](memory, std::align_val_t(kVectorBytes));
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* memory;
};

Storage storage_of(const Tensor& value) {
  using torch::headeronly::ScalarType;
  switch (value.scalar_type()) {
    case ScalarType::BFloat16:
      return Storage::kBFloat16;
    case ScalarType::Half:
      return Storage::kHalf;
    case ScalarType::Float:
    case ScalarType::Double:
      return Storage::kFull;
    default:
      STD_TORCH_CHECK(false, "ms_deform_attn: value must be float16, bfloat16, float32 or float64");
  }
}

// What `Call` points to.
template <typename T>
struct Tables {
  explicit Tables(const Problem& problem)
      : levels(map_levels(problem)),
        in_map(
            levels,
            problem.points,
            [](const MapLevel& level) { return std::pair(level.pitch(), level.first + level.pitch() + 1); }),
        in_value(levels, problem.points, [](const MapLevel& level) { return std::pair(level.width, level.start); }),
        order(locality_order(problem)) {}

  std::vector<MapLevel> levels;
  SampleLevelTable<T> in_map;
  SampleLevelTable<T> in_value;
  std::vector<int64_t> order;
};

// All arguments, in contiguous memory but for value, of which no copy is made if the channels of its tokens lie
// together. The fused form's offsets and logits stand for locations and weights.
struct Arguments {
  Arguments(
      const Tensor& given_value,
      const std::vector<int64_t>& shapes,
      const Tensor& given_places,
      const Tensor& given_scores,
      std::optional<Tensor> given_references)
      : problem(describe(given_value, shapes, given_places, given_scores)),
        value(
            given_value.stride(3) == 1 || problem.head_dim == 1 ? given_value : torch::stable::contiguous(given_value)),
        places(torch::stable::contiguous(given_places)),
        scores(torch::stable::contiguous(given_scores)) {
    if (given_references) {
      check_references(*given_references, value, problem);
      references = torch::stable::contiguous(*given_references);
    }
  }

  template <typename T>
  Call<T> call(const Tables<T>& tables) const {
    STD_TORCH_CHECK(
        tables.levels.back().end() <= std::numeric_limits<Token<T>>::max(), "ms_deform_attn: too many tokens");
    for (const MapLevel& level : tables.levels) {
      STD_TORCH_CHECK(
          std::max(level.height, level.width) <= int64_t{1} << std::numeric_limits<T>::digits,
          "ms_deform_attn: a level has sides that numbers of this type cannot count");
    }
    Call<T> call{};
    call.tokens = problem.tokens;
    call.heads = problem.heads;
    call.head_dim = problem.head_dim;
    call.queries = problem.queries;
    call.points = problem.points;
    call.num_levels = static_cast<int64_t>(problem.levels.size());
    call.levels = tables.levels.data();
    call.in_map = tables.in_map.view();
    call.in_value = tables.in_value.view();
    call.order = tables.order.empty() ? nullptr : tables.order.data();
    call.storage = storage_of(value);
    call.value = value.const_data_ptr();
    for (int64_t i = 0; i < 3; ++i) {
      call.value_strides[i] = value.stride(i);
    }
    call.places = data<T>(places);
    call.scores = data<T>(scores);
    if (references) {
      call.references = data<T>(*references);
      call.reference_size = references->size(3);
    }
    return call;
  }

  Problem problem;
  Tensor value;
  Tensor places;
  Tensor scores;
  std::optional<Tensor> references;
};

Tensor run_forward(const Arguments& given) {
  const Problem& problem = given.problem;
  Tensor output = with_huge_pages(
      torch::stable::new_empty(given.value, {problem.batch, problem.queries, problem.heads * problem.head_dim}));
  if (output.numel() == 0) {
    return output;
  }
  with_scalar(given.places, "ms_deform_attn", [&](auto scalar) {
    using T = decltype(scalar);
    const Tables<T> tables(problem);
    Call<T> call = given.call(tables);
    call.output = output.mutable_data_ptr();
    const Kernels<T> kernels = choose_kernels<T>();
    const int64_t heads = problem.batch * problem.heads;
    const int64_t work_of_query = call.samples() * call.head_dim;
    const auto grain = [](int64_t work) { return std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, work)); };
    const auto forward = [&](int64_t begin, int64_t end) {
      torch::stable::parallel_for(begin, end, grain(work_of_query), [&](int64_t first, int64_t last) {
        const Scratch<T> scratch(workspace_size(call));
        kernels.forward(call, first, last, scratch.memory);
      });
    };
    if (!call.forward_in_map()) {
      forward(0, heads * problem.queries);
      return;
    }
    // As many heads at once as are work enough for all threads: one large head, however many threads there are.
    const int64_t map_size = call.map_size(0, call.num_levels, 1);
    const int64_t work_of_head = std::max(problem.queries * work_of_query, map_size);
    const int64_t together =
        std::clamp<int64_t>(torch::stable::get_num_threads() * kWorthAThread / work_of_head, 1, heads);
    const Scratch<T> maps(together * map_size);
    call.maps = maps.memory;
    const int64_t rows = call.rows(0, call.num_levels);
    for (call.first_head = 0; call.first_head < heads; call.first_head += together) {
      const int64_t last_head = std::min(heads, call.first_head + together);
      torch::stable::parallel_for(
          0, (last_head - call.first_head) * rows, grain(problem.tokens / rows * call.head_dim),
          [&](int64_t begin, int64_t end) { kernels.fill(call, begin, end); });
      forward(call.first_head * problem.queries, last_head * problem.queries);
    }
  });
  return output;
}

struct Gradients {
  explicit Gradients(const Arguments& given)
      : value(with_huge_pages(torch::stable::new_empty(given.value, given.value.sizes()))),
        places(with_huge_pages(torch::stable::empty_like(given.places))),
        scores(with_huge_pages(torch::stable::empty_like(given.scores))) {
    if (given.references) {
      references = torch::stable::empty_like(*given.references);
    }
  }

  Tensor value;
  Tensor places;
  Tensor scores;
  std::optional<Tensor> references;
};

// Numbers in the largest map that a task of the backward pass needs.
template <typename T>
int64_t backward_map_size(const Call<T>& call) {
  const int64_t levels = call.num_levels / call.level_groups;
  int64_t size = 0;
  for (int64_t first = 0; first < call.num_levels; first += levels) {
    size = std::max(size, call.map_size(first, first + levels, 2));
  }
  return size;
}

void clear(void* memory, int64_t bytes) {
  torch::stable::parallel_for(0, bytes, kWorthAThread, [&](int64_t begin, int64_t end) {
    std::memset(static_cast<char*>(memory) + begin, 0, end - begin);
  });
}

Gradients run_backward(const Tensor& given_grad_output, const Arguments& given) {
  const Problem& problem = given.problem;
  check_grad_output(given_grad_output, given.value, problem);
  const Tensor grad_output = torch::stable::contiguous(given_grad_output);
  Gradients gradients(given);
  with_scalar(given.places, "ms_deform_attn_backward", [&](auto scalar) {
    using T = decltype(scalar);
    const Tables<T> tables(problem);
    Call<T> call = given.call(tables);
    call.grad_output = grad_output.const_data_ptr();
    call.grad_value = gradients.value.mutable_data_ptr();
    call.grad_places = mutable_data<T>(gradients.places);
    call.grad_scores = mutable_data<T>(gradients.scores);
    const int64_t heads = problem.batch * problem.heads;
    call.level_groups = heads < torch::stable::get_num_threads() ? call.num_levels : 1;
    const Kernels<T> kernels = choose_kernels<T>();
    if (!call.backward_in_map()) {
      clear(call.grad_value, problem.batch * problem.tokens * problem.heads * problem.head_dim * sizeof(T));
    }
    const int64_t scratch_size = workspace_size(call) + (call.backward_in_map() ? backward_map_size(call) : 0);
    torch::stable::parallel_for(0, heads * call.level_groups, 1, [&](int64_t begin, int64_t end) {
      const Scratch<T> scratch(scratch_size);
      kernels.backward(call, begin, end, scratch.memory);
    });
    if (gradients.references) {
      call.grad_references = mutable_data<T>(*gradients.references);
      const int64_t grain = std::max<int64_t>(1, kWorthAThread / (64 * problem.heads * call.samples()));
      torch::stable::parallel_for(0, problem.batch * problem.queries, grain, [&](int64_t begin, int64_t end) {
        const Scratch<T> scratch(workspace_size(call));
        kernels.finish(call, begin, end, scratch.memory);
      });
    }
  });
  return gradients;
}

Tensor forward(Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights) {
  return run_forward(Arguments(value, shapes, locations, weights, std::nullopt));
}

Tensor forward_fused(Tensor value, std::vector<int64_t> shapes, Tensor references, Tensor offsets, Tensor logits) {
  return run_forward(Arguments(value, shapes, offsets, logits, references));
}

// The last argument asks for a deterministic result, which this one always is.
std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor grad_output, Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights, bool) {
  const Gradients by = run_backward(grad_output, Arguments(value, shapes, locations, weights, std::nullopt));
  return {by.value, by.places, by.scores};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_fused(
    Tensor grad_output,
    Tensor value,
    std::vector<int64_t> shapes,
    Tensor references,
    Tensor offsets,
    Tensor logits,
    bool) {
  const Gradients by = run_backward(grad_output, Arguments(value, shapes, offsets, logits, references));
  return {by.value, *by.references, by.places, by.scores};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CPU, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&forward));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
  library.impl("ms_deform_attn_fused", TORCH_BOX(&forward_fused));
  library.impl("ms_deform_attn_fused_backward", TORCH_BOX(&backward_fused));
}

}  // namespace attnzoo::ms_deform_attn

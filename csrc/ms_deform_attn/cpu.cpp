// Multi-scale deformable attention on CPU (Deformable DETR, arXiv:2010.04159, equation 3).
//
// Forward: queries are split over threads. Backward: images, heads and, where these are fewer than the threads, levels
// are split over threads, so that no two threads add to the same gradient; the result is the same, bit for bit, for
// any number of threads.

#include "cpu.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "../common/simd_level.h"
#include "problem.h"

namespace attnzoo::ms_deform_attn {
namespace {

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

// Memory for one thread, aligned to vectors and not touched before it is used.
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

Storage storage_of(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::BFloat16:
      return Storage::kBFloat16;
    case ScalarType::Half:
      return Storage::kHalf;
    default:
      return Storage::kFull;
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
        in_value(levels, problem.points, [](const MapLevel& level) { return std::pair(level.width, level.start); }) {}

  std::vector<MapLevel> levels;
  SampleLevelTable<T> in_map;
  SampleLevelTable<T> in_value;
};

template <typename T>
Call<T> describe_call(
    const Problem& problem,
    const Tables<T>& tables,
    const Tensor& value,
    const Tensor& locations,
    const Tensor& weights) {
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
  call.storage = storage_of(value);
  call.value = value.const_data_ptr();
  call.locations = data<T>(locations);
  call.weights = data<T>(weights);
  return call;
}

Tensor forward(Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights) {
  const Problem problem = describe(value, shapes, locations, weights);
  value = torch::stable::contiguous(value);
  locations = torch::stable::contiguous(locations);
  weights = torch::stable::contiguous(weights);
  Tensor output =
      torch::stable::new_empty(value, {problem.batch, problem.queries, problem.heads * problem.head_dim});
  with_scalar(locations, "ms_deform_attn", [&](auto scalar) {
    using T = decltype(scalar);
    const Tables<T> tables(problem);
    Call<T> call = describe_call<T>(problem, tables, value, locations, weights);
    call.output = output.mutable_data_ptr();
    const Kernels<T> kernels = choose_kernels<T>();
    const int64_t scratch_size = workspace_size(call) + call.map_size(0, call.num_levels, 1);
    const int64_t work = std::max<int64_t>(1, call.samples() * call.head_dim);
    const int64_t grain = std::max<int64_t>(1, 262144 / work);
    torch::stable::parallel_for(
        0, problem.batch * problem.heads * problem.queries, grain, [&](int64_t begin, int64_t end) {
          const Scratch<T> scratch(scratch_size);
          kernels.forward(call, begin, end, scratch.memory);
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
  Tensor grad_value = torch::stable::empty_like(value);
  Tensor grad_locations = torch::stable::empty_like(locations);
  Tensor grad_weights = torch::stable::empty_like(weights);
  with_scalar(locations, "ms_deform_attn", [&](auto scalar) {
    using T = decltype(scalar);
    const Tables<T> tables(problem);
    Call<T> call = describe_call<T>(problem, tables, value, locations, weights);
    call.grad_output = grad_output.const_data_ptr();
    call.grad_value = grad_value.mutable_data_ptr();
    call.grad_locations = mutable_data<T>(grad_locations);
    call.grad_weights = mutable_data<T>(grad_weights);
    const int64_t heads = problem.batch * problem.heads;
    call.level_groups = heads < torch::stable::get_num_threads() ? call.num_levels : 1;
    const int64_t levels = call.num_levels / call.level_groups;
    int64_t map_size = 0;
    for (int64_t first = 0; first < call.num_levels; first += levels) {
      map_size = std::max(map_size, call.map_size(first, first + levels, 2));
    }
    const Kernels<T> kernels = choose_kernels<T>();
    torch::stable::parallel_for(0, heads * call.level_groups, 1, [&](int64_t begin, int64_t end) {
      const Scratch<T> scratch(workspace_size(call) + map_size);
      kernels.backward(call, begin, end, scratch.memory);
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

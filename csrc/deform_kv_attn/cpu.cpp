// Attention to displaced keys with an interpolated bias on CPU, float and double: see attnzoo/ops/deform_kv.py.
//
// Forward: blocks of queries are split over threads. Backward: images and heads are split over threads, and what they
// share is added up in a fixed order, so that the result is the same, bit for bit, for any number of threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/tensor.h"
#include "problem.h"

namespace attnzoo::deform_kv_attn {

#if defined(__x86_64__)
namespace avx512 {
template <typename T>
Kernels<T> kernels();
}
namespace avx2 {
template <typename T>
Kernels<T> kernels();
}
#endif
namespace baseline {
template <typename T>
Kernels<T> kernels();
}

namespace {

template <typename T>
Kernels<T> kernels_of_this_machine() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw")) {
    return avx512::kernels<T>();
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2::kernels<T>();
  }
#endif
  return baseline::kernels<T>();
}

// The arguments of the operator.
struct Call {
  Tensor query;
  Tensor key;
  Tensor value;
  Tensor query_positions;
  Tensor key_positions;
  Tensor tables;
  std::vector<int64_t> table_shapes;
  std::vector<int64_t> key_counts;
  std::optional<Tensor> key_padding;
  double scale;
};

void check(bool holds, const char* what) {
  STD_TORCH_CHECK(holds, "deform_kv_attention: ", what);
}

bool has_sizes(const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  return tensor.dim() == static_cast<int64_t>(sizes.size()) &&
         std::equal(sizes.begin(), sizes.end(), tensor.sizes().begin());
}

std::vector<Level> levels_of(const Call& call) {
  check(call.table_shapes.size() == 2 * call.key_counts.size(), "table_shapes and key_counts differ in levels");
  std::vector<Level> levels;
  Level next{};
  for (size_t i = 0; i < call.key_counts.size(); ++i) {
    next.height = call.table_shapes[2 * i];
    next.width = call.table_shapes[2 * i + 1];
    next.first_key = next.end_key;
    next.end_key += call.key_counts[i];
    check(next.height > 0 && next.width > 0 && call.key_counts[i] >= 0, "table_shapes and key_counts must be positive");
    levels.push_back(next);
    next.cells += next.height * next.width;
    next.framed_cells += next.framed_height() * next.framed_width();
  }
  check(!levels.empty(), "at least one level is needed");
  return levels;
}

// The Python face explains wrong arguments; these checks keep memory safe whoever calls.
Problem describe(const Call& call, const std::vector<Level>& levels) {
  check(call.query.dim() == 4 && call.key.dim() == 4 && call.key_positions.dim() == 4, "wrong dimensions");
  const Level& last = levels.back();
  Problem problem{};
  problem.batch = call.query.size(0);
  problem.heads = call.query.size(1);
  problem.groups = call.key_positions.size(1);
  problem.queries = call.query.size(2);
  problem.keys = call.key.size(2);
  problem.dim = call.query.size(3);
  problem.cells = last.cells + last.height * last.width;
  problem.framed_cells = last.framed_cells + last.framed_height() * last.framed_width();
  problem.scale = call.scale;
  problem.levels = levels.data();
  problem.level_count = static_cast<int64_t>(levels.size());
  const Problem& p = problem;
  check(p.groups > 0 && p.heads % p.groups == 0 && p.dim > 0, "key_positions does not fit the heads");
  check(p.framed_cells < (int64_t{1} << 31), "tables are too large");
  check(last.end_key == p.keys, "key_counts do not add up to the keys");
  check(
      has_sizes(call.key, {p.batch, p.heads, p.keys, p.dim}) && has_sizes(call.value, {p.batch, p.heads, p.keys, p.dim}) &&
          has_sizes(call.query_positions, {p.batch, p.level_count, p.queries, 2}) &&
          has_sizes(call.key_positions, {p.batch, p.groups, p.keys, 2}) && has_sizes(call.tables, {p.heads, p.cells}),
      "the tensors differ in size");
  for (const Tensor* tensor : {&call.key, &call.value, &call.query_positions, &call.key_positions, &call.tables}) {
    check(tensor->scalar_type() == call.query.scalar_type(), "the tensors differ in dtype");
  }
  if (call.key_padding) {
    check(
        has_sizes(*call.key_padding, {p.batch, p.keys}) &&
            call.key_padding->scalar_type() == torch::headeronly::ScalarType::Bool,
        "key_padding does not fit the keys");
  }
  return problem;
}

// Per image, its keys that are seen.
std::vector<std::vector<Run>> runs_of(const Call& call, const Problem& problem) {
  const bool* hidden = call.key_padding ? data<bool>(*call.key_padding) : nullptr;
  std::vector<std::vector<Run>> runs(problem.batch);
  for (int64_t image = 0; image < problem.batch; ++image) {
    for (int64_t level = 0; level < problem.level_count; ++level) {
      const int64_t end = problem.levels[level].end_key;
      for (int64_t key = problem.levels[level].first_key; key < end;) {
        int64_t stop = hidden ? key : end;
        for (; stop < end && !hidden[image * problem.keys + stop]; ++stop) {
        }
        if (stop > key) {
          runs[image].push_back({level, key, stop});
        }
        key = std::max(stop, key + 1);
      }
    }
  }
  return runs;
}

Runs view(const std::vector<Run>& runs) {
  return {runs.data(), runs.data() + runs.size()};
}

Tensor with_neighbouring_channels(const Tensor& tensor) {
  return tensor.stride(3) == 1 ? tensor : torch::stable::contiguous(tensor);
}

template <typename T>
Rows<const T> rows(const Tensor& tensor) {
  return {data<T>(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

template <typename T>
Rows<T> mutable_rows(const Tensor& tensor) {
  return {mutable_data<T>(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// (B, H, N, D), ordered in memory as (B, N, H, D): its heads can be joined without a copy.
Tensor new_by_token(const Tensor& like, const Problem& problem, int64_t length) {
  return torch::stable::transpose(
      torch::stable::new_empty(like, {problem.batch, length, problem.heads, problem.dim}), 1, 2);
}

template <typename T>
std::vector<T> framed(const Tensor& tables, const Problem& problem) {
  std::vector<T> framed(problem.heads * problem.framed_cells, T(0));
  for (int64_t head = 0; head < problem.heads; ++head) {
    for (int64_t l = 0; l < problem.level_count; ++l) {
      const Level& level = problem.levels[l];
      const T* from = data<T>(tables) + head * problem.cells + level.cells;
      T* to = framed.data() + head * problem.framed_cells + level.framed_cells;
      for (int64_t y = 0; y < level.height; ++y) {
        std::copy_n(from + y * level.width, level.width, to + (y + kFrame) * level.framed_width() + kFrame);
      }
    }
  }
  return framed;
}

void make_contiguous(Call& call) {
  call.query = with_neighbouring_channels(call.query);
  call.key = with_neighbouring_channels(call.key);
  call.value = with_neighbouring_channels(call.value);
  call.query_positions = torch::stable::contiguous(call.query_positions);
  call.key_positions = torch::stable::contiguous(call.key_positions);
  call.tables = torch::stable::contiguous(call.tables);
  if (call.key_padding) {
    call.key_padding = torch::stable::contiguous(*call.key_padding);
  }
}

template <typename T>
Inputs<T> inputs(const Call& call, const std::vector<T>& framed_tables) {
  return {rows<T>(call.query), rows<T>(call.key), rows<T>(call.value), data<T>(call.query_positions),
          data<T>(call.key_positions), framed_tables.data()};
}

std::tuple<Tensor, Tensor> forward(
    Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions, Tensor tables,
    std::vector<int64_t> table_shapes, std::vector<int64_t> key_counts, std::optional<Tensor> key_padding,
    double scale) {
  Call call{query, key, value, query_positions, key_positions, tables, table_shapes, key_counts, key_padding, scale};
  const std::vector<Level> levels = levels_of(call);
  const Problem problem = describe(call, levels);
  make_contiguous(call);
  const auto runs = runs_of(call, problem);
  Tensor output = new_by_token(query, problem, problem.queries);
  Tensor log_sums = torch::stable::new_empty(query, {problem.batch, problem.heads, problem.queries});
  with_scalar(query, "deform_kv_attention", [&](auto scalar) {
    using T = decltype(scalar);
    const Kernels<T> kernels = kernels_of_this_machine<T>();
    const std::vector<T> framed_tables = framed<T>(call.tables, problem);
    const Inputs<T> in = inputs<T>(call, framed_tables);
    const Outputs<T> out{mutable_rows<T>(output), mutable_data<T>(log_sums)};
    const int64_t blocks = (problem.queries + kernels.block - 1) / kernels.block;
    torch::stable::parallel_for(
        0, problem.batch * problem.heads * blocks, 1, [&](int64_t begin, int64_t end) {
          std::vector<T> scratch(kernels.scratch(problem.dim));
          for (int64_t task = begin; task < end; ++task) {
            const int64_t image = task / blocks / problem.heads;
            const int64_t head = task / blocks % problem.heads;
            const int64_t first = task % blocks * kernels.block;
            kernels.forward(problem, in, view(runs[image]), image, head, first, scratch.data(), out);
          }
        });
  });
  return {output, log_sums};
}

// to[outer, inner] = the sum of parts[outer, part, inner]
template <typename T>
void add_up(const std::vector<T>& parts, int64_t outer, int64_t count, int64_t inner, T* to) {
  std::fill(to, to + outer * inner, T(0));
  for (int64_t i = 0; i < outer * count; ++i) {
    const T* from = parts.data() + i * inner;
    T* sum = to + i / count * inner;
    for (int64_t j = 0; j < inner; ++j) {
      sum[j] += from[j];
    }
  }
}

// (B, H, Nk, padded D) without the padding
template <typename T>
void unpad(const std::vector<T>& padded, int64_t columns, const Problem& problem, const Rows<T>& to) {
  for (int64_t task = 0; task < problem.batch * problem.heads; ++task) {
    for (int64_t key = 0; key < problem.keys; ++key) {
      const T* from = padded.data() + (task * problem.keys + key) * columns;
      std::copy_n(from, problem.dim, to.of(task / problem.heads, task % problem.heads) + key * to.row);
    }
  }
}

// Sums the gradients of all images, and takes off the frames.
template <typename T>
void unframe(const std::vector<T>& framed, const Problem& problem, T* to) {
  std::fill(to, to + problem.heads * problem.cells, T(0));
  for (int64_t task = 0; task < problem.batch * problem.heads; ++task) {
    for (int64_t l = 0; l < problem.level_count; ++l) {
      const Level& level = problem.levels[l];
      const T* from = framed.data() + task * problem.framed_cells + level.framed_cells;
      T* table = to + task % problem.heads * problem.cells + level.cells;
      for (int64_t y = 0; y < level.height; ++y) {
        for (int64_t x = 0; x < level.width; ++x) {
          table[y * level.width + x] += from[(y + kFrame) * level.framed_width() + x + kFrame];
        }
      }
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad_output, Tensor query, Tensor key, Tensor value, Tensor query_positions, Tensor key_positions,
    Tensor tables, std::vector<int64_t> table_shapes, std::vector<int64_t> key_counts,
    std::optional<Tensor> key_padding, double scale, Tensor output, Tensor log_sums) {
  Call call{query, key, value, query_positions, key_positions, tables, table_shapes, key_counts, key_padding, scale};
  const std::vector<Level> levels = levels_of(call);
  const Problem problem = describe(call, levels);
  for (const Tensor* tensor : {&grad_output, &output}) {
    check(
        has_sizes(*tensor, {problem.batch, problem.heads, problem.queries, problem.dim}) &&
            tensor->scalar_type() == query.scalar_type(),
        "grad_output and output do not fit the queries");
  }
  check(
      has_sizes(log_sums, {problem.batch, problem.heads, problem.queries}) &&
          log_sums.scalar_type() == query.scalar_type(),
      "log_sums does not fit the queries");
  make_contiguous(call);
  grad_output = with_neighbouring_channels(grad_output);
  output = with_neighbouring_channels(output);
  log_sums = torch::stable::contiguous(log_sums);
  const auto runs = runs_of(call, problem);
  Tensor by_query = new_by_token(query, problem, problem.queries);
  Tensor by_key = new_by_token(key, problem, problem.keys);
  Tensor by_value = new_by_token(value, problem, problem.keys);
  Tensor by_query_positions = torch::stable::new_empty(query, query_positions.sizes());
  Tensor by_key_positions = torch::stable::new_empty(query, key_positions.sizes());
  Tensor by_tables = torch::stable::new_empty(query, tables.sizes());
  with_scalar(query, "deform_kv_attention", [&](auto scalar) {
    using T = decltype(scalar);
    const Kernels<T> kernels = kernels_of_this_machine<T>();
    const std::vector<T> framed_tables = framed<T>(call.tables, problem);
    const int64_t tasks = problem.batch * problem.heads;
    const int64_t columns = (problem.dim + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
    const int64_t level_queries = problem.level_count * problem.queries * 2;
    std::vector<T> keys(tasks * problem.keys * columns);
    std::vector<T> values(tasks * problem.keys * columns);
    std::vector<T> query_places(tasks * level_queries);
    std::vector<T> key_places(tasks * problem.keys * 2);
    std::vector<T> cells(tasks * problem.framed_cells);
    const Inputs<T> in = inputs<T>(call, framed_tables);
    const Gradients<T> out{
        rows<T>(grad_output), rows<T>(output), data<T>(log_sums), mutable_rows<T>(by_query), keys.data(),
        values.data(), query_places.data(), key_places.data(), cells.data()};
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(kernels.scratch(problem.dim));
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / problem.heads;
        kernels.backward(problem, in, view(runs[image]), image, task % problem.heads, scratch.data(), out);
      }
    });
    unpad(keys, columns, problem, mutable_rows<T>(by_key));
    unpad(values, columns, problem, mutable_rows<T>(by_value));
    add_up(query_places, problem.batch, problem.heads, level_queries, mutable_data<T>(by_query_positions));
    add_up(
        key_places, problem.batch * problem.groups, problem.heads / problem.groups, problem.keys * 2,
        mutable_data<T>(by_key_positions));
    unframe(cells, problem, mutable_data<T>(by_tables));
  });
  return {by_query, by_key, by_value, by_query_positions, by_key_positions, by_tables};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attnzoo, CPU, library) {
  library.impl("deform_kv_attention", TORCH_BOX(&forward));
  library.impl("deform_kv_attention_backward", TORCH_BOX(&backward));
}

}  // namespace attnzoo::deform_kv_attn

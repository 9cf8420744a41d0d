// The parameters of the bias: as arguments of the operators, and packed for the kernels, one block per head.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../common/tensor.h"
#include "arguments.h"
#include "problem.h"

namespace attnzoo::deform_kv_attn {

// `tables` is (H, Σ Th·Tw); `shapes` is Th, Tw of each level. Packed tables have zero padding.
struct TableParameters {
  static constexpr BiasKind kKind = BiasKind::kTable;
  Tensor tables;
  std::vector<int64_t> shapes;

  std::vector<Level> levels() const {
    check(shapes.size() % 2 == 0, "table_shapes must hold a height and a width per level");
    std::vector<Level> levels;
    Level next{};
    for (size_t i = 0; i < shapes.size(); i += 2) {
      next.height = shapes[i];
      next.width = shapes[i + 1];
      check(next.height > 0 && next.width > 0, "table_shapes must be positive");
      levels.push_back(next);
      next.table_offset += next.height * next.width;
      next.parameter_offset += next.padded_height() * next.padded_width();
    }
    return levels;
  }

  // Sets the sizes of the bias, checks `tables` and makes it contiguous.
  void prepare(Problem& problem) {
    const Level& last = problem.levels[problem.num_levels - 1];
    problem.parameters_per_head = last.parameter_offset + last.padded_height() * last.padded_width();
    check(problem.parameters_per_head < (int64_t{1} << 31), "tables are too large");
    check(has_shape(tables, {problem.heads, cells_per_head(problem)}), "tables and table_shapes differ in size");
    tables = torch::stable::contiguous(tables);
  }

  bool has_dtype_of(const Tensor& query) const {
    return tables.scalar_type() == query.scalar_type();
  }

  // (H, parameters_per_head)
  template <typename T>
  std::vector<T> pack(const Problem& problem) const {
    std::vector<T> packed(problem.heads * problem.parameters_per_head, T(0));
    for (int64_t head = 0; head < problem.heads; ++head) {
      for (int64_t l = 0; l < problem.num_levels; ++l) {
        const Level& level = problem.levels[l];
        const T* from = data<T>(tables) + head * cells_per_head(problem) + level.table_offset;
        T* to = packed.data() + head * problem.parameters_per_head + level.parameter_offset;
        for (int64_t y = 0; y < level.height; ++y) {
          T* row = to + (y + kTablePadding) * level.padded_width() + kTablePadding;
          std::copy_n(from + y * level.width, level.width, row);
        }
      }
    }
    return packed;
  }

  // The gradient of `tables` from packed gradients (B, H, parameters_per_head): the sum over images, without padding.
  template <typename T>
  Tensor unpack(const std::vector<T>& packed, const Problem& problem) const {
    Tensor grad = torch::stable::new_zeros(tables, tables.sizes());
    for (int64_t task = 0; task < problem.batch * problem.heads; ++task) {
      for (int64_t l = 0; l < problem.num_levels; ++l) {
        const Level& level = problem.levels[l];
        const T* from = packed.data() + task * problem.parameters_per_head + level.parameter_offset;
        T* to = mutable_data<T>(grad) + task % problem.heads * cells_per_head(problem) + level.table_offset;
        for (int64_t y = 0; y < level.height; ++y) {
          for (int64_t x = 0; x < level.width; ++x) {
            to[y * level.width + x] += from[(y + kTablePadding) * level.padded_width() + x + kTablePadding];
          }
        }
      }
    }
    return grad;
  }

  static int64_t cells_per_head(const Problem& problem) {
    const Level& last = problem.levels[problem.num_levels - 1];
    return last.table_offset + last.height * last.width;
  }
};

// `layers` holds, for each level, the weight (out, in) and the bias (out) of each layer. The last layer has one output
// per head of a group. The packed parameters of a head hold all layers of all levels, of the last layer only the row of
// that head.
struct MlpParameters {
  static constexpr BiasKind kKind = BiasKind::kMlp;
  std::vector<Tensor> layers;
  int64_t num_levels;
  std::vector<int64_t> widths = {2};

  int64_t num_layers() const {
    return static_cast<int64_t>(layers.size()) / (2 * num_levels);
  }

  std::vector<Level> levels() {
    check(num_levels > 0 && layers.size() >= 2 * static_cast<size_t>(num_levels), "an MLP needs at least one layer");
    check(layers.size() % (2 * num_levels) == 0, "all levels must have the same number of layers");
    for (int64_t layer = 0; layer < num_layers(); ++layer) {
      check(layers[2 * layer].dim() == 2, "the weight of a layer must have two dimensions");
      widths.push_back(layers[2 * layer].size(0));
    }
    std::vector<Level> levels(num_levels);
    for (int64_t level = 1; level < num_levels; ++level) {
      levels[level].parameter_offset = level * parameters_per_level();
    }
    return levels;
  }

  // Of one head.
  int64_t parameters_per_level() const {
    int64_t count = widths[num_layers() - 1] + 1;
    for (int64_t layer = 0; layer + 1 < num_layers(); ++layer) {
      count += widths[layer + 1] * (widths[layer] + 1);
    }
    return count;
  }

  // Sets the sizes of the bias, checks `layers` and makes them contiguous.
  void prepare(Problem& problem) {
    problem.parameters_per_head = num_levels * parameters_per_level();
    problem.num_layers = num_layers();
    check(widths.back() * problem.groups == problem.heads, "the last layer must have one output per head of a group");
    for (size_t i = 0; i < layers.size(); ++i) {
      const int64_t layer = static_cast<int64_t>(i) / 2 % num_layers();
      check(
          i % 2 ? has_shape(layers[i], {widths[layer + 1]}) : has_shape(layers[i], {widths[layer + 1], widths[layer]}),
          "the layers differ in size");
      layers[i] = torch::stable::contiguous(layers[i]);
    }
    widths.back() = 1;
    problem.layer_widths = widths.data();
  }

  bool has_dtype_of(const Tensor& query) const {
    return std::all_of(layers.begin(), layers.end(), [&](const Tensor& layer) {
      return layer.scalar_type() == query.scalar_type();
    });
  }

  // Calls body(i, first element, number of elements) for the part of every layers[i] that belongs to a head.
  template <typename Body>
  void for_each_tensor(const Problem& problem, int64_t head, const Body& body) const {
    for (size_t i = 0; i < layers.size(); ++i) {
      const int64_t layer = static_cast<int64_t>(i) / 2 % num_layers();
      const int64_t row = i % 2 ? 1 : widths[layer];
      const bool last = layer + 1 == num_layers();
      body(i, last ? head % (problem.heads / problem.groups) * row : 0, last ? row : widths[layer + 1] * row);
    }
  }

  // (H, parameters_per_head)
  template <typename T>
  std::vector<T> pack(const Problem& problem) const {
    std::vector<T> packed;
    for (int64_t head = 0; head < problem.heads; ++head) {
      for_each_tensor(problem, head, [&](size_t i, int64_t first, int64_t count) {
        packed.insert(packed.end(), data<T>(layers[i]) + first, data<T>(layers[i]) + first + count);
      });
    }
    return packed;
  }

  // The gradients of `layers` from packed gradients (B, H, parameters_per_head): sums over images and over the heads
  // that share a layer.
  template <typename T>
  std::vector<Tensor> unpack(const std::vector<T>& packed, const Problem& problem) const {
    std::vector<Tensor> grads;
    for (const Tensor& layer : layers) {
      grads.push_back(torch::stable::new_zeros(layer, layer.sizes()));
    }
    const T* from = packed.data();
    for (int64_t task = 0; task < problem.batch * problem.heads; ++task) {
      for_each_tensor(problem, task % problem.heads, [&](size_t i, int64_t first, int64_t count) {
        T* to = mutable_data<T>(grads[i]) + first;
        for (int64_t k = 0; k < count; ++k) {
          to[k] += *from++;
        }
      });
    }
    return grads;
  }
};

}  // namespace attnzoo::deform_kv_attn

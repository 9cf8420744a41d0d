// The parameters of both kinds of bias, as the operators are given them and as the kernels have them: per head.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../common/tensor.h"
#include "arguments.h"
#include "problem.h"

namespace attnzoo::deform_kv_attn {

// Tables (H, Σ Th·Tw) of shapes Th, Tw per level. The kernels have them in frames of zeros.
struct Tables {
  static constexpr Kind kKind = Kind::kTable;
  Tensor tables;
  std::vector<int64_t> shapes;

  std::vector<Level> levels() const {
    check(shapes.size() % 2 == 0, "table_shapes holds height and width per level");
    std::vector<Level> levels;
    Level next{};
    for (size_t i = 0; i < shapes.size(); i += 2) {
      next.height = shapes[i];
      next.width = shapes[i + 1];
      check(next.height > 0 && next.width > 0, "table_shapes must be positive");
      levels.push_back(next);
      next.given += next.height * next.width;
      next.parameters += next.framed_height() * next.framed_width();
    }
    return levels;
  }

  void describe(Problem& problem) {
    const Level& last = problem.levels[problem.level_count - 1];
    problem.parameters = last.parameters + last.framed_height() * last.framed_width();
    check(problem.parameters < (int64_t{1} << 31), "tables are too large");
    check(has_sizes(tables, {problem.heads, given(problem)}), "the tables differ in size");
    tables = torch::stable::contiguous(tables);
  }

  bool has_dtype_of(const Tensor& query) const {
    return tables.scalar_type() == query.scalar_type();
  }

  template <typename T>
  std::vector<T> pack(const Problem& problem) const {
    std::vector<T> framed(problem.heads * problem.parameters, T(0));
    for (int64_t head = 0; head < problem.heads; ++head) {
      for (int64_t l = 0; l < problem.level_count; ++l) {
        const Level& level = problem.levels[l];
        const T* from = data<T>(tables) + head * given(problem) + level.given;
        T* to = framed.data() + head * problem.parameters + level.parameters;
        for (int64_t y = 0; y < level.height; ++y) {
          std::copy_n(from + y * level.width, level.width, to + (y + kFrame) * level.framed_width() + kFrame);
        }
      }
    }
    return framed;
  }

  // Gradients (B, H, parameters), summed over images, without frames.
  template <typename T>
  Tensor unpack(const std::vector<T>& framed, const Problem& problem) const {
    Tensor gradient = torch::stable::new_zeros(tables, tables.sizes());
    for (int64_t task = 0; task < problem.batch * problem.heads; ++task) {
      for (int64_t l = 0; l < problem.level_count; ++l) {
        const Level& level = problem.levels[l];
        const T* from = framed.data() + task * problem.parameters + level.parameters;
        T* table = mutable_data<T>(gradient) + task % problem.heads * given(problem) + level.given;
        for (int64_t y = 0; y < level.height; ++y) {
          for (int64_t x = 0; x < level.width; ++x) {
            table[y * level.width + x] += from[(y + kFrame) * level.framed_width() + x + kFrame];
          }
        }
      }
    }
    return gradient;
  }

  static int64_t given(const Problem& problem) {
    const Level& last = problem.levels[problem.level_count - 1];
    return last.given + last.height * last.width;
  }
};

// Weight (out, in) and bias (out) of all layers of all levels in turn; the last layers give the heads of a group. The
// kernels have, for every head, the layers of all levels with its own row alone of the last.
struct Perceptrons {
  static constexpr Kind kKind = Kind::kMlp;
  std::vector<Tensor> layers;
  int64_t level_count;
  std::vector<int64_t> widths = {2};

  int64_t depth() const {
    return static_cast<int64_t>(layers.size()) / (2 * level_count);
  }

  std::vector<Level> levels() {
    check(level_count > 0 && layers.size() >= 2 * static_cast<size_t>(level_count), "at least one layer is needed");
    check(layers.size() % (2 * level_count) == 0, "levels differ in layers");
    for (int64_t layer = 0; layer < depth(); ++layer) {
      check(layers[2 * layer].dim() == 2, "a weight has two dimensions");
      widths.push_back(layers[2 * layer].size(0));
    }
    std::vector<Level> levels(level_count);
    for (int64_t level = 1; level < level_count; ++level) {
      levels[level].parameters = level * per_level();
    }
    return levels;
  }

  // Parameters of one level for one head.
  int64_t per_level() const {
    int64_t count = widths[depth() - 1] + 1;
    for (int64_t layer = 0; layer + 1 < depth(); ++layer) {
      count += widths[layer + 1] * (widths[layer] + 1);
    }
    return count;
  }

  void describe(Problem& problem) {
    problem.parameters = level_count * per_level();
    problem.layers = depth();
    check(widths.back() * problem.groups == problem.heads, "the last layers do not give the heads of a group");
    for (size_t i = 0; i < layers.size(); ++i) {
      const int64_t layer = static_cast<int64_t>(i) / 2 % depth();
      check(
          i % 2 ? has_sizes(layers[i], {widths[layer + 1]}) : has_sizes(layers[i], {widths[layer + 1], widths[layer]}),
          "the layers differ in size");
      layers[i] = torch::stable::contiguous(layers[i]);
    }
    widths.back() = 1;
    problem.widths = widths.data();
  }

  bool has_dtype_of(const Tensor& query) const {
    return std::all_of(layers.begin(), layers.end(), [&](const Tensor& layer) {
      return layer.scalar_type() == query.scalar_type();
    });
  }

  // Calls `body(tensor, first element, number of elements)` for what belongs to a head, in the order of the kernels.
  template <typename Body>
  void for_head(const Problem& problem, int64_t head, const Body& body) const {
    for (size_t i = 0; i < layers.size(); ++i) {
      const int64_t layer = static_cast<int64_t>(i) / 2 % depth();
      const int64_t row = i % 2 ? 1 : widths[layer];
      const bool last = layer + 1 == depth();
      body(i, last ? head % (problem.heads / problem.groups) * row : 0, last ? row : widths[layer + 1] * row);
    }
  }

  template <typename T>
  std::vector<T> pack(const Problem& problem) const {
    std::vector<T> packed;
    for (int64_t head = 0; head < problem.heads; ++head) {
      for_head(problem, head, [&](size_t i, int64_t first, int64_t count) {
        packed.insert(packed.end(), data<T>(layers[i]) + first, data<T>(layers[i]) + first + count);
      });
    }
    return packed;
  }

  // Gradients (B, H, parameters), summed over images and over the heads that share a layer.
  template <typename T>
  std::vector<Tensor> unpack(const std::vector<T>& packed, const Problem& problem) const {
    std::vector<Tensor> gradients;
    for (const Tensor& layer : layers) {
      gradients.push_back(torch::stable::new_zeros(layer, layer.sizes()));
    }
    const T* from = packed.data();
    for (int64_t task = 0; task < problem.batch * problem.heads; ++task) {
      for_head(problem, task % problem.heads, [&](size_t i, int64_t first, int64_t count) {
        T* to = mutable_data<T>(gradients[i]) + first;
        for (int64_t k = 0; k < count; ++k) {
          to[k] += *from++;
        }
      });
    }
    return gradients;
  }
};

}  // namespace attnzoo::deform_kv_attn

// The sizes of one call, and types that the CPU and CUDA kernels share.
#pragma once

#include <cstdint>

#include "../common/macros.h"

namespace attnzoo::deform_kv_attn {

// Where the relative position bias comes from: a table per head, or an MLP.
enum class BiasKind { kTable, kMlp };

// The CPU kernels use tables with this many zero cells on each side, so that they need no bounds checks.
constexpr int64_t kTablePadding = 2;

// One level: its bias, and the range of its keys.
struct Level {
  int64_t height;  // of its table, if the bias is a table
  int64_t width;
  int64_t table_offset;      // of its table in the `tables` argument, for one head
  int64_t parameter_offset;  // of its bias in the packed parameters of one head, where tables are padded
  int64_t first_key;
  int64_t end_key;

  int64_t padded_width() const {
    return width + 2 * kTablePadding;
  }
  int64_t padded_height() const {
    return height + 2 * kTablePadding;
  }
};

struct Problem {
  int64_t batch;
  int64_t heads;
  int64_t groups;  // heads of a group share the positions of their keys
  int64_t queries;
  int64_t keys;
  int64_t head_dim;
  int64_t parameters_per_head;  // size of the packed bias parameters
  double scale;
  const Level* levels;
  int64_t num_levels;
  // If the bias is an MLP: layer i has layer_widths[i] inputs and layer_widths[i + 1] outputs. The first width is 2
  // (x and y), the last is 1 (the bias of one head).
  const int64_t* layer_widths;
  int64_t num_layers;
};

// A (B, H, N, D) tensor with a stride of 1 in the last dimension.
template <typename T>
struct StridedTensor {
  T* data;
  int64_t image_stride;
  int64_t head_stride;
  int64_t row_stride;

  // The (N, D) rows of head h of image b.
  ATTNZOO_HOST_DEVICE T* head(int64_t b, int64_t h) const {
    return data + b * image_stride + h * head_stride;
  }
};

}  // namespace attnzoo::deform_kv_attn

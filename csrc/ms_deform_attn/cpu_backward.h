// Backward. A task owns one level, or all levels, of one head of one image. So no two threads add to the same gradient,
// and the order of every sum is independent of the number of threads.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu_footprints.h"
#include "cpu_packed_head.h"

namespace attnzoo::ms_deform_attn::ATTNZOO_ISA {

// Corners and their gradients in a packed head.
template <typename T>
struct PackedGradRows {
  static constexpr bool kHasGradients = true;
  const PackedHead<T>& packed;
  const TokenLayout<T>& layout;
  int64_t grad_offset;  // from a token's channels to their gradients

  ATTNZOO_INLINE void corner_rows(
      const Footprints<T>& footprints, int64_t i, const T* (&rows)[4], T* (&grads)[4]) const {
    T* const first = packed.row(footprints.tokens[i]);
    T* const below = first + layout.pitch[i] * packed.token_stride;
    T* const all[4] = {first, first + packed.token_stride, below, below + packed.token_stride};
    for (int k = 0; k < 4; ++k) {
      rows[k] = all[k];
      grads[k] = all[k] + grad_offset;
    }
  }
};

// Corners in value and their gradients in grad_value.
template <typename T>
struct ValueGradRows {
  static constexpr bool kHasGradients = true;
  const T* value;
  T* grad_value;
  int64_t value_token_stride;
  int64_t grad_token_stride;
  const T* zero_row;  // for corners outside the map
  T* discard_row;     // for their gradients

  ATTNZOO_INLINE void corner_rows(
      const Footprints<T>& footprints, int64_t i, const T* (&rows)[4], T* (&grads)[4]) const {
    for (int k = 0; k < 4; ++k) {
      const int64_t token = footprints.tokens[k * footprints.padded + i];
      rows[k] = token < 0 ? zero_row : value + token * value_token_stride;
      grads[k] = token < 0 ? discard_row : grad_value + token * grad_token_stride;
    }
  }
};

// For kChannels channels from `channel` on and the samples [begin, end): adds the gradients of all corners, if the rows
// have any, and to dots[4 · i + k] the dot product of `grad_row`, the gradient of the output, and corner k of sample i.
template <int kChannels, typename T, typename Rows>
ATTNZOO_INLINE void scatter(
    const Rows& source,
    const Footprints<T>& footprints,
    int64_t begin,
    int64_t end,
    int64_t channel,
    const T* grad_row,
    T* dots) {
  using Row = Channels<kChannels, T>;
  using V = typename Row::V;
  const Row grad_output(grad_row + channel);
  for (int64_t i = begin; i < end; ++i) {
    const T* rows[4];
    T* grads[4];
    if constexpr (Rows::kHasGradients) {
      source.corner_rows(footprints, i, rows, grads);
    } else {
      source.corner_rows(footprints, i, rows);
    }
    V sums[4];
    for (int k = 0; k < 4; ++k) {
      const V corner_weight = broadcast<V>(footprints.corner_weights[k * footprints.padded + i]);
      sums[k] = V{};
      for (int v = 0; v < Row::kCount; ++v) {
        sums[k] += grad_output.vectors[v] * load<V>(rows[k] + channel + v * kLanes<V>);
        if constexpr (Rows::kHasGradients) {
          T* const to = grads[k] + channel + v * kLanes<V>;
          store(to, load<V>(to) + corner_weight * grad_output.vectors[v]);
        }
      }
    }
    add_horizontal_sums(dots + 4 * i, sums);
  }
}

// The gradients of attention weights and sampling locations, or in the fused operator of positions in pixels, from the
// dot products. Writes whole vectors.
template <typename T>
ATTNZOO_INLINE void bilinear_backward(
    const KernelArgs<T>& args,
    const TokenLayout<T>& layout,
    const Footprints<T>& footprints,
    const T* dots,
    T* grad_locations,
    T* grad_weights) {
  using V = Simd<T>;
  for (int64_t i = 0; i < footprints.padded; i += kLanes<V>) {
    V dot[4];
    load_interleaved4(dots + 4 * i, dot);
    const V fx = load<V>(footprints.fx + i);
    const V fy = load<V>(footprints.fy + i);
    const V weight = load<V>(footprints.weights + i);
    const V upper = dot[0] + fx * (dot[1] - dot[0]);
    const V lower = dot[2] + fx * (dot[3] - dot[2]);
    V grad_x = weight * ((1 - fy) * (dot[1] - dot[0]) + fy * (dot[3] - dot[2]));
    V grad_y = weight * (lower - upper);
    if (!args.references) {
      grad_x *= load<V>(layout.width + i);
      grad_y *= load<V>(layout.height + i);
    }
    store(grad_weights + i, upper + fy * (lower - upper));
    store_interleaved2(grad_locations + 2 * i, grad_x, grad_y);
  }
}

// The gradients of one query and head for a range of levels, from the dot products.
template <typename T>
ATTNZOO_INLINE void backward_samples(
    const KernelArgs<T>& args,
    int64_t query_head,
    const LevelRange<T>& range,
    const Footprints<T>& footprints,
    const T* dots,
    const Workspace<T>& workspace) {
  const int64_t first = query_head * args.samples() + range.first_sample;
  const bool whole_vectors = range.num_samples == footprints.padded;
  T* const grad_locations = whole_vectors ? args.grad_locations + 2 * first : workspace.staging;
  T* const grad_weights = whole_vectors ? args.grad_weights + first : workspace.staging + 2 * footprints.padded;
  bilinear_backward(args, range.layout, footprints, dots, grad_locations, grad_weights);
  if (!whole_vectors) {
    std::memcpy(args.grad_locations + 2 * first, grad_locations, 2 * range.num_samples * sizeof(T));
    std::memcpy(args.grad_weights + first, grad_weights, range.num_samples * sizeof(T));
  }
}

// The queries [begin, end) of an image, in processing order, for one head and a range of levels.
template <bool kPacked, typename T, typename E, typename Rows>
void backward_queries(
    const KernelArgs<T>& args,
    int64_t image,
    int64_t head,
    int64_t begin,
    int64_t end,
    const LevelRange<T>& range,
    const Rows& source,
    const Workspace<T>& workspace) {
  const E* grad_output = static_cast<const E*>(args.grad_output);
  // A tile of queries adds to the gradients of one level at a time: its tokens stay in the first cache. With fewer than
  // four points, a group is several levels.
  const int64_t group = kPacked ? (args.points + 3) / args.points * args.points : range.num_samples;
  const int64_t offset = image * args.queries;
  const auto query_head_at = [&](int64_t position) {
    return (offset + args.query_at(position)) * args.heads + head;
  };
  for (int64_t first = begin; first < end; first += workspace.query_tile) {
    const int64_t queries = std::min(workspace.query_tile, end - first);
    for (int64_t t = 0; t < queries; ++t) {
      if (const int64_t ahead = first + t + kPrefetchDistance; ahead < end) {
        prefetch_samples(args, query_head_at(ahead), range);
        prefetch(grad_output + query_head_at(ahead) * args.head_dim, args.head_dim);
      }
      const Footprints<T> footprints = workspace.footprints(t, range.num_samples);
      compute_footprints<kPacked>(args, offset + args.query_at(first + t), head, range, workspace.staging, footprints);
      load_row(grad_output + query_head_at(first + t) * args.head_dim, args.head_dim, workspace.row_of(t));
      std::memset(workspace.dots_of(t), 0, 4 * footprints.padded * sizeof(T));
    }
    for (int64_t i = 0; i < range.num_samples; i += group) {
      const int64_t last = std::min(i + group, range.num_samples);
      for (int64_t t = 0; t < queries; ++t) {
        const Footprints<T> footprints = workspace.footprints(t, range.num_samples);
        for_channel_chunks(args.padded_head_dim(), [&](auto size, int64_t channel) __attribute__((always_inline)) {
          scatter<size.value>(source, footprints, i, last, channel, workspace.row_of(t), workspace.dots_of(t));
        });
      }
    }
    for (int64_t t = 0; t < queries; ++t) {
      const Footprints<T> footprints = workspace.footprints(t, range.num_samples);
      backward_samples(args, query_head_at(first + t), range, footprints, workspace.dots_of(t), workspace);
    }
  }
}

template <typename T, typename E>
void backward_packed(
    const KernelArgs<T>& args, int64_t image, int64_t head, const LevelRange<T>& range, const Workspace<T>& workspace) {
  const PackedHead<T> packed{workspace.packed_head, args.levels[range.begin].packed_start, 2 * args.padded_head_dim()};
  pack_rows<T, E>(args, image, head, range.begin, 0, args.pixel_rows(range.begin, range.end), packed);
  const PackedGradRows<T> source{packed, range.layout, args.padded_head_dim()};
  backward_queries<true, T, E>(args, image, head, 0, args.queries, range, source, workspace);
  unpack_gradients<T, E>(args, image, head, range.begin, range.end, packed);
}

// Adds to grad_value, which starts as zeros.
template <typename T>
void backward_unpacked(
    const KernelArgs<T>& args, int64_t image, int64_t head, const LevelRange<T>& range, const Workspace<T>& workspace) {
  const ValueGradRows<T> source{
      static_cast<const T*>(args.value) + args.value_offset(image, head),
      static_cast<T*>(args.grad_value) + args.grad_value_offset(image, head),
      args.value_strides[1],
      args.grad_token_stride(),
      workspace.zero_row,
      workspace.discard_row};
  backward_queries<false, T, T>(args, image, head, 0, args.queries, range, source, workspace);
}

template <typename T>
void backward(const KernelArgs<T>& args, int64_t begin, int64_t end, T* scratch) {
  const Workspace<T> workspace(args, scratch);
  std::memset(workspace.zero_row, 0, args.padded_head_dim() * sizeof(T));
  std::memset(workspace.discard_row, 0, args.padded_head_dim() * sizeof(T));
  const int64_t levels = args.num_levels / args.level_groups;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task % args.level_groups * levels;
    const int64_t image = task / args.level_groups / args.heads;
    const int64_t head = task / args.level_groups % args.heads;
    if (args.backward_is_packed()) {
      const LevelRange<T> range(args, args.packed_layout, first, first + levels);
      dispatch_value_dtype(args, [&](auto scalar) {
        backward_packed<T, decltype(scalar)>(args, image, head, range, workspace);
      });
    } else {
      const LevelRange<T> range(args, args.value_layout, first, first + levels);
      backward_unpacked(args, image, head, range, workspace);
    }
  }
}

}  // namespace attnzoo::ms_deform_attn::ATTNZOO_ISA

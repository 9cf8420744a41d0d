// The kernels for a value that all heads share. The heads of a query sample close to each other, so they are processed
// together: most tokens are still in the caches when the next head reads them.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu_backward.h"
#include "cpu_forward.h"

namespace attnzoo::ms_deform_attn::ATTNZOO_ISA {

// Calls body(image, position) for the queries [begin, end) of all images, in processing order.
template <typename T, typename Body>
void for_queries(const KernelArgs<T>& args, int64_t begin, int64_t end, const Body& body) {
  for (int64_t query = begin; query < end; ++query) {
    body(query / args.queries, query % args.queries);
  }
}

template <typename T, typename E>
ValueRows<T, E> shared_rows(const KernelArgs<T>& args, int64_t image, const Workspace<T>& workspace) {
  return {
      static_cast<const E*>(args.value) + args.value_offset(image, 0),
      args.value_strides[1],
      reinterpret_cast<const E*>(workspace.zero_row)};
}

template <typename T>
void forward_shared(const KernelArgs<T>& args, int64_t begin, int64_t end, T* scratch) {
  const Workspace<T> workspace(args, scratch);
  std::memset(workspace.zero_row, 0, args.padded_head_dim() * sizeof(T));
  dispatch_value_dtype(args, [&](auto scalar) {
    using E = decltype(scalar);
    for_queries(args, begin, end, [&](int64_t image, int64_t query) {
      const auto source = shared_rows<T, E>(args, image, workspace);
      for (int64_t head = 0; head < args.heads; ++head) {
        forward_queries<false, T, E>(args, image, head, query, query + 1, source, workspace);
      }
    });
  });
}

// The gradients of locations and weights.
template <typename T>
void backward_shared(const KernelArgs<T>& args, int64_t begin, int64_t end, T* scratch) {
  const Workspace<T> workspace(args, scratch);
  std::memset(workspace.zero_row, 0, args.padded_head_dim() * sizeof(T));
  const LevelRange<T> range(args, args.value_layout, 0, args.num_levels);
  for_queries(args, begin, end, [&](int64_t image, int64_t query) {
    const auto source = shared_rows<T, T>(args, image, workspace);
    for (int64_t head = 0; head < args.heads; ++head) {
      backward_queries<false, T, T>(args, image, head, query, query + 1, range, source, workspace);
    }
  });
}

// Adds the gradients of all corners, for kChannels channels from `channel` on.
template <int kChannels, typename T>
ATTNZOO_INLINE void add_corner_gradients(
    const Footprints<T>& footprints,
    int64_t num_samples,
    int64_t channel,
    const T* grad_row,
    int64_t token_stride,
    T* grad_value) {
  using Row = Channels<kChannels, T>;
  using V = typename Row::V;
  const Row grad_output(grad_row + channel);
  for (int64_t i = 0; i < num_samples; ++i) {
    for (int k = 0; k < 4; ++k) {
      const int64_t token = footprints.tokens[k * footprints.padded + i];
      if (token < 0) {  // outside the map
        continue;
      }
      const V corner_weight = broadcast<V>(footprints.corner_weights[k * footprints.padded + i]);
      T* const to = grad_value + token * token_stride + channel;
      for (int v = 0; v < Row::kCount; ++v) {
        store(to + v * kLanes<V>, load<V>(to + v * kLanes<V>) + corner_weight * grad_output.vectors[v]);
      }
    }
  }
}

// A task owns a group of channels of one image. So no two threads add to the same gradient, and every sum is in the
// order of queries and heads.
template <typename T>
void add_shared_gradients(const KernelArgs<T>& args, int64_t begin, int64_t end, T* scratch) {
  const Workspace<T> workspace(args, scratch);
  const LevelRange<T> range(args, args.value_layout, 0, args.num_levels);
  const Footprints<T> footprints = workspace.footprints(0, range.num_samples);
  const int64_t vectors = args.head_dim / 4;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / args.channel_groups;
    const int64_t group = task % args.channel_groups;
    const int64_t first = 4 * (vectors * group / args.channel_groups);
    const int64_t channels = 4 * (vectors * (group + 1) / args.channel_groups) - first;
    T* const grad_value = static_cast<T*>(args.grad_value) + args.grad_value_offset(image, 0) + first;
    for (int64_t position = 0; position < args.queries; ++position) {
      const int64_t query = image * args.queries + args.query_at(position);
      for (int64_t head = 0; head < args.heads; ++head) {
        compute_footprints<false>(args, query, head, range, workspace.staging, footprints);
        const T* grad_row =
            static_cast<const T*>(args.grad_output) + (query * args.heads + head) * args.head_dim + first;
        for_channel_chunks(channels, [&](auto size, int64_t channel) __attribute__((always_inline)) {
          add_corner_gradients<size.value>(
              footprints, range.num_samples, channel, grad_row, args.grad_token_stride(), grad_value);
        });
      }
    }
  }
}

}  // namespace attnzoo::ms_deform_attn::ATTNZOO_ISA

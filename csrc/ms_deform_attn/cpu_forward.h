// Forward: the output is the weighted sum of the corners of all samples.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu_footprints.h"
#include "cpu_packed_head.h"

namespace attnzoo::ms_deform_attn::ATTNZOO_ISA {

// Reads corners from a packed head.
template <typename T>
struct PackedRows {
  using Scalar = T;
  const PackedHead<T>& packed;
  const TokenLayout<T>& layout;

  ATTNZOO_INLINE void corner_rows(const Footprints<T>& footprints, int64_t i, const T* (&rows)[4]) const {
    rows[0] = packed.row(footprints.tokens[i]);
    rows[1] = rows[0] + packed.token_stride;
    rows[2] = rows[0] + layout.pitch[i] * packed.token_stride;
    rows[3] = rows[2] + packed.token_stride;
  }
};

// Reads corners from value, whose dtype is E.
template <typename T, typename E>
struct ValueRows {
  using Scalar = E;
  static constexpr bool kHasGradients = false;
  const E* value;
  int64_t token_stride;
  const E* zero_row;  // for corners outside the map

  ATTNZOO_INLINE void corner_rows(const Footprints<T>& footprints, int64_t i, const E* (&rows)[4]) const {
    for (int k = 0; k < 4; ++k) {
      const int64_t token = footprints.tokens[k * footprints.padded + i];
      rows[k] = token < 0 ? zero_row : value + token * token_stride;
    }
  }
};

// Computes kChannels channels of the output of a query and head, from `channel` on. If there are enough registers, the
// four corners are summed in independent chains, to hide the latency of the additions.
template <int kChannels, typename T, typename Rows>
ATTNZOO_INLINE void gather(
    const Rows& source, const Footprints<T>& footprints, int64_t num_samples, int64_t channel, T* output) {
  using V = ChunkVector<T, kChannels>;
  constexpr int vectors = kChannels / kLanes<V>;
  constexpr int chains = vectors <= 2 ? 4 : vectors <= 4 ? 2 : 1;
  V sums[vectors][chains] = {};
  for (int64_t i = 0; i < num_samples; ++i) {
    const typename Rows::Scalar* rows[4];
    source.corner_rows(footprints, i, rows);
    for (int k = 0; k < 4; ++k) {
      const V corner_weight = broadcast<V>(footprints.corner_weights[k * footprints.padded + i]);
      for (int v = 0; v < vectors; ++v) {
        sums[v][k % chains] += corner_weight * load_as<V>(rows[k] + channel + v * kLanes<V>);
      }
    }
  }
  for (int v = 0; v < vectors; ++v) {
    for (int k = 1; k < chains; ++k) {
      sums[v][0] += sums[v][k];
    }
    store(output + channel + v * kLanes<V>, sums[v][0]);
  }
}

// The queries [begin, end) of an image, in processing order, for one head.
template <bool kPacked, typename T, typename E, typename Rows>
void forward_queries(
    const KernelArgs<T>& args,
    int64_t image,
    int64_t head,
    int64_t begin,
    int64_t end,
    const Rows& source,
    const Workspace<T>& workspace) {
  const LevelRange<T> range(args, kPacked ? args.packed_layout : args.value_layout, 0, args.num_levels);
  Footprints<T> tile[kForwardTile];
  for (int64_t t = 0; t < kForwardTile; ++t) {
    tile[t] = workspace.footprints(t, args.samples());
  }
  const int64_t offset = image * args.queries;
  for (int64_t first = begin; first < end; first += kForwardTile) {
    const int64_t queries = std::min(kForwardTile, end - first);
    const int64_t ahead = first + kPrefetchDistance;
    for (int64_t position = ahead; position < std::min(ahead + kForwardTile, end); ++position) {
      prefetch_samples(args, (offset + args.query_at(position)) * args.heads + head, range);
    }
    for (int64_t t = 0; t < queries; ++t) {
      compute_footprints<kPacked>(args, offset + args.query_at(first + t), head, range, workspace.staging, tile[t]);
    }
    for (int64_t t = 0; t < queries; ++t) {
      for_channel_chunks(args.padded_head_dim(), [&](auto size, int64_t channel) __attribute__((always_inline)) {
        gather<size.value>(source, tile[t], range.num_samples, channel, workspace.rows);
      });
      const int64_t query_head = (offset + args.query_at(first + t)) * args.heads + head;
      store_row(workspace.rows, args.head_dim, static_cast<E*>(args.output) + query_head * args.head_dim);
    }
  }
}

// `head` is an index over all images, as `first_head`.
template <typename T>
PackedHead<T> packed_head_at(const KernelArgs<T>& args, int64_t head) {
  const int64_t packed_size = args.packed_size(0, args.num_levels, 1);
  return {args.packed_heads + (head - args.first_head) * packed_size, 0, args.padded_head_dim()};
}

template <typename T>
void pack(const KernelArgs<T>& args, int64_t begin, int64_t end) {
  const int64_t rows = args.pixel_rows(0, args.num_levels);
  dispatch_value_dtype(args, [&](auto scalar) {
    while (begin < end) {
      const int64_t head = args.first_head + begin / rows;
      const int64_t first = begin % rows;
      const int64_t last = std::min(rows, first + end - begin);
      const PackedHead<T> packed = packed_head_at(args, head);
      pack_rows<T, decltype(scalar)>(args, head / args.heads, head % args.heads, 0, first, last, packed);
      begin += last - first;
    }
  });
}

template <typename T, typename E>
void forward_as(const KernelArgs<T>& args, int64_t begin, int64_t end, T* scratch) {
  const Workspace<T> workspace(args, scratch);
  std::memset(workspace.zero_row, 0, args.padded_head_dim() * sizeof(T));
  while (begin < end) {
    const int64_t image = begin / args.queries / args.heads;
    const int64_t head = begin / args.queries % args.heads;
    const int64_t first = begin % args.queries;
    const int64_t last = std::min(args.queries, first + end - begin);
    if (args.packed_heads) {
      const PackedHead<T> packed = packed_head_at(args, image * args.heads + head);
      forward_queries<true, T, E>(args, image, head, first, last, PackedRows<T>{packed, args.packed_layout}, workspace);
    } else {
      const ValueRows<T, E> source{
          static_cast<const E*>(args.value) + args.value_offset(image, head),
          args.value_strides[1],
          reinterpret_cast<const E*>(workspace.zero_row)};
      forward_queries<false, T, E>(args, image, head, first, last, source, workspace);
    }
    begin += last - first;
  }
}

template <typename T>
void forward(const KernelArgs<T>& args, int64_t begin, int64_t end, T* scratch) {
  dispatch_value_dtype(args, [&](auto scalar) { forward_as<T, decltype(scalar)>(args, begin, end, scratch); });
}

}  // namespace attnzoo::ms_deform_attn::ATTNZOO_ISA

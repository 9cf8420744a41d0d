// Computes which tokens the samples read, with which weights: from sampling locations and attention weights or, in the
// fused operator, from references, offsets and logits. Processes a vector of samples at a time.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "../common/simd_math.h"
#include "cpu_interface.h"
#include "cpu_packed_head.h"

namespace attnzoo::ms_deform_attn::ATTNZOO_ISA {

using namespace attnzoo::ATTNZOO_ISA;

// The footprints of the samples of one query and head. Corners are numbered as in bilinear.h. An array with entries per
// corner has those of corner k from index k * padded on.
template <typename T>
struct Footprints {
  int64_t padded;     // number of samples, rounded up to whole vectors
  Token<T>* tokens;   // packed: of corner 0; otherwise: of every corner, -1 outside the map
  T* corner_weights;  // of every corner: bilinear weight times attention weight
  T* fx;              // distance from the left column
  T* fy;              // distance from the top row
  T* weights;         // attention weight, 0 for a sample outside the map
};

// `count` rounded up to a multiple of the lanes of a vector.
template <typename T>
ATTNZOO_INLINE int64_t pad_to_vector(int64_t count) {
  return (count + kSimdWidth<T> - 1) / kSimdWidth<T> * kSimdWidth<T>;
}

// A thread's scratch memory: `workspace_size` elements and, in the backward pass, a packed head.
template <typename T>
struct Workspace {
  Workspace(const KernelArgs<T>& args, T* scratch)
      : query_tile(backward_tile(args)),
        padded_samples(pad_to_max_vector<T>(args.samples())),
        padded_channels(pad_to_max_vector<T>(args.padded_head_dim())),
        zero_row(scratch),
        discard_row(zero_row + padded_channels),
        staging(discard_row + padded_channels),
        rows(staging + kStagingElements * (padded_samples + pad_to_max_vector<T>(1))),
        dots(rows + query_tile * padded_channels),
        tile(dots + 4 * query_tile * padded_samples),
        packed_head(scratch + workspace_size(args)) {}

  int64_t query_tile;  // backward_tile
  int64_t padded_samples;
  int64_t padded_channels;
  T* zero_row;     // read instead of a corner outside the map
  T* discard_row;  // written instead of the gradient of such a corner
  T* staging;      // kStagingElements per sample
  T* rows;         // of every query of the tile, the gradient of its output; forward, the output of one query
  T* dots;         // of every query of the tile, four per sample
  T* tile;         // of every query of the tile, its footprints
  T* packed_head;

  ATTNZOO_INLINE T* row_of(int64_t t) const {
    return rows + t * padded_channels;
  }
  ATTNZOO_INLINE T* dots_of(int64_t t) const {
    return dots + 4 * t * padded_samples;
  }

  // The footprints of query t of the tile, with `count` samples per query.
  ATTNZOO_INLINE Footprints<T> footprints(int64_t t, int64_t count) const {
    static_assert(sizeof(Token<T>) == sizeof(T));
    const int64_t padded = pad_to_vector<T>(count);
    T* memory = tile + t * kFootprintElements * padded;
    return {
        padded,
        reinterpret_cast<Token<T>*>(memory),
        memory + 4 * padded,
        memory + 8 * padded,
        memory + 9 * padded,
        memory + 10 * padded};
  }
};

// In a packed head, corners outside the map are read from the padding. A sample outside the map reads four zero tokens:
// the first two of the row below the level and, below these, the two after the level.
template <typename V>
ATTNZOO_INLINE void store_packed_tokens(
    const Mask<V>& inside,
    const V& height,
    const Mask<V>& pitch,
    const Mask<V>& origin,
    int64_t i,
    const Mask<V>& left,
    const Mask<V>& top,
    const Footprints<Element<V>>& footprints) {
  const Mask<V> below = __builtin_convertvector(height, Mask<V>);
  store(footprints.tokens + i, origin + (inside ? top : below) * pitch + (inside ? left : Mask<V>{} - 1));
}

template <typename V>
ATTNZOO_INLINE void store_value_corner(
    const Mask<V>& corner_inside,
    const Mask<V>& token,
    int k,
    int64_t i,
    const V& corner_weight,
    const Footprints<Element<V>>& footprints) {
  store(footprints.tokens + k * footprints.padded + i, corner_inside ? token : Mask<V>{} - 1);
  store(footprints.corner_weights + k * footprints.padded + i, corner_inside ? corner_weight : V{});
}

// The footprints of a vector of samples, from sample i on, at (column, row) in pixels. As `compute_footprint` in
// bilinear.h, but without branches: a position outside the map, NaN included, is replaced by zero before the conversion
// to an integer.
template <bool kPacked, typename V>
ATTNZOO_INLINE void compute_footprint(
    const TokenLayout<Element<V>>& layout,
    int64_t i,
    const V& column,
    const V& row,
    const V& weight,
    const Footprints<Element<V>>& footprints) {
  using I = Mask<V>;
  const V width = load<V>(layout.width + i);
  const V height = load<V>(layout.height + i);
  const I pitch = load<I>(layout.pitch + i);
  const I origin = load<I>(layout.origin + i);
  const I inside = (column > -1) & (column < width) & (row > -1) & (row < height);
  const V x = inside ? column : V{};
  const V y = inside ? row : V{};
  const I left = floor_to_int(x);
  const I top = floor_to_int(y);
  const V fx = x - __builtin_convertvector(left, V);
  const V fy = y - __builtin_convertvector(top, V);
  const V masked_weight = inside ? weight : V{};
  const V upper = masked_weight * (1 - fy);
  const V lower = masked_weight * fy;
  const V corner_weights[4] = {upper * (1 - fx), upper * fx, lower * (1 - fx), lower * fx};
  store(footprints.fx + i, fx);
  store(footprints.fy + i, fy);
  store(footprints.weights + i, masked_weight);
  if constexpr (kPacked) {
    store_packed_tokens<V>(inside, height, pitch, origin, i, left, top, footprints);
    for (int k = 0; k < 4; ++k) {
      store(footprints.corner_weights + k * footprints.padded + i, corner_weights[k]);
    }
  } else {
    const I corner_inside[4] = {
        inside & (x >= 0) & (y >= 0),
        inside & (x < width - 1) & (y >= 0),
        inside & (x >= 0) & (y < height - 1),
        inside & (x < width - 1) & (y < height - 1)};
    const I first = origin + top * pitch + left;
    for (int k = 0; k < 4; ++k) {
      store_value_corner<V>(corner_inside[k], first + (k & 1) + (k >> 1) * pitch, k, i, corner_weights[k], footprints);
    }
  }
}

// Returns `from` if `count` is `padded`, and otherwise a copy that is padded with zeros.
template <typename T>
ATTNZOO_INLINE const T* with_zero_padding(const T* from, int64_t count, int64_t padded, T* copy) {
  if (count == padded) {
    return from;
  }
  std::memcpy(copy, from, count * sizeof(T));
  std::memset(copy + count, 0, (padded - count) * sizeof(T));
  return copy;
}

// The attention weights of a query and head in the fused operator: softmax over the logits of all samples. Writes whole
// vectors.
template <typename T>
ATTNZOO_INLINE void softmax_weights(const KernelArgs<T>& args, int64_t query_head, T* weights) {
  using V = Simd<T>;
  const int64_t count = args.samples();
  const int64_t padded = pad_to_vector<T>(count);
  const T* logits = args.weights + query_head * count;
  if (count != padded) {
    std::memcpy(weights, logits, count * sizeof(T));
    std::fill(weights + count, weights + padded, -std::numeric_limits<T>::infinity());
    logits = weights;
  }
  softmax<V>(logits, padded, weights);
}

// The levels [begin, end) of a head, and which of its samples belong to them.
template <typename T>
struct LevelRange {
  LevelRange(const KernelArgs<T>& args, const TokenLayout<T>& all, int64_t begin, int64_t end)
      : begin(begin),
        end(end),
        first_sample(begin * args.points),
        num_samples((end - begin) * args.points),
        layout{
            all.width + first_sample, all.height + first_sample, all.pitch + first_sample, all.origin + first_sample} {}

  int64_t begin;
  int64_t end;
  int64_t first_sample;
  int64_t num_samples;
  TokenLayout<T> layout;
};

// The samples of consecutive queries of one head are too far apart in memory for the hardware prefetcher.
template <typename T>
ATTNZOO_INLINE void prefetch_samples(const KernelArgs<T>& args, int64_t query_head, const LevelRange<T>& range) {
  const int64_t first = query_head * args.samples() + range.first_sample;
  prefetch(args.locations + 2 * first, 2 * range.num_samples);
  prefetch(args.weights + first, range.num_samples);
}

// The inputs of `compute_footprints` that are not read directly from the tensors. The arrays are padded, so that a
// vector can be stored at any sample. `weights` comes last because it always holds the samples of all levels.
template <typename T>
struct Staging {
  Staging(T* memory, int64_t padded)
      : size(padded + pad_to_max_vector<T>(1)),
        locations(memory + 4 * size),
        reference{memory, memory + size},
        scale{memory + 2 * size, memory + 3 * size},
        weights(memory + 6 * size) {}

  int64_t size;
  T* locations;
  T* reference[2];  // position in pixels = reference + scale · offset, for x and y
  T* scale[2];
  T* weights;
};

// Sets `count` elements to x, and up to three more.
template <typename T>
ATTNZOO_INLINE void fill(T* to, int64_t count, T x) {
  using V = ChunkVector<T, 4>;
  for (int64_t i = 0; i < count; i += kLanes<V>) {
    store(to + i, broadcast<V>(x));
  }
}

// Loads the reference points or boxes of a query. Offsets are in pixels or, with a box, in units of half its size
// divided by the number of points.
template <typename T>
ATTNZOO_INLINE void load_references(
    const KernelArgs<T>& args, int64_t query, const LevelRange<T>& range, const Staging<T>& staging) {
  const T* reference = args.references + (query * args.num_levels + range.begin) * args.reference_size;
  const T per_point = T(0.5) / static_cast<T>(args.points);
  int64_t i = 0;
  for (int64_t l = range.begin; l < range.end; ++l, i += args.points, reference += args.reference_size) {
    const T sizes[2] = {static_cast<T>(args.levels[l].width), static_cast<T>(args.levels[l].height)};
    for (int axis = 0; axis < 2; ++axis) {
      const T center = reference[axis] * sizes[axis] - T(0.5);
      const T scale = args.reference_size == 4 ? reference[2 + axis] * sizes[axis] * per_point : T(1);
      fill(staging.reference[axis] + i, args.points, center);
      fill(staging.scale[axis] + i, args.points, scale);
    }
  }
}

// The footprints of one query and head for a range of levels. `query` is an index over all images.
template <bool kPacked, typename T>
ATTNZOO_INLINE void compute_footprints(
    const KernelArgs<T>& args,
    int64_t query,
    int64_t head,
    const LevelRange<T>& range,
    T* memory,
    const Footprints<T>& footprints) {
  using V = Simd<T>;
  const int64_t query_head = query * args.heads + head;
  const int64_t first = query_head * args.samples() + range.first_sample;
  const Staging<T> staging(memory, footprints.padded);
  const T* locations =
      with_zero_padding(args.locations + 2 * first, 2 * range.num_samples, 2 * footprints.padded, staging.locations);
  const T* weights = staging.weights + range.first_sample;
  if (args.references) {
    softmax_weights(args, query_head, staging.weights);
    load_references(args, query, range, staging);
  } else {
    weights = with_zero_padding(args.weights + first, range.num_samples, footprints.padded, staging.weights);
  }
  for (int64_t i = 0; i < footprints.padded; i += kLanes<V>) {
    V x, y;
    load_interleaved2(locations + 2 * i, x, y);
    V column, row;
    if (args.references) {
      column = x * load<V>(staging.scale[0] + i) + load<V>(staging.reference[0] + i);
      row = y * load<V>(staging.scale[1] + i) + load<V>(staging.reference[1] + i);
    } else {
      column = x * load<V>(range.layout.width + i) - T(0.5);
      row = y * load<V>(range.layout.height + i) - T(0.5);
    }
    compute_footprint<kPacked>(range.layout, i, column, row, load<V>(weights + i), footprints);
  }
}

}  // namespace attnzoo::ms_deform_attn::ATTNZOO_ISA

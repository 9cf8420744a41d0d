// From sampling locations, or from references, offsets and logits, to the tokens that are read and their shares, a
// vector of samples at a time.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "../common/simd_math.h"
#include "cpu_interface.h"

namespace attnzoo::ms_deform_attn::ATTNZOO_ISA {

using namespace attnzoo::ATTNZOO_ISA;

// The samples of one query and head; corner k lies (k & 1) to the right of and (k >> 1) below the first.
template <typename T>
struct Footprints {
  int64_t padded;    // samples, rounded up to whole vectors
  Token<T>* tokens;  // in a map that of corner 0; in value those of corner k at k * padded, -1 off the map
  T* shares;         // of corner k at k * padded, attention weight included
  T* fx;             // distances to the left column and the top row
  T* fy;
  T* weights;  // 0 for a sample that touches no pixel
};

// Whole vectors that hold `count` numbers, in numbers.
template <typename T>
ATTNZOO_INLINE int64_t padded_count(int64_t count) {
  return (count + kWidest<T> - 1) / kWidest<T> * kWidest<T>;
}

// What a thread's scratch memory holds; `workspace_size` numbers before the map.
template <typename T>
struct Workspace {
  Workspace(const Call<T>& call, T* scratch)
      : row(scratch),
        zeros(row + whole_vectors<T>(call.map_channels())),
        nowhere(zeros + whole_vectors<T>(call.map_channels())),
        products(nowhere + whole_vectors<T>(call.map_channels())),
        staging(products + 4 * whole_vectors<T>(call.samples())),
        tile(staging + kStagingSize * (whole_vectors<T>(call.samples()) + whole_vectors<T>(1))),
        map(scratch + workspace_size(call)) {}

  T* row;       // of a query: its output, or the gradient of it
  T* zeros;     // a row of zeros
  T* nowhere;   // a row that nobody reads
  T* products;  // four per sample
  T* staging;   // kStagingSize per sample
  T* tile;      // footprints
  T* map;

  // The footprints of query t of a tile, `count` samples each.
  ATTNZOO_INLINE Footprints<T> footprints(int64_t t, int64_t count) const {
    static_assert(sizeof(Token<T>) == sizeof(T));
    const int64_t padded = padded_count<T>(count);
    T* memory = tile + t * kFootprintSize * padded;
    return {
        padded,
        reinterpret_cast<Token<T>*>(memory),
        memory + 4 * padded,
        memory + 8 * padded,
        memory + 9 * padded,
        memory + 10 * padded};
  }
};

// Corners in a map need no case: off the map lies the border, and a sample that touches no pixel is sent to four
// zeros, where the border below its level begins and at the level's end.
template <typename V>
ATTNZOO_INLINE void place_in_map(
    const Mask<V>& touches,
    const V& height,
    const Mask<V>& pitch,
    const Mask<V>& origin,
    int64_t i,
    const Mask<V>& left,
    const Mask<V>& top,
    const Footprints<Element<V>>& at) {
  const Mask<V> below = __builtin_convertvector(height, Mask<V>);
  store(at.tokens + i, origin + (touches ? top : below) * pitch + (touches ? left : Mask<V>{} - 1));
}

template <typename V>
ATTNZOO_INLINE void place_in_value(
    const Mask<V>& on_map,
    const Mask<V>& token,
    int k,
    int64_t i,
    const V& share,
    const Footprints<Element<V>>& at) {
  store(at.tokens + k * at.padded + i, on_map ? token : Mask<V>{} - 1);
  store(at.shares + k * at.padded + i, on_map ? share : V{});
}

// A vector of samples at (column, row) in pixels, pixel centres at integers. As `locate` in bilinear.h, without
// branches: a NaN fails every comparison, and nothing that fails them is converted to an integer.
template <bool kInMap, typename V>
ATTNZOO_INLINE void place(
    const SampleLevels<Element<V>>& levels,
    int64_t i,
    const V& column,
    const V& row,
    const V& weight,
    const Footprints<Element<V>>& at) {
  using I = Mask<V>;
  const V width = load<V>(levels.width + i);
  const V height = load<V>(levels.height + i);
  const I pitch = load<I>(levels.pitch + i);
  const I origin = load<I>(levels.origin + i);
  const I touches = (column > -1) & (column < width) & (row > -1) & (row < height);
  const V x = touches ? column : V{};
  const V y = touches ? row : V{};
  const I left = floor_to_integer(x);
  const I top = floor_to_integer(y);
  const V fx = x - __builtin_convertvector(left, V);
  const V fy = y - __builtin_convertvector(top, V);
  const V masked = touches ? weight : V{};
  const V upper = masked * (1 - fy);
  const V lower = masked * fy;
  const V shares[4] = {upper * (1 - fx), upper * fx, lower * (1 - fx), lower * fx};
  store(at.fx + i, fx);
  store(at.fy + i, fy);
  store(at.weights + i, masked);
  if constexpr (kInMap) {
    place_in_map<V>(touches, height, pitch, origin, i, left, top, at);
    for (int k = 0; k < 4; ++k) {
      store(at.shares + k * at.padded + i, shares[k]);
    }
  } else {
    const I on_map[4] = {
        touches & (x >= 0) & (y >= 0),
        touches & (x < width - 1) & (y >= 0),
        touches & (x >= 0) & (y < height - 1),
        touches & (x < width - 1) & (y < height - 1)};
    const I first = origin + top * pitch + left;
    for (int k = 0; k < 4; ++k) {
      place_in_value<V>(on_map[k], first + (k & 1) + (k >> 1) * pitch, k, i, shares[k], at);
    }
  }
}

// `count` numbers that can be read in whole vectors: where they lie, or else copied with zeros after them.
template <typename T>
ATTNZOO_INLINE const T* in_whole_vectors(const T* from, int64_t count, int64_t padded_count, T* copy) {
  if (count == padded_count) {
    return from;
  }
  std::memcpy(copy, from, count * sizeof(T));
  std::memset(copy + count, 0, (padded_count - count) * sizeof(T));
  return copy;
}

template <typename T>
ATTNZOO_INLINE void prefetch(const T* from, int64_t count) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += line) {
    __builtin_prefetch(from + i);
  }
}

// The softmax over all samples of a query and head, in whole vectors.
template <typename T>
ATTNZOO_INLINE void weigh(const Call<T>& call, int64_t item, T* weights) {
  using V = Vector<T, kWidest<T>>;
  const int64_t count = call.samples();
  const int64_t padded = padded_count<T>(count);
  const T* scores = call.scores + item * count;
  if (count != padded) {
    std::memcpy(weights, scores, count * sizeof(T));
    std::fill(weights + count, weights + padded, -std::numeric_limits<T>::infinity());
    scores = weights;
  }
  softmax<V>(scores, padded, weights);
}

// Levels [begin, end) of a head, and their samples among all of its samples.
template <typename T>
struct LevelRange {
  LevelRange(const Call<T>& call, const SampleLevels<T>& all, int64_t begin, int64_t end)
      : begin(begin),
        end(end),
        skipped(begin * call.points),
        count((end - begin) * call.points),
        levels{all.width + skipped, all.height + skipped, all.pitch + skipped, all.origin + skipped} {}

  int64_t begin;
  int64_t end;
  int64_t skipped;
  int64_t count;
  SampleLevels<T> levels;
};

// Queries of one head lie too far apart for the machine to foresee: their samples are asked for ahead of time.
template <typename T>
ATTNZOO_INLINE void prefetch_samples(const Call<T>& call, int64_t item, const LevelRange<T>& range) {
  const int64_t first = item * call.samples() + range.skipped;
  prefetch(call.places + 2 * first, 2 * range.count);
  prefetch(call.scores + first, range.count);
}

// Staging memory, in arrays that can be written a whole vector beyond their end. The weights come last, because they
// may belong to more samples.
template <typename T>
struct Staging {
  Staging(T* memory, int64_t padded)
      : size(padded + whole_vectors<T>(1)),
        places(memory + 4 * size),
        origin{memory, memory + size},
        unit{memory + 2 * size, memory + 3 * size},
        weights(memory + 6 * size) {}

  int64_t size;
  T* places;
  T* origin[2];  // where offsets are counted from, x and y in pixels
  T* unit[2];    // what they are counted in
  T* weights;
};

// Writes `count` numbers and up to three more.
template <typename T>
ATTNZOO_INLINE void fill(T* to, int64_t count, T x) {
  using V = ChunkVector<T, 4>;
  for (int64_t i = 0; i < count; i += kLanes<V>) {
    store(to + i, broadcast<V>(x));
  }
}

template <typename T>
ATTNZOO_INLINE void refer(const Call<T>& call, int64_t query, const LevelRange<T>& range, const Staging<T>& staging) {
  const T* reference = call.references + (query * call.num_levels + range.begin) * call.reference_size;
  const T per_point = T(0.5) / static_cast<T>(call.points);
  int64_t i = 0;
  for (int64_t l = range.begin; l < range.end; ++l, i += call.points, reference += call.reference_size) {
    const T sizes[2] = {static_cast<T>(call.levels[l].width), static_cast<T>(call.levels[l].height)};
    for (int axis = 0; axis < 2; ++axis) {
      const T origin = reference[axis] * sizes[axis] - T(0.5);
      const T unit = call.reference_size == 4 ? reference[2 + axis] * sizes[axis] * per_point : T(1);
      fill(staging.origin[axis] + i, call.points, origin);
      fill(staging.unit[axis] + i, call.points, unit);
    }
  }
}

// The samples of some levels of a query, counted over all images, and head.
template <bool kInMap, typename T>
ATTNZOO_INLINE void place_samples(
    const Call<T>& call,
    int64_t query,
    int64_t head,
    const LevelRange<T>& range,
    T* memory,
    const Footprints<T>& at) {
  using V = Vector<T, kWidest<T>>;
  const int64_t item = query * call.heads + head;
  const int64_t first = item * call.samples() + range.skipped;
  const Staging<T> staging(memory, at.padded);
  const T* places = in_whole_vectors(call.places + 2 * first, 2 * range.count, 2 * at.padded, staging.places);
  const T* weights = staging.weights + range.skipped;
  if (call.references) {
    weigh(call, item, staging.weights);
    refer(call, query, range, staging);
  } else {
    weights = in_whole_vectors(call.scores + first, range.count, at.padded, staging.weights);
  }
  for (int64_t i = 0; i < at.padded; i += kLanes<V>) {
    V x, y;
    load_pairs(places + 2 * i, x, y);
    V column, row;
    if (call.references) {
      column = x * load<V>(staging.unit[0] + i) + load<V>(staging.origin[0] + i);
      row = y * load<V>(staging.unit[1] + i) + load<V>(staging.origin[1] + i);
    } else {
      column = x * load<V>(range.levels.width + i) - T(0.5);
      row = y * load<V>(range.levels.height + i) - T(0.5);
    }
    place<kInMap>(range.levels, i, column, row, load<V>(weights + i), at);
  }
}

}  // namespace attnzoo::ms_deform_attn::ATTNZOO_ISA

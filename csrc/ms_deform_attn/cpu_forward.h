// Output of multi-scale deformable attention: weighted sums of the corners of all samples.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu_footprints.h"
#include "cpu_packed_head.h"

namespace attnzoo::ms_deform_attn::ATTNZOO_ISA {

// Reads corners from a map.
template <typename T>
struct MapRows {
  using Stored = T;
  const Map<T>& map;
  const SampleLevels<T>& levels;

  ATTNZOO_INLINE void corners(const Footprints<T>& at, int64_t i, const T* (&rows)[4]) const {
    rows[0] = map.row(at.tokens[i]);
    rows[1] = rows[0] + map.stride;
    rows[2] = rows[0] + levels.pitch[i] * map.stride;
    rows[3] = rows[2] + map.stride;
  }
};

// Reads corners where they lie in value.
template <typename T, typename E>
struct ValueRows {
  using Stored = E;
  const E* value;
  int64_t between;
  const E* zeros;  // read in place of corners that are off the map

  ATTNZOO_INLINE void corners(const Footprints<T>& at, int64_t i, const E* (&rows)[4]) const {
    for (int k = 0; k < 4; ++k) {
      const int64_t token = at.tokens[k * at.padded + i];
      rows[k] = token < 0 ? zeros : value + token * between;
    }
  }
};

// Sums of kChannels over all samples. Corners are added up apart from each other where registers allow, so that no
// addition waits for the one before.
template <int kChannels, typename T, typename Rows>
ATTNZOO_INLINE void gather(const Rows& source, const Footprints<T>& at, int64_t count, int64_t channel, T* output) {
  using V = ChunkVector<T, kChannels>;
  constexpr int vectors = kChannels / kLanes<V>;
  constexpr int chains = vectors <= 2 ? 4 : vectors <= 4 ? 2 : 1;
  V sums[vectors][chains] = {};
  for (int64_t i = 0; i < count; ++i) {
    const typename Rows::Stored* rows[4];
    source.corners(at, i, rows);
    for (int k = 0; k < 4; ++k) {
      const V share = broadcast<V>(at.shares[k * at.padded + i]);
      for (int v = 0; v < vectors; ++v) {
        sums[v][k % chains] += share * load_as<V>(rows[k] + channel + v * kLanes<V>);
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

// The queries at the positions [begin, end) of an image, for one head.
template <bool kInMap, typename T, typename E, typename Rows>
void forward_queries(
    const Call<T>& call,
    int64_t image,
    int64_t head,
    int64_t begin,
    int64_t end,
    const Rows& source,
    const Workspace<T>& workspace) {
  const LevelRange<T> range(call, kInMap ? call.in_map : call.in_value, 0, call.num_levels);
  Footprints<T> tile[kTile];
  for (int64_t t = 0; t < kTile; ++t) {
    tile[t] = workspace.footprints(t, call.samples());
  }
  const int64_t offset = image * call.queries;
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t queries = std::min(kTile, end - first);
    for (int64_t ahead = first + kAhead; ahead < std::min(first + kAhead + kTile, end); ++ahead) {
      prefetch_samples(call, (offset + call.query_at(ahead)) * call.heads + head, range);
    }
    for (int64_t t = 0; t < queries; ++t) {
      place_samples<kInMap>(call, offset + call.query_at(first + t), head, range, workspace.staging, tile[t]);
    }
    for (int64_t t = 0; t < queries; ++t) {
      for_chunks(call.map_channels(), [&](auto size, int64_t channel) __attribute__((always_inline)) {
        gather<size.value>(source, tile[t], range.count, channel, workspace.row);
      });
      const int64_t item = (offset + call.query_at(first + t)) * call.heads + head;
      write_row(workspace.row, call.head_dim, static_cast<E*>(call.output) + item * call.head_dim);
    }
  }
}

template <typename T>
Map<T> map_of(const Call<T>& call, int64_t head) {
  return {call.maps + (head - call.first_head) * call.map_size(0, call.num_levels, 1), 0, call.map_channels()};
}

template <typename T>
void fill(const Call<T>& call, int64_t begin, int64_t end) {
  const int64_t rows = call.rows(0, call.num_levels);
  with_storage(call, [&](auto stored) {
    while (begin < end) {
      const int64_t head = call.first_head + begin / rows;
      const int64_t first = begin % rows;
      const int64_t last = std::min(rows, first + end - begin);
      fill_map<T, decltype(stored)>(call, head / call.heads, head % call.heads, 0, first, last, map_of(call, head));
      begin += last - first;
    }
  });
}

template <typename T, typename E>
void forward_as(const Call<T>& call, int64_t begin, int64_t end, T* scratch) {
  const Workspace<T> workspace(call, scratch);
  std::memset(workspace.zeros, 0, call.map_channels() * sizeof(T));
  while (begin < end) {
    const int64_t image = begin / call.queries / call.heads;
    const int64_t head = begin / call.queries % call.heads;
    const int64_t first = begin % call.queries;
    const int64_t last = std::min(call.queries, first + end - begin);
    if (call.maps) {
      const Map<T> map = map_of(call, image * call.heads + head);
      forward_queries<true, T, E>(call, image, head, first, last, MapRows<T>{map, call.in_map}, workspace);
    } else {
      const ValueRows<T, E> source{
          static_cast<const E*>(call.value) + call.value_at(image, head),
          call.value_strides[1],
          reinterpret_cast<const E*>(workspace.zeros)};
      forward_queries<false, T, E>(call, image, head, first, last, source, workspace);
    }
    begin += last - first;
  }
}

template <typename T>
void forward(const Call<T>& call, int64_t begin, int64_t end, T* scratch) {
  with_storage(call, [&](auto stored) { forward_as<T, decltype(stored)>(call, begin, end, scratch); });
}

}  // namespace attnzoo::ms_deform_attn::ATTNZOO_ISA

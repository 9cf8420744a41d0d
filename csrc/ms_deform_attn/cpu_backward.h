// Gradients of multi-scale deformable attention. A thread has the levels of an image's head to itself, so nothing is
// added to by two threads, and every sum has its order whatever the number of threads.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu_footprints.h"
#include "cpu_packed_head.h"

namespace attnzoo::ms_deform_attn::ATTNZOO_ISA {

// Corners and their gradients in a map, where they lie side by side.
template <typename T>
struct MapGradients {
  const Map<T>& map;
  const SampleLevels<T>& levels;
  int64_t channels;

  ATTNZOO_INLINE void corners(const Footprints<T>& at, int64_t i, const T* (&rows)[4], T* (&grads)[4]) const {
    T* const first = map.row(at.tokens[i]);
    T* const below = first + levels.pitch[i] * map.stride;
    T* const all[4] = {first, first + map.stride, below, below + map.stride};
    for (int k = 0; k < 4; ++k) {
      rows[k] = all[k];
      grads[k] = all[k] + channels;
    }
  }
};

// Corners and their gradients where value and its gradient lie.
template <typename T>
struct ValueGradients {
  const T* value;
  T* grad_value;
  int64_t value_stride;
  int64_t grad_stride;
  const T* zeros;  // read in place of corners that are off the map
  T* nowhere;      // written in place of their gradients

  ATTNZOO_INLINE void corners(const Footprints<T>& at, int64_t i, const T* (&rows)[4], T* (&grads)[4]) const {
    for (int k = 0; k < 4; ++k) {
      const int64_t token = at.tokens[k * at.padded + i];
      rows[k] = token < 0 ? zeros : value + token * value_stride;
      grads[k] = token < 0 ? nowhere : grad_value + token * grad_stride;
    }
  }
};

// Adds to the gradients of all corners, and to `products` Σ_d grad[d] · value[corner][d], four for each sample.
template <int kChannels, typename T, typename Rows>
ATTNZOO_INLINE void scatter(
    const Rows& source, const Footprints<T>& at, int64_t count, int64_t channel, const T* grad, T* products) {
  using V = ChunkVector<T, kChannels>;
  constexpr int vectors = kChannels / kLanes<V>;
  V slope[vectors];
  for (int v = 0; v < vectors; ++v) {
    slope[v] = load<V>(grad + channel + v * kLanes<V>);
  }
  for (int64_t i = 0; i < count; ++i) {
    const T* rows[4];
    T* grads[4];
    source.corners(at, i, rows, grads);
    V sums[4];
    for (int k = 0; k < 4; ++k) {
      const V share = broadcast<V>(at.shares[k * at.padded + i]);
      sums[k] = V{};
      for (int v = 0; v < vectors; ++v) {
        sums[k] += slope[v] * load<V>(rows[k] + channel + v * kLanes<V>);
        T* const to = grads[k] + channel + v * kLanes<V>;
        store(to, load<V>(to) + share * slope[v]);
      }
    }
    add_sums(products + 4 * i, sums);
  }
}

// From products to the gradients by weights and by places: sampling locations, or pixels where there are references.
// There must be room for whole vectors.
template <typename T>
ATTNZOO_INLINE void differentiate(
    const Call<T>& call,
    const SampleLevels<T>& levels,
    const Footprints<T>& at,
    const T* products,
    T* to_places,
    T* to_weights) {
  using V = Vector<T, kWidest<T>>;
  for (int64_t i = 0; i < at.padded; i += kLanes<V>) {
    V corner[4];
    load_quadruples(products + 4 * i, corner);
    const V fx = load<V>(at.fx + i);
    const V fy = load<V>(at.fy + i);
    const V weight = load<V>(at.weights + i);
    const V upper = corner[0] + fx * (corner[1] - corner[0]);
    const V lower = corner[2] + fx * (corner[3] - corner[2]);
    V by_x = weight * ((1 - fy) * (corner[1] - corner[0]) + fy * (corner[3] - corner[2]));
    V by_y = weight * (lower - upper);
    if (!call.references) {
      by_x *= load<V>(levels.width + i);
      by_y *= load<V>(levels.height + i);
    }
    store(to_weights + i, upper + fy * (lower - upper));
    store_pairs(to_places + 2 * i, by_x, by_y);
  }
}

// The samples of some levels of one query.
template <typename T, typename E, typename Rows>
ATTNZOO_INLINE void backward_query(
    const Call<T>& call,
    int64_t item,
    const LevelRange<T>& range,
    const Rows& source,
    const Footprints<T>& at,
    const Workspace<T>& workspace) {
  copy_row(static_cast<const E*>(call.grad_output) + item * call.head_dim, call.head_dim, workspace.row);
  std::memset(workspace.products, 0, 4 * at.padded * sizeof(T));
  for_chunks(call.map_channels(), [&](auto size, int64_t channel) __attribute__((always_inline)) {
    scatter<size.value>(source, at, range.count, channel, workspace.row, workspace.products);
  });
  const int64_t first = item * call.samples() + range.skipped;
  const bool whole = range.count == at.padded;
  T* const to_places = whole ? call.grad_places + 2 * first : workspace.staging;
  T* const to_weights = whole ? call.grad_scores + first : workspace.staging + 2 * at.padded;
  differentiate(call, range.levels, at, workspace.products, to_places, to_weights);
  if (!whole) {
    std::memcpy(call.grad_places + 2 * first, to_places, 2 * range.count * sizeof(T));
    std::memcpy(call.grad_scores + first, to_weights, range.count * sizeof(T));
  }
}

template <bool kInMap, typename T, typename E, typename Rows>
void backward_queries(
    const Call<T>& call,
    int64_t image,
    int64_t head,
    const LevelRange<T>& range,
    const Rows& source,
    const Workspace<T>& workspace) {
  Footprints<T> tile[kTile];
  for (int64_t t = 0; t < kTile; ++t) {
    tile[t] = workspace.footprints(t, range.count);
  }
  const int64_t offset = image * call.queries;
  for (int64_t first = 0; first < call.queries; first += kTile) {
    const int64_t queries = std::min(kTile, call.queries - first);
    for (int64_t ahead = first + kAhead; ahead < std::min(first + kAhead + kTile, call.queries); ++ahead) {
      const int64_t item = (offset + call.query_at(ahead)) * call.heads + head;
      prefetch_samples(call, item, range);
      prefetch(static_cast<const E*>(call.grad_output) + item * call.head_dim, call.head_dim);
    }
    for (int64_t t = 0; t < queries; ++t) {
      place_samples<kInMap>(call, offset + call.query_at(first + t), head, range, workspace.staging, tile[t]);
    }
    for (int64_t t = 0; t < queries; ++t) {
      const int64_t item = (offset + call.query_at(first + t)) * call.heads + head;
      backward_query<T, E>(call, item, range, source, tile[t], workspace);
    }
  }
}

template <typename T, typename E>
void backward_in_map(
    const Call<T>& call, int64_t image, int64_t head, const LevelRange<T>& range, const Workspace<T>& workspace) {
  const Map<T> map{workspace.map, call.levels[range.begin].first, 2 * call.map_channels()};
  fill_map<T, E>(call, image, head, range.begin, 0, call.rows(range.begin, range.end), map);
  const MapGradients<T> source{map, range.levels, call.map_channels()};
  backward_queries<true, T, E>(call, image, head, range, source, workspace);
  write_gradients<T, E>(call, image, head, range.begin, range.end, map);
}

// To a gradient of value that is zero.
template <typename T>
void backward_in_value(
    const Call<T>& call, int64_t image, int64_t head, const LevelRange<T>& range, const Workspace<T>& workspace) {
  const ValueGradients<T> source{
      static_cast<const T*>(call.value) + call.value_at(image, head),
      static_cast<T*>(call.grad_value) + call.grad_at(image, head),
      call.value_strides[1],
      call.grad_stride(),
      workspace.zeros,
      workspace.nowhere};
  backward_queries<false, T, T>(call, image, head, range, source, workspace);
}

template <typename T>
void backward(const Call<T>& call, int64_t begin, int64_t end, T* scratch) {
  const Workspace<T> workspace(call, scratch);
  std::memset(workspace.zeros, 0, call.map_channels() * sizeof(T));
  std::memset(workspace.nowhere, 0, call.map_channels() * sizeof(T));
  const int64_t levels = call.num_levels / call.level_groups;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task % call.level_groups * levels;
    const int64_t image = task / call.level_groups / call.heads;
    const int64_t head = task / call.level_groups % call.heads;
    if (call.backward_in_map()) {
      const LevelRange<T> range(call, call.in_map, first, first + levels);
      with_storage(call, [&](auto stored) {
        backward_in_map<T, decltype(stored)>(call, image, head, range, workspace);
      });
    } else {
      const LevelRange<T> range(call, call.in_value, first, first + levels);
      backward_in_value(call, image, head, range, workspace);
    }
  }
}

}  // namespace attnzoo::ms_deform_attn::ATTNZOO_ISA

// One head's tokens copied together, in the type computed in and with a border of zeros around every level.
//
// In value, a head's tokens lie M·D apart, so that they share few sets of the caches; in a map they are neighbours.
// The border makes all corners of a sample readable.
#pragma once

#include <algorithm>
#include <cstring>

#include "../common/simd_half.h"
#include "cpu_interface.h"

namespace attnzoo::ms_deform_attn::ATTNZOO_ISA {

using namespace attnzoo::ATTNZOO_ISA;

// Calls `body` with a number of channels that the compiler knows and the first of them, until all are done.
template <typename Body>
ATTNZOO_INLINE void for_chunks(int64_t channels, const Body& body) {
  int64_t channel = 0;
  const auto chunk = [&](auto size) __attribute__((always_inline)) {
    body(size, channel);
    channel += size.value;
  };
  while (channels - channel >= 64) {
    chunk(std::integral_constant<int, 64>());
  }
  if (channels & 32) {
    chunk(std::integral_constant<int, 32>());
  }
  if (channels & 16) {
    chunk(std::integral_constant<int, 16>());
  }
  if (channels & 8) {
    chunk(std::integral_constant<int, 8>());
  }
  if (channels & 4) {
    chunk(std::integral_constant<int, 4>());
  }
}

// The channels that are no multiple of four go through four numbers that can be read and written whole.
template <typename T, typename E>
ATTNZOO_INLINE void copy_row(const E* from, int64_t channels, T* to) {
  const auto copy = [&](auto size, const E* source, T* target) __attribute__((always_inline)) {
    using V = ChunkVector<T, size.value>;
    for (int i = 0; i < size.value; i += kLanes<V>) {
      store(target + i, load_as<V>(source + i));
    }
  };
  for_chunks(channels, [&](auto size, int64_t channel) __attribute__((always_inline)) {
    copy(size, from + channel, to + channel);
  });
  if (const int64_t rest = channels % 4) {
    E four[4] = {};
    std::memcpy(four, from + channels - rest, rest * sizeof(E));
    copy(std::integral_constant<int, 4>(), four, to + channels - rest);
  }
}

template <typename T, typename E>
ATTNZOO_INLINE void write_row(const T* from, int64_t channels, E* to) {
  const auto write = [&](auto size, const T* source, E* target) __attribute__((always_inline)) {
    using V = ChunkVector<T, size.value>;
    for (int i = 0; i < size.value; i += kLanes<V>) {
      store_as(target + i, load<V>(source + i));
    }
  };
  for_chunks(channels, [&](auto size, int64_t channel) __attribute__((always_inline)) {
    write(size, from + channel, to + channel);
  });
  if (const int64_t rest = channels % 4) {
    E four[4];
    write(std::integral_constant<int, 4>(), from + channels - rest, four);
    std::memcpy(to + channels - rest, four, rest * sizeof(E));
  }
}

// Calls `body` with a number of the type that value is stored in.
template <typename T, typename Body>
void with_storage(const Call<T>& call, const Body& body) {
  if constexpr (std::is_same_v<T, float>) {
    if (call.storage == Storage::kBFloat16) {
      return body(BFloat16());
    }
    if (call.storage == Storage::kHalf) {
      return body(Half());
    }
  }
  body(T());
}

// `stride` numbers per token: its channels and, for the backward pass, as many for their gradients.
template <typename T>
struct Map {
  T* rows;
  int64_t first;  // token that the map begins with
  int64_t stride;

  T* row(int64_t token) const {
    return rows + (token - first) * stride;
  }
  void clear(int64_t token, int64_t count) const {
    std::memset(row(token), 0, count * stride * sizeof(T));
  }
};

// The rows [begin, end) of an image's head, counted from the first row of `first_level` on: with the borders around
// them, and gradients of zero.
template <typename T, typename E>
void fill_map(
    const Call<T>& call,
    int64_t image,
    int64_t head,
    int64_t first_level,
    int64_t begin,
    int64_t end,
    const Map<T>& map) {
  const int64_t between = call.value_strides[1];
  const E* value = static_cast<const E*>(call.value) + call.value_at(image, head);
  int64_t above = 0;  // rows of the levels before
  for (int64_t l = first_level; above < end; above += call.levels[l++].height) {
    const MapLevel& level = call.levels[l];
    const int64_t first = std::max<int64_t>(0, begin - above);
    const int64_t last = std::min(level.height, end - above);
    if (first >= last) {
      continue;
    }
    if (first == 0) {
      map.clear(level.first, level.pitch() + 1);
    }
    const E* from = value + (level.start + first * level.width) * between;
    int64_t token = level.first + (first + 1) * level.pitch() + 1;
    for (int64_t y = first; y < last; ++y) {
      for (int64_t x = 0; x < level.width; ++x, ++token, from += between) {
        T* row = map.row(token);
        copy_row(from, call.head_dim, row);
        std::memset(row + call.map_channels(), 0, (map.stride - call.map_channels()) * sizeof(T));
      }
      map.clear(token, 2);
      token += 2;
    }
    if (last == level.height) {
      map.clear(token, level.end() - token);
    }
  }
}

// The gradients of the levels [begin, end) moved to where they belong.
template <typename T, typename E>
void write_gradients(const Call<T>& call, int64_t image, int64_t head, int64_t begin, int64_t end, const Map<T>& map) {
  const int64_t between = call.grad_stride();
  E* grad_value = static_cast<E*>(call.grad_value) + call.grad_at(image, head);
  for (int64_t l = begin; l < end; ++l) {
    const MapLevel& level = call.levels[l];
    E* to = grad_value + level.start * between;
    for (int64_t y = 0; y < level.height; ++y) {
      const T* row = map.row(level.first + (y + 1) * level.pitch() + 1) + call.map_channels();
      for (int64_t x = 0; x < level.width; ++x, row += map.stride, to += between) {
        write_row(row, call.head_dim, to);
      }
    }
  }
}

}  // namespace attnzoo::ms_deform_attn::ATTNZOO_ISA

// The packed head: a contiguous copy of the tokens of one head, in the compute type and with zero padding around every
// level.
//
// In value, consecutive tokens of a head are M·D elements apart and compete for a few cache sets. In a packed head they
// are adjacent. Thanks to the padding, the kernels can read all corners of a sample without bounds checks.
#pragma once

#include <algorithm>
#include <cstring>

#include "../common/simd_half.h"
#include "cpu_interface.h"

namespace attnzoo::ms_deform_attn::ATTNZOO_ISA {

using namespace attnzoo::ATTNZOO_ISA;

template <typename T>
ATTNZOO_INLINE void prefetch(const T* from, int64_t count) {
  constexpr int64_t cache_line = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += cache_line) {
    __builtin_prefetch(from + i);
  }
}

// Splits the channels into chunks and calls body(size, first channel) for each; `size` is a std::integral_constant. A
// remainder of fewer than four channels is left out.
template <typename Body>
ATTNZOO_INLINE void for_channel_chunks(int64_t channels, const Body& body) {
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

// Copies the channels of a token and converts them from E, the dtype of value, to T. `to` has room for a multiple of
// four channels; those beyond `channels` become zero.
template <typename T, typename E>
ATTNZOO_INLINE void load_row(const E* from, int64_t channels, T* to) {
  const auto copy = [&](auto size, const E* source, T* target) __attribute__((always_inline)) {
    using V = ChunkVector<T, size.value>;
    for (int i = 0; i < size.value; i += kLanes<V>) {
      store(target + i, load_as<V>(source + i));
    }
  };
  for_channel_chunks(channels, [&](auto size, int64_t channel) __attribute__((always_inline)) {
    copy(size, from + channel, to + channel);
  });
  if (const int64_t remainder = channels % 4) {
    E padded[4] = {};
    std::memcpy(padded, from + channels - remainder, remainder * sizeof(E));
    copy(std::integral_constant<int, 4>(), padded, to + channels - remainder);
  }
}

// The inverse of `load_row`; writes exactly `channels` channels.
template <typename T, typename E>
ATTNZOO_INLINE void store_row(const T* from, int64_t channels, E* to) {
  const auto copy = [&](auto size, const T* source, E* target) __attribute__((always_inline)) {
    using V = ChunkVector<T, size.value>;
    for (int i = 0; i < size.value; i += kLanes<V>) {
      store_as(target + i, load<V>(source + i));
    }
  };
  for_channel_chunks(channels, [&](auto size, int64_t channel) __attribute__((always_inline)) {
    copy(size, from + channel, to + channel);
  });
  if (const int64_t remainder = channels % 4) {
    E padded[4];
    copy(std::integral_constant<int, 4>(), from + channels - remainder, padded);
    std::memcpy(to + channels - remainder, padded, remainder * sizeof(E));
  }
}

// kChannels channels of a row in registers.
template <int kChannels, typename T>
struct Channels {
  using V = ChunkVector<T, kChannels>;
  static constexpr int kCount = kChannels / kLanes<V>;

  ATTNZOO_INLINE explicit Channels(const T* from) {
    for (int v = 0; v < kCount; ++v) {
      vectors[v] = load<V>(from + v * kLanes<V>);
    }
  }

  V vectors[kCount];
};

// Calls `body` with a scalar of the dtype of value.
template <typename T, typename Body>
void dispatch_value_dtype(const KernelArgs<T>& args, const Body& body) {
  if constexpr (std::is_same_v<T, float>) {
    if (args.value_dtype == ValueDtype::kBFloat16) {
      return body(BFloat16());
    }
    if (args.value_dtype == ValueDtype::kHalf) {
      return body(Half());
    }
  }
  body(T());
}

// Each token has a row of token_stride elements: its channels and, in the backward pass, their gradients.
template <typename T>
struct PackedHead {
  T* data;
  int64_t first_token;  // index of the token at `data`
  int64_t token_stride;

  T* row(int64_t token) const {
    return data + (token - first_token) * token_stride;
  }
  void zero_fill(int64_t token, int64_t count) const {
    std::memset(row(token), 0, count * token_stride * sizeof(T));
  }
};

// Packs the rows of pixels [begin, end) of one head, counted from the first row of `first_level`. Writes the adjacent
// padding too, and sets gradients to zero.
template <typename T, typename E>
void pack_rows(
    const KernelArgs<T>& args,
    int64_t image,
    int64_t head,
    int64_t first_level,
    int64_t begin,
    int64_t end,
    const PackedHead<T>& packed) {
  const int64_t token_stride = args.value_strides[1];
  const E* value = static_cast<const E*>(args.value) + args.value_offset(image, head);
  int64_t level_begin = 0;  // first row of level l
  for (int64_t l = first_level; level_begin < end; level_begin += args.levels[l++].height) {
    const PackedLevel& level = args.levels[l];
    const int64_t first = std::max<int64_t>(0, begin - level_begin);
    const int64_t last = std::min(level.height, end - level_begin);
    if (first >= last) {
      continue;
    }
    if (first == 0) {
      packed.zero_fill(level.packed_start, level.pitch() + 1);
    }
    const E* from = value + (level.start + first * level.width) * token_stride;
    int64_t token = level.packed_start + (first + 1) * level.pitch() + 1;
    for (int64_t y = first; y < last; ++y) {
      for (int64_t x = 0; x < level.width; ++x, ++token, from += token_stride) {
        T* row = packed.row(token);
        load_row(from, args.head_dim, row);
        std::memset(row + args.padded_head_dim(), 0, (packed.token_stride - args.padded_head_dim()) * sizeof(T));
      }
      packed.zero_fill(token, 2);
      token += 2;
    }
    if (last == level.height) {
      packed.zero_fill(token, level.packed_end() - token);
    }
  }
}

// Copies the gradients of the levels [begin, end) to grad_value.
template <typename T, typename E>
void unpack_gradients(
    const KernelArgs<T>& args, int64_t image, int64_t head, int64_t begin, int64_t end, const PackedHead<T>& packed) {
  const int64_t token_stride = args.grad_token_stride();
  E* grad_value = static_cast<E*>(args.grad_value) + args.grad_value_offset(image, head);
  for (int64_t l = begin; l < end; ++l) {
    const PackedLevel& level = args.levels[l];
    E* to = grad_value + level.start * token_stride;
    for (int64_t y = 0; y < level.height; ++y) {
      const T* row = packed.row(level.packed_start + (y + 1) * level.pitch() + 1) + args.padded_head_dim();
      for (int64_t x = 0; x < level.width; ++x, row += packed.token_stride, to += token_stride) {
        store_row(row, args.head_dim, to);
      }
    }
  }
}

}  // namespace attnzoo::ms_deform_attn::ATTNZOO_ISA

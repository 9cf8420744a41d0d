// What the operator on CPU and its kernels, compiled once per instruction set, agree on.
#pragma once

#include <cstdint>
#include <type_traits>

namespace attnzoo::ms_deform_attn {

// How value, output and their gradients lie in memory: as the type computed in, or in two bytes.
enum class Storage { kFull, kBFloat16, kHalf };

// Tokens are counted in integers as wide as the numbers beside them, so that both fill the same vectors.
template <typename T>
using Token = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// Where a level lies in value, and in a map: one head's tokens in a row, every level with a border of zeros around it
// and two tokens of zeros after that.
struct MapLevel {
  int64_t height;
  int64_t width;
  int64_t start;  // index of the level's first token in value
  int64_t first;  // index of the first token of its border in a map

  int64_t pitch() const {
    return width + 2;
  }
  int64_t end() const {
    return first + (height + 2) * pitch() + 2;
  }
};

// The level of each sample of a query and head, sample by sample. Readable a whole vector beyond the last sample.
template <typename T>
struct SampleLevels {
  const T* width;
  const T* height;
  const Token<T>* pitch;   // tokens from one row to the next
  const Token<T>* origin;  // token of the first pixel
};

constexpr int64_t kVectorBytes = 64;  // the widest vector of any instruction set

template <typename T>
constexpr int64_t whole_vectors(int64_t count) {
  constexpr int64_t lanes = kVectorBytes / sizeof(T);
  return (count + lanes - 1) / lanes * lanes;
}

// One call in plain numbers and pointers to contiguous memory but for value.
template <typename T>
struct Call {
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
  int64_t queries;
  int64_t points;
  int64_t num_levels;
  const MapLevel* levels;
  SampleLevels<T> in_map;
  SampleLevels<T> in_value;

  const int64_t* order;  // the queries of an image in the order in which they are taken; null: as they come

  Storage storage;
  const void* value;     // (B, S, M, D), of which a token's channels lie together
  int64_t value_strides[3];
  T* maps;               // of the heads from first_head on, filled before `forward`; null: it reads value
  int64_t first_head;    // counted over all images
  // Sampling locations and attention weights or, with references, offsets and logits.
  const T* places;         // (B, Q, M, L, P, 2)
  const T* scores;         // (B, Q, M, L, P)
  const T* references;     // (B, Q, L, reference_size) or null
  int64_t reference_size;  // 2: points, 4: boxes
  void* output;            // (B, Q, M, D)

  const void* grad_output;  // (B, Q, M, D)
  void* grad_value;
  T* grad_places;  // with references by the places in pixels and by the weights, until `finish` has run
  T* grad_scores;
  T* grad_references;
  int64_t level_groups;  // 1: a thread takes all levels of a head; num_levels: one

  int64_t samples() const {
    return num_levels * points;
  }
  int64_t query_at(int64_t position) const {
    return order ? order[position] : position;
  }
  // Channels of a row of a map: a multiple of four, which is the smallest vector.
  int64_t map_channels() const {
    return (head_dim + 3) / 4 * 4;
  }
  // Numbers before an image's head.
  int64_t value_at(int64_t image, int64_t head) const {
    return image * value_strides[0] + head * value_strides[2];
  }
  // The gradient of value is contiguous.
  int64_t grad_stride() const {
    return heads * head_dim;
  }
  int64_t grad_at(int64_t image, int64_t head) const {
    return image * tokens * grad_stride() + head * head_dim;
  }
  // Rows of pixels of the levels [begin, end).
  int64_t rows(int64_t begin, int64_t end) const {
    int64_t count = 0;
    for (int64_t l = begin; l < end; ++l) {
      count += levels[l].height;
    }
    return count;
  }
  // Numbers in a map of the levels [begin, end).
  int64_t map_size(int64_t begin, int64_t end, int64_t rows_per_token) const {
    return whole_vectors<T>((levels[end - 1].end() - levels[begin].first) * map_channels() * rows_per_token);
  }
  // Copying a head together is worth it if its tokens are read several times over.
  bool read_often() const {
    return queries * samples() >= 2 * tokens;
  }
  // A row that is not made of vectors is read and written in a map only.
  bool whole_vectors_per_row() const {
    return head_dim % 4 == 0;
  }
  // The tokens of an only head lie together as they are.
  bool forward_in_map() const {
    return !whole_vectors_per_row() || (heads > 1 && read_often());
  }
  // Gradients in two bytes would lose what is added.
  bool backward_in_map() const {
    return !whole_vectors_per_row() || read_often() || storage != Storage::kFull;
  }
};

template <typename T>
struct Kernels {
  // The rows [begin, end) of the maps from `first_head` on, counted with the rows of a head's levels in a row.
  void (*fill)(const Call<T>&, int64_t begin, int64_t end);
  // Output of the queries at [begin, end), counted with the queries of an image's head in a row, in their order.
  void (*forward)(const Call<T>&, int64_t begin, int64_t end, T* scratch);
  // Gradients of tasks [begin, end); there is one per image, head and level group.
  void (*backward)(const Call<T>&, int64_t begin, int64_t end, T* scratch);
  // With references: their gradients and those of offsets and logits, of the queries [begin, end) of all images.
  void (*finish)(const Call<T>&, int64_t begin, int64_t end, T* scratch);
};

constexpr int64_t kTile = 4;        // queries whose footprints are computed together
constexpr int64_t kAhead = 2 * kTile;  // queries between asking for samples and using them
constexpr int64_t kFootprintSize = 11;  // numbers per sample
constexpr int64_t kStagingSize = 7;

// Numbers in the scratch memory of a thread, besides the map.
template <typename T>
int64_t workspace_size(const Call<T>& call) {
  return (kTile * kFootprintSize + 4) * whole_vectors<T>(call.samples()) +
         kStagingSize * (whole_vectors<T>(call.samples()) + whole_vectors<T>(1)) +
         3 * whole_vectors<T>(call.map_channels());
}

namespace baseline {
template <typename T>
Kernels<T> kernels();
}
namespace avx2 {
template <typename T>
Kernels<T> kernels();
}
namespace avx512 {
template <typename T>
Kernels<T> kernels();
}

}  // namespace attnzoo::ms_deform_attn

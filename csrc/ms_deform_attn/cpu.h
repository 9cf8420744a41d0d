// What the operator on CPU and its kernels, compiled once per instruction set, agree on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace attnzoo::ms_deform_attn {

// How value, output and their gradients lie in memory: as the type computed in, or in two bytes.
enum class Storage { kFull, kBFloat16, kHalf };

// Tokens are counted in integers as wide as the numbers beside them, so that both fill the same vectors.
template <typename T>
using Token = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// The level that each sample of a query and head lies in, sample by sample, for `Call::padded_samples` samples.
template <typename T>
struct SampleLevels {
  const T* width;
  const T* height;
  const Token<T>* columns;
  const Token<T>* rows;
  const Token<T>* start;
};

constexpr int64_t kVectorBytes = 64;  // the widest vector of any instruction set

template <typename T>
constexpr int64_t round_to_vectors(int64_t count) {
  constexpr int64_t lanes = kVectorBytes / sizeof(T);
  return (count + lanes - 1) / lanes * lanes;
}

// One call in plain numbers and pointers to contiguous memory.
template <typename T>
struct Call {
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
  int64_t queries;
  int64_t num_levels;
  int64_t points;
  SampleLevels<T> levels;

  const void* value;  // (B, S, M, D)
  Storage storage;
  // Either sampling locations and attention weights, or, with references, offsets and logits.
  const T* places;      // (B, Q, M, L, P, 2)
  const T* scores;      // (B, Q, M, L, P)
  const T* references;  // (B, Q, L, reference_size) or null
  int64_t reference_size;

  void* output;  // (B, Q, M, D)

  const void* grad_output;
  void* grad_value;
  T* grad_places;  // with references: by the pixel coordinates
  T* grad_scores;
  int64_t parts;          // threads that share an image's head
  const uint16_t* owner;  // the part that each token belongs to, for tokens + 1 of them

  int64_t samples() const {
    return num_levels * points;
  }
  int64_t padded_samples() const {
    return round_to_vectors<T>(samples());
  }
  bool usual_head_dim() const {
    return head_dim == 8 || head_dim == 16 || head_dim == 32 || head_dim == 64;
  }
  int64_t padded_head_dim() const {
    return usual_head_dim() ? head_dim : round_to_vectors<T>(head_dim);
  }
  // Copying an image's head together is worth it if each of its tokens is read several times.
  bool copy_pays(int64_t queries_of_head) const {
    return storage != Storage::kFull || !usual_head_dim() || queries_of_head * samples() >= tokens;
  }
};

constexpr int64_t kTile = 4;  // queries whose footprints are computed together

// Numbers that a thread needs for itself. First the map of one head, then what belongs to the queries in hand.
template <typename T>
int64_t map_size(const Call<T>& call, int64_t rows_per_token) {
  return round_to_vectors<T>((call.tokens + 1) * call.padded_head_dim() * rows_per_token);
}

template <typename T>
int64_t workspace_size(const Call<T>& call) {
  return kTile * 12 * call.padded_samples() + 12 * call.padded_samples() + 4 * round_to_vectors<T>(call.head_dim) + 64;
}

template <typename T>
struct Kernels {
  // Output of the queries of all images and heads, counted with the queries of one image's head in a row.
  void (*forward)(const Call<T>&, int64_t begin, int64_t end, T* scratch);
  // Gradients of `parts` parts of every image's head.
  void (*backward)(const Call<T>&, int64_t begin, int64_t end, T* scratch);
};

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

// The interface between cpu.cpp and the CPU kernels, which are compiled once per instruction set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace attnzoo::ms_deform_attn {

// Dtype of value, output and their gradients: the type T that is computed in, or half precision.
enum class ValueDtype { kCompute, kBFloat16, kHalf };

// Token indices have the size of T, so that vectors of both have the same number of lanes.
template <typename T>
using Token = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// One level in value and in a packed head. A packed head holds the tokens of one head contiguously. Around every level
// it has a border of zero tokens, followed by two more zero tokens.
struct PackedLevel {
  int64_t height;
  int64_t width;
  int64_t start;         // index of the level's first token in value
  int64_t packed_start;  // index of the first border token in a packed head

  int64_t pitch() const {
    return width + 2;
  }
  int64_t packed_end() const {
    return packed_start + (height + 2) * pitch() + 2;
  }
};

// For each sample of a query and head, the level that it reads. The arrays are padded, so that a vector can be loaded
// at any sample.
template <typename T>
struct TokenLayout {
  const T* width;
  const T* height;
  const Token<T>* pitch;   // tokens from one row of pixels to the next
  const Token<T>* origin;  // token of pixel (0, 0)
};

constexpr int64_t kMaxVectorBytes = 64;  // AVX-512

// `count` rounded up to a multiple of the lanes of the widest vector of any instruction set.
template <typename T>
constexpr int64_t pad_to_max_vector(int64_t count) {
  constexpr int64_t lanes = kMaxVectorBytes / sizeof(T);
  return (count + lanes - 1) / lanes * lanes;
}

// The arguments of one call as sizes and pointers. All tensors but value are contiguous. In the fused operator,
// `locations` are the offsets and `weights` the logits.
template <typename T>
struct KernelArgs {
  int64_t tokens;
  int64_t heads;
  int64_t value_heads;  // heads, or 1: all heads share value
  int64_t head_dim;
  int64_t queries;
  int64_t points;
  int64_t num_levels;
  const PackedLevel* levels;
  TokenLayout<T> packed_layout;
  TokenLayout<T> value_layout;

  const int64_t* order;  // the order in which the queries of an image are processed; null: by index

  ValueDtype value_dtype;
  const void* value;         // (B, S, value_heads, D); the channels of a token are contiguous
  int64_t value_strides[3];  // of B, S, M; 0 for M if value is shared
  T* packed_heads;           // for `forward`, the packed heads from first_head on; null: read value directly
  int64_t first_head;        // image * heads + head
  const T* locations;        // (B, Q, M, L, P, 2)
  const T* weights;          // (B, Q, M, L, P)
  const T* references;       // (B, Q, L, reference_size), or null: not the fused operator
  int64_t reference_size;    // 2: points, 4: boxes
  void* output;              // (B, Q, M, D)

  const void* grad_output;  // (B, Q, M, D)
  void* grad_value;
  // In the fused operator, `backward` writes the gradients of positions in pixels to `grad_locations` and of attention
  // weights to `grad_weights`. `fused_backward` turns them into the gradients of offsets and logits.
  T* grad_locations;
  T* grad_weights;
  T* grad_references;
  int64_t level_groups;    // tasks per image and head in `backward`: 1, or num_levels with one level each
  int64_t channel_groups;  // tasks per image in `add_shared_gradients`

  int64_t samples() const {
    return num_levels * points;
  }
  int64_t query_at(int64_t position) const {
    return order ? order[position] : position;
  }
  // head_dim rounded up to the smallest vector, which has four lanes.
  int64_t padded_head_dim() const {
    return (head_dim + 3) / 4 * 4;
  }
  // Offset in value of the first token of an image and head.
  int64_t value_offset(int64_t image, int64_t head) const {
    return image * value_strides[0] + head * value_strides[2];
  }
  // The gradient of value is contiguous.
  int64_t grad_token_stride() const {
    return value_heads * head_dim;
  }
  int64_t grad_value_offset(int64_t image, int64_t head) const {
    return image * tokens * grad_token_stride() + (shares_value() ? 0 : head * head_dim);
  }
  // Rows of pixels in the levels [begin, end).
  int64_t pixel_rows(int64_t begin, int64_t end) const {
    int64_t count = 0;
    for (int64_t l = begin; l < end; ++l) {
      count += levels[l].height;
    }
    return count;
  }
  // Elements of a packed head with the levels [begin, end). rows_per_token is 1, or 2 with gradients.
  int64_t packed_size(int64_t begin, int64_t end, int64_t rows_per_token) const {
    const int64_t packed_tokens = levels[end - 1].packed_end() - levels[begin].packed_start;
    return pad_to_max_vector<T>(packed_tokens * padded_head_dim() * rows_per_token);
  }
  bool shares_value() const {
    return value_heads < heads;
  }
  // Packing a head pays off only if its tokens are read several times.
  bool tokens_are_reused() const {
    return queries * samples() >= 2 * tokens;
  }
  // The kernels can read and write value directly only in whole vectors.
  bool whole_vectors_per_token() const {
    return head_dim % 4 == 0;
  }
  // With a single head, the tokens are contiguous anyway.
  bool forward_is_packed() const {
    return !whole_vectors_per_token() || (value_heads > 1 && tokens_are_reused());
  }
  // Gradients must not be accumulated in half precision.
  bool backward_is_packed() const {
    return !whole_vectors_per_token() || tokens_are_reused() || value_dtype != ValueDtype::kCompute;
  }
};

// The kernels of one instruction set. Each processes the part [begin, end) of its work.
template <typename T>
struct Kernels {
  // Copies rows of pixels to the packed heads. Work: the rows of all levels, head by head, starting at first_head.
  void (*pack)(const KernelArgs<T>&, int64_t begin, int64_t end);
  // Work: the queries in processing order, for each image and head.
  void (*forward)(const KernelArgs<T>&, int64_t begin, int64_t end, T* scratch);
  // Work: one task per image, head and level group.
  void (*backward)(const KernelArgs<T>&, int64_t begin, int64_t end, T* scratch);
  // The same for a value that all heads share. Work: the queries of all images, twice; then one task per image and
  // channel group, which adds the gradients of value to zeros.
  void (*forward_shared)(const KernelArgs<T>&, int64_t begin, int64_t end, T* scratch);
  void (*backward_shared)(const KernelArgs<T>&, int64_t begin, int64_t end, T* scratch);
  void (*add_shared_gradients)(const KernelArgs<T>&, int64_t begin, int64_t end, T* scratch);
  // Gradients of references, offsets and logits. Work: the queries of all images.
  void (*fused_backward)(const KernelArgs<T>&, int64_t begin, int64_t end, T* scratch);
};

constexpr int64_t kForwardTile = 4;         // queries whose footprints are computed together, forward
constexpr int64_t kBackwardTile = 32;       // at most, backward
constexpr int64_t kPrefetchDistance = 8;    // queries between the prefetch of samples and their use
constexpr int64_t kFootprintElements = 11;  // per sample, see `Footprints`
constexpr int64_t kStagingElements = 7;     // per sample, see `Staging`

// Queries whose footprints are computed together in the backward pass: those of 32 queries with 16 samples each leave
// room in the first cache for the tokens of a level.
template <typename T>
int64_t backward_tile(const KernelArgs<T>& args) {
  return std::clamp<int64_t>(16 * kBackwardTile / pad_to_max_vector<T>(args.samples()), kForwardTile, kBackwardTile);
}

// Elements of a thread's scratch memory, without the packed head of `backward`.
template <typename T>
int64_t workspace_size(const KernelArgs<T>& args) {
  const int64_t samples = pad_to_max_vector<T>(args.samples());
  const int64_t channels = pad_to_max_vector<T>(args.padded_head_dim());
  return backward_tile(args) * ((kFootprintElements + 4) * samples + channels) +
         kStagingElements * (samples + pad_to_max_vector<T>(1)) + 2 * channels;
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

// One call: its sizes, its tensors, and which keys are seen. Shared by the kernels of all instruction sets.
#pragma once

#include <cstdint>

#include "../common/macros.h"

namespace attnzoo::deform_kv_attn {

enum class Kind { kTable, kMlp };

// A table is copied into a frame of zeros, so that what lies beyond it is read and written without a question.
constexpr int64_t kFrame = 2;

// One level: the parameters of its bias, and which keys are its own.
struct Level {
  int64_t height;  // of its table, if it has one
  int64_t width;
  int64_t given;  // where its parameters begin among those that were given for a head
  int64_t parameters;  // the same as the kernels have them: tables with frames
  int64_t first_key;
  int64_t end_key;

  int64_t framed_width() const {
    return width + 2 * kFrame;
  }
  int64_t framed_height() const {
    return height + 2 * kFrame;
  }
};

struct Problem {
  int64_t batch;
  int64_t heads;
  int64_t groups;  // of heads, which share the positions of their keys
  int64_t queries;
  int64_t keys;
  int64_t dim;  // channels per head
  int64_t parameters;  // of the bias of a head, all levels
  double scale;
  const Level* levels;
  int64_t level_count;
  // What the layers of a perceptron take and give: x and y first, the bias of one head last.
  const int64_t* widths;
  int64_t layers;
};

// Neighbouring keys of one level that are all seen. Hidden keys are in no run: they are never read.
struct Run {
  int64_t level;
  int64_t begin;
  int64_t end;
};

struct Runs {
  const Run* begin;
  const Run* end;
};

// A (B, H, N, D) tensor whose channels are neighbours in memory.
template <typename T>
struct Rows {
  T* data;
  int64_t image;
  int64_t head;
  int64_t row;

  ATTNZOO_HOST_DEVICE T* of(int64_t b, int64_t h) const {
    return data + b * image + h * head;
  }
};

template <typename T>
struct Inputs {
  Rows<const T> query;
  Rows<const T> key;
  Rows<const T> value;
  const T* query_positions;  // (B, L, Nq, 2)
  const T* key_positions;  // (B, G, Nk, 2)
  const T* parameters;  // (H, parameters)
};

template <typename T>
struct Outputs {
  Rows<T> output;
  T* log_sums;  // (B, H, Nq)
};

// What the backward pass is given beside the inputs, and what it adds up. Gradients that several heads or images share
// are kept apart here, one per task, and are added in a fixed order afterwards.
template <typename T>
struct Gradients {
  Rows<const T> by_output;
  Rows<const T> output;
  const T* log_sums;
  Rows<T> by_query;
  T* by_key;  // (Nk, padded D) of the head at hand
  T* by_value;  // (Nk, padded D) of the head at hand
  T* by_query_positions;  // (B, H, L, Nq, 2)
  T* by_key_positions;  // (B, H, Nk, 2)
  T* by_parameters;  // (B, H, parameters)
};

// The kernels of one instruction set for one kind of bias.
template <typename T>
struct Kernels {
  int64_t block;  // queries that `forward` takes at a time
  int64_t lanes;  // what D is padded to a multiple of in gradients of keys and values
  int64_t (*scratch)(const Problem&);  // numbers of working memory that a task needs
  void (*forward)(
      const Problem&, const Inputs<T>&, Runs, int64_t image, int64_t head, int64_t query, T* scratch, const Outputs<T>&);
  void (*backward)(
      const Problem&, const Inputs<T>&, Runs, int64_t image, int64_t head, T* scratch, const Gradients<T>&);
};

namespace baseline {
template <typename T>
Kernels<T> kernels(Kind kind);
}
namespace avx2 {
template <typename T>
Kernels<T> kernels(Kind kind);
}
namespace avx512 {
template <typename T>
Kernels<T> kernels(Kind kind);
}

}  // namespace attnzoo::deform_kv_attn

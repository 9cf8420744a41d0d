// The interface between cpu.cpp and the CPU kernels, which are compiled once per instruction set.
#pragma once

#include <cstdint>

#include "problem.h"

namespace attnzoo::deform_kv_attn {

// Consecutive keys [begin, end) of one level, none of them masked. The kernels never read masked keys.
struct KeyRange {
  int64_t level;
  int64_t begin;
  int64_t end;
};

struct KeyRanges {
  const KeyRange* begin;
  const KeyRange* end;
};

template <typename T>
struct Inputs {
  StridedTensor<const T> query;
  StridedTensor<const T> key;
  StridedTensor<const T> value;
  const T* query_positions;  // (B, L, Nq, 2)
  const T* key_positions;    // (B, G, Nk, 2)
  const T* parameters;       // (H, parameters_per_head)
};

template <typename T>
struct Outputs {
  StridedTensor<T> output;
  T* logsumexp;  // (B, H, Nq)
};

// The other inputs of the backward pass, and its outputs. Every image and head has its own copy of the gradients that
// are shared between images or heads; cpu.cpp sums these in a fixed order.
template <typename T>
struct Gradients {
  StridedTensor<const T> grad_output;
  StridedTensor<const T> output;
  const T* logsumexp;
  StridedTensor<T> grad_query;
  T* grad_key;              // (Nk, padded D) of the current head
  T* grad_value;            // (Nk, padded D) of the current head
  T* grad_query_positions;  // (B, H, L, Nq, 2)
  T* grad_key_positions;    // (B, H, Nk, 2)
  T* grad_parameters;       // (B, H, parameters_per_head)
};

// The kernels of one instruction set for one kind of bias.
template <typename T>
struct Kernels {
  int64_t query_block;                      // queries per call of `forward`
  int64_t lanes;                            // the D of grad_key and grad_value is padded to a multiple of this
  int64_t (*scratch_size)(const Problem&);  // elements of scratch memory per task
  void (*forward)(
      const Problem&, const Inputs<T>&, KeyRanges, int64_t image, int64_t head, int64_t first_query, T* scratch,
      const Outputs<T>&);
  void (*backward)(
      const Problem&, const Inputs<T>&, KeyRanges, int64_t image, int64_t head, T* scratch, const Gradients<T>&);
};

namespace baseline {
template <typename T>
Kernels<T> kernels(BiasKind kind);
}
namespace avx2 {
template <typename T>
Kernels<T> kernels(BiasKind kind);
}
namespace avx512 {
template <typename T>
Kernels<T> kernels(BiasKind kind);
}

}  // namespace attnzoo::deform_kv_attn

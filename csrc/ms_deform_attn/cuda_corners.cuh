// The corners of samples, and how the lanes of a group share them.
#pragma once

#include "../common/cuda_vector.cuh"
#include "cuda_samples.cuh"

namespace attnzoo::ms_deform_attn {

// The four corners of a sample.
template <typename A>
struct alignas(16) Corners {
  A weights[4];       // bilinear weight times attention weight
  int32_t tokens[4];  // -1 outside the map
};

template <typename A>
__device__ __forceinline__ Corners<A> empty_corners() {
  return {{A(0), A(0), A(0), A(0)}, {-1, -1, -1, -1}};
}

template <typename A>
__device__ __forceinline__ Corners<A> make_corners(
    const Footprint<A, int32_t>& footprint, const Level32& level, A attention_weight) {
  Corners<A> corners;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    corners.tokens[k] = footprint.token(k, level);
    corners.weights[k] = corners.tokens[k] < 0 ? A(0) : attention_weight * footprint.corner_weight(k);
  }
  return corners;
}

// Shared memory with one sample per lane of a warp. The samples that the groups of a warp read at the same time are
// adjacent, to avoid bank conflicts.
template <typename A>
struct WarpCorners {
  alignas(16) A weights[kWarpSize][4];
  alignas(16) int32_t tokens[kWarpSize][4];

  // Makes this lane's sample visible to the other lanes of its group. All lanes of the warp must call it.
  __device__ __forceinline__ void publish(const ThreadIndex& thread, const Corners<A>& corners) {
    __syncwarp();
    const int index = slot(thread, thread.lane);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      weights[index][k] = corners.weights[k];
      tokens[index][k] = corners.tokens[k];
    }
    __syncwarp();
  }

  // The sample that a lane of this group has published.
  __device__ __forceinline__ Corners<A> from_lane(const ThreadIndex& thread, int lane) const {
    const int index = slot(thread, lane);
    Corners<A> corners;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      corners.weights[k] = weights[index][k];
      corners.tokens[k] = tokens[index][k];
    }
    return corners;
  }

 private:
  __device__ __forceinline__ static int slot(const ThreadIndex& thread, int lane) {
    const int groups_per_warp = kWarpSize / thread.lanes;
    return lane * groups_per_warp + (thread.group & (groups_per_warp - 1));
  }
};

// base + token * stride. The offset is computed in bytes, as a product of two 32-bit numbers, which takes one
// instruction. In elements it would take several. `make_sizes` checks that the bytes of a token fit in 31 bits.
template <typename T>
__device__ __forceinline__ T* token_row(T* base, int32_t token, int32_t stride) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  const uint32_t row_bytes = static_cast<uint32_t>(stride) * static_cast<uint32_t>(sizeof(T));
  return reinterpret_cast<T*>(
      reinterpret_cast<Byte*>(base) + static_cast<uint64_t>(static_cast<uint32_t>(token)) * row_bytes);
}

// Loads a vector of channels of each corner; zeros outside the map. `head_value` points to the channels of this lane in
// the first token; `count` of them exist, or none if it is not positive. All four loads come before any use.
template <bool kVectorized, typename T, int N>
__device__ __forceinline__ void load_corners(
    const T* head_value, int32_t stride, int count, const int32_t (&tokens)[4], ComputeType<T> (&x)[4][N]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (tokens[k] >= 0 && count > 0) {
      load<kVectorized>(token_row(head_value, tokens[k], stride), count, x[k]);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        x[k][i] = 0;
      }
    }
  }
}

}  // namespace attnzoo::ms_deform_attn

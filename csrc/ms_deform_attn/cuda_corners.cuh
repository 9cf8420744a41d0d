// What a group's lanes tell each other about samples: the tokens that are read and their shares.
#pragma once

#include "../common/cuda_vector.cuh"
#include "cuda_samples.cuh"

namespace attnzoo::ms_deform_attn {

// The four corners of a sample; the token is -1 where there is nothing to read, and the weight is in the share.
template <typename A>
struct alignas(16) Corners {
  A shares[4];
  int32_t tokens[4];
};

template <typename A>
__device__ __forceinline__ Corners<A> no_corners() {
  return {{A(0), A(0), A(0), A(0)}, {-1, -1, -1, -1}};
}

template <typename A>
__device__ __forceinline__ Corners<A> corners_of(
    const Footprint<A, int32_t>& at, const Level32& level, A weight) {
  Corners<A> corners;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    corners.tokens[k] = at.token(k, level);
    corners.shares[k] = corners.tokens[k] < 0 ? A(0) : weight * at.share(k);
  }
  return corners;
}

// Room for one sample per lane of a warp. Samples that the groups read at the same time lie side by side, so that no
// two groups meet in a bank.
template <typename A>
struct WarpCorners {
  alignas(16) A shares[kWarp][4];
  alignas(16) int32_t tokens[kWarp][4];

  // Gives this lane's sample to the others of its group. All lanes of the warp must call it.
  __device__ __forceinline__ void share(const Position& my, const Corners<A>& mine) {
    __syncwarp();
    const int at = slot(my, my.lane);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      shares[at][k] = mine.shares[k];
      tokens[at][k] = mine.tokens[k];
    }
    __syncwarp();
  }

  __device__ __forceinline__ Corners<A> of_lane(const Position& my, int lane) const {
    const int at = slot(my, lane);
    Corners<A> corners;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      corners.shares[k] = shares[at][k];
      corners.tokens[k] = tokens[at][k];
    }
    return corners;
  }

 private:
  __device__ __forceinline__ static int slot(const Position& my, int lane) {
    const int groups_in_warp = kWarp / my.lanes;
    return lane * groups_in_warp + (my.group & (groups_in_warp - 1));
  }
};

// The row of a token in the map of one head, `stride` elements from one token to the next. Bytes in 32 times 32 bits
// are one instruction, where elements would take several; `sizes_of` on the host sees to it that they suffice.
template <typename T>
__device__ __forceinline__ T* row_at(T* head_map, int32_t token, int32_t stride) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  const uint32_t row_bytes = static_cast<uint32_t>(stride) * static_cast<uint32_t>(sizeof(T));
  return reinterpret_cast<T*>(
      reinterpret_cast<Byte*>(head_map) + static_cast<uint64_t>(static_cast<uint32_t>(token)) * row_bytes);
}

// A vector of channels of each corner, zeros off the map. `head_map` points to this lane's first channel, of which
// there are `count`, perhaps none. All four are loaded before any is used.
template <bool kWhole, typename T>
__device__ __forceinline__ void load_corners(
    const T* head_map, int32_t stride, int count, const int32_t (&tokens)[4], Compute<T> (&x)[4][kVector<T>]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (tokens[k] >= 0 && count > 0) {
      load<kWhole>(row_at(head_map, tokens[k], stride), count, x[k]);
    } else {
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) {
        x[k][i] = 0;
      }
    }
  }
}

}  // namespace attnzoo::ms_deform_attn

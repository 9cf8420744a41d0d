// Forward: each lane of a group sums its channels over the samples, whose corners the lanes work out in turns.
#pragma once

#include "../common/cuda_vector.cuh"
#include "cuda_corners.cuh"

namespace attnzoo::ms_deform_attn {

template <typename T, typename Samples>
struct ForwardCall {
  Sizes sizes;
  Work work;
  const T* value;  // (B, S, M, D)
  Samples samples;
  T* output;  // (B, Q, M, D)
};

template <bool kWhole, typename T>
__device__ __forceinline__ void add_sample(
    const T* head_map, int32_t stride, int count, const Corners<Compute<T>>& corners, Compute<T> (&sum)[kVector<T>]) {
  Compute<T> x[4][kVector<T>];
  load_corners<kWhole>(head_map, stride, count, corners.tokens, x);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      sum[i] += corners.shares[k] * x[k][i];
    }
  }
}

// Blocks that a multiprocessor is to hold at a time. Left to itself, the compiler saves registers for more of them and
// loads one corner after the other; this many leave room to have several loads under way, without spills.
template <typename T>
constexpr int kForwardBlocks = std::is_same_v<T, float> ? 6 : 4;

// kWhole: as in `load`.
template <typename T, bool kWhole, typename Samples>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<T>)
    forward_kernel(const __grid_constant__ ForwardCall<T, Samples> call) {
  using A = Compute<T>;
  __shared__ WarpCorners<A> of_warps[kThreads / kWarp];
  WarpCorners<A>& corners = of_warps[threadIdx.x / kWarp];
  const Sizes& sizes = call.sizes;
  const Position my(sizes, call.work);
  const Item item(sizes, my);
  const auto state = call.samples.begin(sizes, item, my);
  // All lanes go round as often as the first, whether they have channels left or not: they share samples.
  for (int32_t channel = my.lane * kVector<T>; channel - my.lane * kVector<T> < sizes.head_dim;
       channel += my.lanes * kVector<T>) {
    const int count = sizes.head_dim - channel;
    const T* head_map =
        call.value + int64_t{my.image} * sizes.tokens * sizes.stride() + int64_t{my.head} * sizes.head_dim + channel;
    A sum[kVector<T>] = {};
    for (int32_t begin = 0; begin < sizes.samples(); begin += my.lanes) {
      Corners<A> mine = no_corners<A>();
      if (begin + my.lane < sizes.samples()) {
        const auto sample = call.samples.sample(sizes, item, state, begin + my.lane);
        Footprint<A, int32_t> at;
        if (locate(sample.column, sample.row, sample.level, at)) {
          mine = corners_of(at, sample.level, sample.weight);
        }
      }
      corners.share(my, mine);
      const int shared = min(my.lanes, sizes.samples() - begin);
#pragma unroll 2
      for (int lane = 0; lane < shared; ++lane) {
        add_sample<kWhole>(head_map, sizes.stride(), count, corners.of_lane(my, lane), sum);
      }
    }
    if (item.active && count > 0) {
      store<kWhole>(call.output + item.index(sizes) * sizes.head_dim + channel, count, sum);
    }
  }
}

}  // namespace attnzoo::ms_deform_attn

// Forward: a group of threads computes the output of a query and head. Each lane sums its channels over all samples.
// The footprints of the samples are divided among the lanes and exchanged in shared memory.
#pragma once

#include "../common/cuda_vector.cuh"
#include "cuda_corners.cuh"

namespace attnzoo::ms_deform_attn {

template <typename T, typename Samples>
struct ForwardArgs {
  Sizes sizes;
  Partition partition;
  const T* value;  // (B, S, M, D)
  Samples samples;
  T* output;  // (B, Q, M, D)
};

template <bool kVectorized, typename T, int N>
__device__ __forceinline__ void forward_sample(
    const T* head_value, int32_t stride, int count, const Corners<ComputeType<T>>& corners, ComputeType<T> (&sum)[N]) {
  ComputeType<T> x[4][N];
  load_corners<kVectorized>(head_value, stride, count, corners.tokens, x);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sum[i] += corners.weights[k] * x[k][i];
    }
  }
}

// Resident blocks per multiprocessor, for __launch_bounds__, and samples whose loads are in flight together. Those of
// the unfused operator were the fastest of several on an H200, though some registers are spilled. The others leave
// enough registers for several loads in flight, without spills.
template <typename T, bool kFused>
constexpr int kForwardBlocksPerSm = sizeof(T) == 8 ? 4
    : kFused                                       ? (sizeof(T) == 4 ? 6 : 4)
                                                   : (sizeof(T) == 4 ? 10 : 8);
template <typename T, bool kFused>
constexpr int kSamplesInFlight = sizeof(T) == 4 && !kFused ? 4 : 2;

// kVectorized: as in `load`.
template <typename T, bool kVectorized, typename Samples>
__global__ void __launch_bounds__(kThreads, kForwardBlocksPerSm<T, Samples::kFused>)
    forward_kernel(const __grid_constant__ ForwardArgs<T, Samples> args) {
  using A = ComputeType<T>;
  __shared__ WarpCorners<A> warp_corners[kThreads / kWarpSize];
  WarpCorners<A>& corners = warp_corners[threadIdx.x / kWarpSize];
  const Sizes& sizes = args.sizes;
  const ThreadIndex thread(sizes, args.partition);
  const QueryHead query_head(sizes, thread);
  const auto state = args.samples.init(sizes, query_head, thread);
  // All lanes do as many iterations as the first, even without channels left: they compute footprints for the others.
  for (int32_t channel = thread.lane * kVectorSize<T>; channel - thread.lane * kVectorSize<T> < sizes.head_dim;
       channel += thread.lanes * kVectorSize<T>) {
    const int count = sizes.head_dim - channel;
    const T* head_value = args.value + int64_t{thread.image} * sizes.tokens * sizes.token_stride() +
        int64_t{thread.head} * sizes.head_dim + channel;
    A sum[kVectorSize<T>] = {};
    for (int32_t begin = 0; begin < sizes.samples(); begin += thread.lanes) {
      Corners<A> mine = empty_corners<A>();
      if (begin + thread.lane < sizes.samples()) {
        const auto sample = args.samples.sample(sizes, query_head, state, begin + thread.lane);
        Footprint<A, int32_t> footprint;
        if (compute_footprint(sample.column, sample.row, sample.level, footprint)) {
          mine = make_corners(footprint, sample.level, sample.weight);
        }
      }
      corners.publish(thread, mine);
      const int lanes = min(thread.lanes, sizes.samples() - begin);
#pragma unroll kSamplesInFlight<T, Samples::kFused>
      for (int lane = 0; lane < lanes; ++lane) {
        forward_sample<kVectorized>(head_value, sizes.token_stride(), count, corners.from_lane(thread, lane), sum);
      }
    }
    if (query_head.active && count > 0) {
      store<kVectorized>(args.output + query_head.index(sizes) * sizes.head_dim + channel, count, sum);
    }
  }
}

}  // namespace attnzoo::ms_deform_attn

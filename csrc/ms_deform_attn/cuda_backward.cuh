// Backward: a group of threads computes the gradients of all samples of a query and head. It adds to grad_value with
// atomic operations, or lists the contributions for a deterministic result.
#pragma once

#include "../common/cuda_vector.cuh"
#include "cuda_corners.cuh"
#include "cuda_deterministic.cuh"

namespace attnzoo::ms_deform_attn {

template <typename T, typename Samples>
struct BackwardArgs {
  Sizes sizes;
  Partition partition;
  const T* grad_output;  // (B, Q, M, D)
  const T* value;        // (B, S, M, D)
  Samples samples;
  ComputeType<T>* grad_value;  // (B, S, M, D), zeros initially; null: fill `list` instead, for a batch of one image
  CellNumbering cells;
  SampleList<ComputeType<T>> list;
};

// Channels per lane and access. In half precision the gradient of value takes twice the bytes of value: four channels
// per lane, not eight, make the atomic additions of neighbouring lanes adjacent in memory.
template <typename T>
constexpr int kBackwardVectorSize = kVectorSize<ComputeType<T>>;

// One sample, for the channels of this lane: adds Σ_d grad_output[d] · value[corner k][d] to dots[k], and adds to the
// gradient of value while the loads are in flight.
template <bool kVectorized, typename T, int N>
__device__ __forceinline__ void backward_sample(
    const T* head_value,
    ComputeType<T>* head_grad_value,
    int32_t stride,
    int count,
    const Corners<ComputeType<T>>& corners,
    const ComputeType<T> (&grad_output)[N],
    ComputeType<T> (&dots)[4]) {
  ComputeType<T> x[4][N];
  load_corners<kVectorized>(head_value, stride, count, corners.tokens, x);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (head_grad_value != nullptr && corners.tokens[k] >= 0 && count > 0) {
      ComputeType<T>* grad_row = token_row(head_grad_value, corners.tokens[k], stride);
      atomic_add_scaled<kVectorized>(grad_row, count, corners.weights[k], grad_output);
    }
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      dots[k] += grad_output[i] * x[k][i];
    }
  }
}

constexpr int kSamplesPerReduction = 2;  // samples whose dot products are reduced together

// Sums dots[i] over the lanes of a group, for every i. A lane gets the sums of i = lane % kSamplesPerReduction: in the
// first rounds, lanes exchange halves, so that each keeps only half of the sums.
template <typename A>
__device__ __forceinline__ void reduce_to_lanes(
    A (&dots)[kSamplesPerReduction][4], const ThreadIndex& thread, A (&sums)[4]) {
#pragma unroll
  for (int half = kSamplesPerReduction / 2; half > 0; half /= 2) {
    const bool upper = thread.lane & half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const A keep = upper ? dots[i + half][k] : dots[i][k];
        const A send = upper ? dots[i][k] : dots[i + half][k];
        dots[i][k] = keep + __shfl_xor_sync(kFullMask, send, half);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    sums[k] = dots[0][k];
    for (int offset = kSamplesPerReduction; offset < thread.lanes; offset *= 2) {
      sums[k] += __shfl_xor_sync(kFullMask, sums[k], offset);
    }
  }
}

constexpr int kBackwardBlocksPerSm = 4;  // as `kForwardBlocksPerSm`

// kVectorized: as in `load`.
template <typename T, bool kVectorized, typename Samples>
__global__ void __launch_bounds__(kThreads, kBackwardBlocksPerSm)
    backward_kernel(const __grid_constant__ BackwardArgs<T, Samples> args) {
  using A = ComputeType<T>;
  constexpr int N = kBackwardVectorSize<T>;
  __shared__ WarpCorners<A> warp_corners[kThreads / kWarpSize];
  WarpCorners<A>& corners = warp_corners[threadIdx.x / kWarpSize];
  const Sizes& sizes = args.sizes;
  const ThreadIndex thread(sizes, args.partition);
  const QueryHead query_head(sizes, thread);
  auto state = args.samples.init(sizes, query_head, thread);
  const T* grad_output = args.grad_output + query_head.index(sizes) * sizes.head_dim;
  const int64_t head_offset =
      int64_t{thread.image} * sizes.tokens * sizes.token_stride() + int64_t{thread.head} * sizes.head_dim;
  for (int32_t begin = 0; begin < sizes.samples(); begin += thread.lanes) {
    const int32_t i = begin + thread.lane;
    const bool mine = query_head.active && i < sizes.samples();
    Sample<A> sample{};
    Footprint<A, int32_t> footprint{};
    bool inside = false;
    if (mine) {
      sample = args.samples.sample(sizes, query_head, state, i);
      inside = compute_footprint(sample.column, sample.row, sample.level, footprint);
      if (args.grad_value == nullptr) {
        args.list.set(args.cells, sizes, query_head, i, sample, footprint, inside);
      }
    }
    corners.publish(thread, inside ? make_corners(footprint, sample.level, sample.weight) : empty_corners<A>());

    A sums[4] = {};
#pragma unroll 1
    for (int32_t first_lane = 0; first_lane < thread.lanes && begin + first_lane < sizes.samples();
         first_lane += kSamplesPerReduction) {
      A dots[kSamplesPerReduction][4] = {};
      for (int32_t channel = thread.lane * N; channel - thread.lane * N < sizes.head_dim;
           channel += thread.lanes * N) {
        const int count = sizes.head_dim - channel;
        A grad_output_vector[N] = {};
        if (count > 0) {
          load<kVectorized>(grad_output + channel, count, grad_output_vector);
        }
        const int64_t offset = head_offset + channel;
        A* head_grad_value = args.grad_value == nullptr ? nullptr : args.grad_value + offset;
#pragma unroll
        for (int n = 0; n < kSamplesPerReduction; ++n) {
          backward_sample<kVectorized>(
              args.value + offset, head_grad_value, sizes.token_stride(), count,
              corners.from_lane(thread, first_lane + n), grad_output_vector, dots[n]);
        }
      }
      A reduced[4];
      reduce_to_lanes(dots, thread, reduced);
      if (thread.lane / kSamplesPerReduction == first_lane / kSamplesPerReduction) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          sums[k] = reduced[k];
        }
      }
    }
    if (mine) {
      const SampleGrads<A> grads =
          inside ? bilinear_backward(footprint, sums, sample.weight) : SampleGrads<A>{A(0), A(0), A(0)};
      args.samples.store_grads(sizes, query_head, state, i, sample, grads);
    }
  }
  args.samples.finish(sizes, query_head, thread, state);
}

}  // namespace attnzoo::ms_deform_attn

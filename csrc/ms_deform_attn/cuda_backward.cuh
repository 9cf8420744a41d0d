// Backward: gradients by the samples of every item, and by value with atomic additions or, for a deterministic result,
// as a list of what there is to add.
#pragma once

#include "../common/cuda_vector.cuh"
#include "cuda_corners.cuh"
#include "cuda_deterministic.cuh"

namespace attnzoo::ms_deform_attn {

template <typename T, typename Samples>
struct BackwardCall {
  Sizes sizes;
  Work work;
  const T* grad_output;  // (B, Q, M, D)
  const T* value;        // (B, S, M, D)
  Samples samples;
  Compute<T>* grad_value;  // (B, S, M, D), zeros at first; null: list the samples of the only image instead
  Cells cells;
  SampleList<Compute<T>> list;
};

// The four products Σ_d grad_output[d] · value[corner][d] of one sample, as far as this lane's channels go; and what
// the sample adds to the gradient by value, while the loads are under way.
template <bool kWhole, typename T>
__device__ __forceinline__ void pull_sample(
    const T* head_map,
    Compute<T>* grad_map,
    int32_t stride,
    int count,
    const Corners<Compute<T>>& corners,
    const Compute<T> (&grad)[kVector<T>],
    Compute<T> (&products)[4]) {
  Compute<T> x[4][kVector<T>];
  load_corners<kWhole>(head_map, stride, count, corners.tokens, x);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (grad_map != nullptr && corners.tokens[k] >= 0 && count > 0) {
      add_atomically<kWhole>(row_at(grad_map, corners.tokens[k], stride), count, corners.shares[k], grad);
    }
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      products[k] += grad[i] * x[k][i];
    }
  }
}

constexpr int kInHand = 2;  // samples whose products are added up together

// Sums `products[i]` over the lanes of a group for every i, and returns in `sums` that of i = lane modulo kInHand.
// In the first rounds a lane gives away one half of what it holds and adds what it gets to the other half.
template <typename A>
__device__ __forceinline__ void reduce_to_lanes(A (&products)[kInHand][4], const Position& my, A (&sums)[4]) {
#pragma unroll
  for (int half = kInHand / 2; half > 0; half /= 2) {
    const bool upper = my.lane & half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const A keep = upper ? products[i + half][k] : products[i][k];
        const A give = upper ? products[i][k] : products[i + half][k];
        products[i][k] = keep + __shfl_xor_sync(kAllLanes, give, half);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    sums[k] = products[0][k];
    for (int offset = kInHand; offset < my.lanes; offset *= 2) {
      sums[k] += __shfl_xor_sync(kAllLanes, sums[k], offset);
    }
  }
}

constexpr int kBackwardBlocks = 4;  // as `kForwardBlocks`

// kWhole: as in `load`.
template <typename T, bool kWhole, typename Samples>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    backward_kernel(const __grid_constant__ BackwardCall<T, Samples> call) {
  using A = Compute<T>;
  __shared__ WarpCorners<A> of_warps[kThreads / kWarp];
  WarpCorners<A>& corners = of_warps[threadIdx.x / kWarp];
  const Sizes& sizes = call.sizes;
  const Position my(sizes, call.work);
  const Item item(sizes, my);
  auto state = call.samples.begin(sizes, item, my);
  const T* grad_output = call.grad_output + item.index(sizes) * sizes.head_dim;
  const int64_t head_offset = int64_t{my.image} * sizes.tokens * sizes.stride() + int64_t{my.head} * sizes.head_dim;
  for (int32_t begin = 0; begin < sizes.samples(); begin += my.lanes) {
    const int32_t i = begin + my.lane;
    const bool mine = item.active && i < sizes.samples();
    Sample<A> sample{};
    Footprint<A, int32_t> at{};
    bool touches = false;
    if (mine) {
      sample = call.samples.sample(sizes, item, state, i);
      touches = locate(sample.column, sample.row, sample.level, at);
      if (call.grad_value == nullptr) {
        call.list.set(call.cells, sizes, item, i, sample, at, touches);
      }
    }
    corners.share(my, touches ? corners_of(at, sample.level, sample.weight) : no_corners<A>());

    A sums[4] = {};
#pragma unroll 1
    for (int32_t in_hand = 0; in_hand < my.lanes && begin + in_hand < sizes.samples(); in_hand += kInHand) {
      A products[kInHand][4] = {};
      for (int32_t channel = my.lane * kVector<T>; channel - my.lane * kVector<T> < sizes.head_dim;
           channel += my.lanes * kVector<T>) {
        const int count = sizes.head_dim - channel;
        A grad[kVector<T>] = {};
        if (count > 0) {
          load<kWhole>(grad_output + channel, count, grad);
        }
        const int64_t offset = head_offset + channel;
        A* grad_map = call.grad_value == nullptr ? nullptr : call.grad_value + offset;
#pragma unroll
        for (int n = 0; n < kInHand; ++n) {
          pull_sample<kWhole>(
              call.value + offset, grad_map, sizes.stride(), count, corners.of_lane(my, in_hand + n), grad, products[n]);
        }
      }
      A reduced[4];
      reduce_to_lanes(products, my, reduced);
      if (my.lane / kInHand == in_hand / kInHand) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          sums[k] = reduced[k];
        }
      }
    }
    if (mine) {
      const PointGradient<A> by =
          touches ? differentiate(at, sums, sample.weight) : PointGradient<A>{A(0), A(0), A(0)};
      call.samples.add_gradients(sizes, item, state, i, sample, by);
    }
  }
  call.samples.finish(sizes, item, my, state);
}

}  // namespace attnzoo::ms_deform_attn

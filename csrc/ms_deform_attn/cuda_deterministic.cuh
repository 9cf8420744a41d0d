// Samples listed by the cell they lie in, which makes the gradient by value a sum in a fixed order.
//
// A cell is the square between four pixel centres; those along the border of a map have pixels on one side only. A
// pixel is a corner of four cells, so its gradient is a sum over the samples of four cells.
#pragma once

#include "../common/cuda_vector.cuh"
#include "cuda_corners.cuh"

namespace attnzoo::ms_deform_attn {

// What a sample adds to its corners: shares of the gradient of its query's output.
template <typename A>
struct alignas(4 * sizeof(A)) Contribution {
  A fx;
  A fy;
  A weight;
  int32_t query;
};

// Cells of one image are numbered head by head and level by level, row by row.
struct Cells {
  int32_t per_head;
  int32_t first[kMaxLevels];  // cell of each level

  // Cell of the samples whose first corner is at (left, top), from -1 on.
  __device__ int32_t at(int32_t head, int l, const Level32& level, int32_t left, int32_t top) const {
    return head * per_head + first[l] + (top + 1) * (level.width + 1) + left + 1;
  }
};

// The samples of one image, (Q, M, L, P).
template <typename A>
struct SampleList {
  int32_t* cells;  // behind the last cell for a sample that touches no pixel
  Contribution<A>* contributions;

  __device__ void set(
      const Cells& numbering,
      const Sizes& sizes,
      const Item& item,
      int32_t i,
      const Sample<A>& sample,
      const Footprint<A, int32_t>& at,
      bool touches) const {
    const int64_t index = item.index(sizes) * sizes.samples() + i;
    cells[index] = touches ? numbering.at(item.head, i / sizes.points, sample.level, at.left, at.top)
                           : numbering.per_head * sizes.heads;
    contributions[index] = {at.fx, at.fy, sample.weight, static_cast<int32_t>(item.query)};
  }
};

// Where each cell's samples begin in the list sorted by cell: one search per cell, and one for the end of the last.
__global__ void __launch_bounds__(kThreads)
    starts_kernel(int32_t num_cells, int32_t num_samples, const int32_t* sorted, int32_t* starts) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t cell = int64_t{blockIdx.x} * kThreads + threadIdx.x; cell <= num_cells; cell += step) {
    int32_t low = 0;
    int32_t high = num_samples;
    while (low < high) {
      const int32_t middle = low + (high - low) / 2;
      if (sorted[middle] < cell) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    starts[cell] = low;
  }
}

template <typename T>
struct GatherCall {
  Sizes sizes;
  Work work;
  Cells cells;
  const int32_t* starts;  // of each cell in `order`
  const int64_t* order;   // samples sorted by cell
  const Contribution<Compute<T>>* contributions;
  const T* grad_output;  // (Q, M, D)
  T* grad_value;         // (S, M, D)
};

// Adds what the samples of one cell give to their corner k.
template <bool kWhole, typename T>
__device__ __forceinline__ void gather_cell(
    const GatherCall<T>& call,
    const Position& my,
    int32_t cell,
    int k,
    int32_t channel,
    Compute<T> (&sum)[kVector<T>]) {
  using A = Compute<T>;
  const int count = call.sizes.head_dim - channel;
  const T* grad_head = call.grad_output + int64_t{my.head} * call.sizes.head_dim + channel;
  const int32_t end = call.starts[cell + 1];
  for (int32_t begin = call.starts[cell]; begin < end; begin += my.lanes) {
    Contribution<A> mine{A(0), A(0), A(0), 0};
    if (begin + my.lane < end) {
      mine = call.contributions[call.order[begin + my.lane]];
    }
    const A share = mine.weight * Footprint<A, int32_t>{0, 0, mine.fx, mine.fy}.share(k);
    const int shared = min(my.lanes, end - begin);
#pragma unroll 4
    for (int lane = 0; lane < shared; ++lane) {
      const A its_share = __shfl_sync(my.mask(), share, lane, my.lanes);
      const int32_t query = __shfl_sync(my.mask(), mine.query, lane, my.lanes);
      if (count > 0) {
        A grad[kVector<T>];
        load<kWhole>(row_at(grad_head, query, call.sizes.stride()), count, grad);
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) {
          sum[i] += its_share * grad[i];
        }
      }
    }
  }
}

// The gradient by value of one image: a group per token and head adds up, cell by cell and in the order of samples.
template <typename T, bool kWhole>
__global__ void __launch_bounds__(kThreads, 8) gather_kernel(const __grid_constant__ GatherCall<T> call) {
  const Sizes& sizes = call.sizes;
  const Position my(sizes, call.work);
  if (my.row >= sizes.tokens) {
    return;  // the whole group, and groups do not wait for each other here
  }
  const int32_t token = static_cast<int32_t>(my.row);
  int l = 0;
  while (l + 1 < sizes.num_levels && token >= sizes.levels[l + 1].start) {
    ++l;
  }
  const Level32 level = sizes.levels[l];
  const int32_t x = (token - level.start) % level.width;
  const int32_t y = (token - level.start) / level.width;
  for (int32_t channel = my.lane * kVector<T>; channel - my.lane * kVector<T> < sizes.head_dim;
       channel += my.lanes * kVector<T>) {
    Compute<T> sum[kVector<T>] = {};
    for (int k = 0; k < 4; ++k) {
      gather_cell<kWhole>(call, my, call.cells.at(my.head, l, level, x - (k & 1), y - (k >> 1)), k, channel, sum);
    }
    if (channel < sizes.head_dim) {
      T* row = row_at(call.grad_value, token, sizes.stride()) + int64_t{my.head} * sizes.head_dim + channel;
      store<kWhole>(row, sizes.head_dim - channel, sum);
    }
  }
}

}  // namespace attnzoo::ms_deform_attn

// The deterministic gradient of value: samples are sorted by cell, and every pixel sums its gradient in a fixed order.
//
// A cell is the square between four neighbouring pixel centres. Cells along the border of a map have pixels on one side
// only. A pixel is a corner of four cells, so its gradient is a sum over the samples in four cells.
#pragma once

#include "../common/cuda_vector.cuh"
#include "cuda_corners.cuh"

namespace attnzoo::ms_deform_attn {

// What a sample adds to the gradients of its corners: the gradient of its query's output, times the attention weight
// and the corner's bilinear weight.
template <typename A>
struct alignas(4 * sizeof(A)) Contribution {
  A fx;
  A fy;
  A weight;
  int32_t query;
};

// Numbers the cells of an image: by head, level, row, column.
struct CellNumbering {
  int32_t per_head;
  int32_t level_begin[kMaxLevels];  // first cell of each level

  // The cell whose upper left corner is pixel (left, top); both start at -1.
  __device__ int32_t cell(int32_t head, int l, const Level32& level, int32_t left, int32_t top) const {
    return head * per_head + level_begin[l] + (top + 1) * (level.width + 1) + left + 1;
  }
};

// The samples of one image, (Q, M, L, P).
template <typename A>
struct SampleList {
  int32_t* cells;  // the number of cells, which is past the last, if the sample is outside the map
  Contribution<A>* contributions;

  __device__ void set(
      const CellNumbering& numbering,
      const Sizes& sizes,
      const QueryHead& query_head,
      int32_t i,
      const Sample<A>& sample,
      const Footprint<A, int32_t>& footprint,
      bool inside) const {
    const int64_t index = query_head.index(sizes) * sizes.samples() + i;
    cells[index] = inside
        ? numbering.cell(query_head.head, i / sizes.points, sample.level, footprint.left, footprint.top)
        : numbering.per_head * sizes.heads;
    contributions[index] = {footprint.fx, footprint.fy, sample.weight, static_cast<int32_t>(query_head.query)};
  }
};

// Finds the first sample of each cell in the sorted list by binary search. The last thread finds the end of the last
// cell.
__global__ void __launch_bounds__(kThreads)
    cell_starts_kernel(int32_t num_cells, int32_t num_samples, const int32_t* sorted_cells, int32_t* cell_starts) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t cell = int64_t{blockIdx.x} * kThreads + threadIdx.x; cell <= num_cells; cell += step) {
    int32_t low = 0;
    int32_t high = num_samples;
    while (low < high) {
      const int32_t middle = low + (high - low) / 2;
      if (sorted_cells[middle] < cell) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    cell_starts[cell] = low;
  }
}

template <typename T>
struct GatherArgs {
  Sizes sizes;
  Partition partition;
  CellNumbering cells;
  const int32_t* cell_starts;  // the samples of cell c are order[cell_starts[c]] to order[cell_starts[c + 1] - 1]
  const int64_t* order;        // samples sorted by cell
  const Contribution<ComputeType<T>>* contributions;
  const T* grad_output;  // (Q, M, D)
  T* grad_value;         // (S, M, D)
};

// Adds the contributions of a cell's samples to their corner k.
template <bool kVectorized, typename T>
__device__ __forceinline__ void gather_cell(
    const GatherArgs<T>& args,
    const ThreadIndex& thread,
    int32_t cell,
    int k,
    int32_t channel,
    ComputeType<T> (&sum)[kVectorSize<T>]) {
  using A = ComputeType<T>;
  const int count = args.sizes.head_dim - channel;
  const T* head_grad_output = args.grad_output + int64_t{thread.head} * args.sizes.head_dim + channel;
  const int32_t end = args.cell_starts[cell + 1];
  for (int32_t begin = args.cell_starts[cell]; begin < end; begin += thread.lanes) {
    Contribution<A> mine{A(0), A(0), A(0), 0};
    if (begin + thread.lane < end) {
      mine = args.contributions[args.order[begin + thread.lane]];
    }
    const A my_weight = mine.weight * Footprint<A, int32_t>{0, 0, mine.fx, mine.fy}.corner_weight(k);
    const int lanes = min(thread.lanes, end - begin);
#pragma unroll 4
    for (int lane = 0; lane < lanes; ++lane) {
      const A weight = __shfl_sync(thread.mask(), my_weight, lane, thread.lanes);
      const int32_t query = __shfl_sync(thread.mask(), mine.query, lane, thread.lanes);
      if (count > 0) {
        A grad_output[kVectorSize<T>];
        load<kVectorized>(token_row(head_grad_output, query, args.sizes.token_stride()), count, grad_output);
#pragma unroll
        for (int i = 0; i < kVectorSize<T>; ++i) {
          sum[i] += weight * grad_output[i];
        }
      }
    }
  }
}

// The gradient of value for one image. A group of threads sums the gradient of one token and head, in the order of
// cells and, within a cell, of samples.
template <typename T, bool kVectorized>
__global__ void __launch_bounds__(kThreads, 8) gather_kernel(const __grid_constant__ GatherArgs<T> args) {
  const Sizes& sizes = args.sizes;
  const ThreadIndex thread(sizes, args.partition);
  if (thread.row >= sizes.tokens) {
    return;  // safe: the whole group returns, and groups do not synchronize with each other in this kernel
  }
  const int32_t token = static_cast<int32_t>(thread.row);
  int l = 0;
  while (l + 1 < sizes.num_levels && token >= sizes.levels[l + 1].start) {
    ++l;
  }
  const Level32 level = sizes.levels[l];
  const int32_t x = (token - level.start) % level.width;
  const int32_t y = (token - level.start) / level.width;
  for (int32_t channel = thread.lane * kVectorSize<T>; channel - thread.lane * kVectorSize<T> < sizes.head_dim;
       channel += thread.lanes * kVectorSize<T>) {
    ComputeType<T> sum[kVectorSize<T>] = {};
    for (int k = 0; k < 4; ++k) {
      const int32_t cell = args.cells.cell(thread.head, l, level, x - (k & 1), y - (k >> 1));
      gather_cell<kVectorized>(args, thread, cell, k, channel, sum);
    }
    if (channel < sizes.head_dim) {
      T* token_grad = token_row(args.grad_value, token, sizes.token_stride());
      store<kVectorized>(token_grad + int64_t{thread.head} * sizes.head_dim + channel, sizes.head_dim - channel, sum);
    }
  }
}

}  // namespace attnzoo::ms_deform_attn

// Writes tables in the form that the kernels read.

#include <algorithm>
#include <type_traits>

#include "cuda_host.cuh"
#include "cuda_table.cuh"

namespace attnzoo::deform_kv_attn {

template <typename T>
struct CellsArgs {
  Sizes sizes;
  const T* tables;  // (H, cells)
  T* cells;         // (H, padded cells, 4)
};

// The cells of one level, one per thread.
template <typename T>
__global__ void __launch_bounds__(kThreads) cells_kernel(const __grid_constant__ CellsArgs<T> args, int32_t l) {
  const Level32& level = args.sizes.levels[l];
  const int64_t level_cells = int64_t{level.padded_width} * (level.height + 2 * kTablePadding);
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= level_cells * args.sizes.heads) {
    return;
  }
  const int64_t head = i / level_cells;
  const auto index = static_cast<int32_t>(i % level_cells);
  const int32_t column = index % level.padded_width - static_cast<int32_t>(kTablePadding);
  const int32_t row = index / level.padded_width - static_cast<int32_t>(kTablePadding);
  const T* table = args.tables + head * args.sizes.cells + level.table_offset;
  const auto at = [&](int32_t x, int32_t y) {
    return in_table(level, x, y) ? T(kLog2E) * table[y * level.width + x] : T(0);
  };
  const T upper_left = at(column, row);
  const T upper_dx = at(column + 1, row) - upper_left;
  const T lower_left = at(column, row + 1);
  const T lower_dx = at(column + 1, row + 1) - lower_left;
  T* to = args.cells + (head * args.sizes.padded_cells + level.padded_offset + index) * 4;
  to[0] = upper_left;
  to[1] = upper_dx;
  to[2] = lower_left - upper_left;
  to[3] = lower_dx - upper_dx;
}

template <typename T>
Tensor PreparedCall::make_cells(const Sizes& sizes, cudaStream_t stream) const {
  const Tensor cells = torch::stable::new_empty(bias.tables, {problem.heads, problem.parameters_per_head, 4});
  for (int32_t l = 0; l < sizes.num_levels; ++l) {
    const Level& level = levels[l];
    check(
        std::is_same_v<T, double> || std::max(level.height, level.width) < kMaxFloatTableSize,
        "the CUDA kernels take tables with less than 2**22 rows and columns in float32");
    launch(
        &cells_kernel<T>, ceil_div(problem.heads * level.padded_height() * level.padded_width(), kThreads), kThreads,
        stream, {sizes, data<T>(bias.tables), mutable_data<T>(cells)}, l);
  }
  return cells;
}

template Tensor PreparedCall::make_cells<float>(const Sizes& sizes, cudaStream_t stream) const;
template Tensor PreparedCall::make_cells<double>(const Sizes& sizes, cudaStream_t stream) const;

}  // namespace attnzoo::deform_kv_attn

// Backward, in two passes over all pairs of queries and keys.
//
// - grad_query_kernel: a thread has one query and processes all keys, as in the forward pass. It also adds to the
//   gradient of the table.
// - grad_key_value_kernel: a block has a few keys and processes a part of the queries, a tile at a time. For each tile,
//   its threads first compute weights and gradients of scores, one query per thread. Then they sum these into the
//   gradients of keys and values.
//
// Only integers are added with atomic operations, so the result is deterministic.
#pragma once

#include <cmath>

#include "cuda_forward.cuh"

namespace attnzoo::deform_kv_attn {

template <typename S>
struct BackwardArgs {
  using T = ComputeType<S>;
  Inputs<S> inputs;
  StridedTensor<const S> grad_output;
  StridedTensor<const S> output;
  const T* logsumexp;  // (B, H, Nq)
  T* delta;            // (B, H, Nq), grad_output · output; written by `grad_query_kernel`
  StridedTensor<S> grad_query;
  T* grad_query_positions;  // (B, H, L, Nq, 2)
  TableGradSums<T> grad_tables;
  const int32_t* exponents;  // (2, H), of the sum of the norms of grad_output and of the largest norm of value
  int32_t splits;            // parts of the queries in `grad_key_value_kernel`
  int32_t queries_per_split;
  T* key_grad_parts;  // (splits, B, H, Nk, 2 · D + 2): gradients of key, value and position
};

// Resident blocks per multiprocessor, for __launch_bounds__, as many as are possible without spills. By default the
// compiler uses all registers, to compute the biases of several keys at the same time.
template <typename T, int kDim>
constexpr int kGradQueryBlocksPerSm = sizeof(T) * kDim <= 128 ? 8 : 1;

template <typename T, int kDim>
constexpr int kGradKeyBlocksPerSm = sizeof(T) * kDim <= 128 ? 6 : 1;

constexpr int32_t kNonfiniteExponent = 1 << 20;  // stands for infinity and NaN

// The sum and the maximum of the norms of kThreads rows, per block.
template <typename S>
struct NormArgs {
  using T = ComputeType<S>;
  Sizes sizes;
  StridedTensor<const S> rows;
  int32_t length;      // rows per image and head
  const bool* masked;  // (B, length), or null
  T* sums;             // (H, B, blocks)
  T* maxima;           // (H, B, blocks)
};

template <typename S>
__global__ void __launch_bounds__(kThreads) norm_kernel(const __grid_constant__ NormArgs<S> args) {
  using T = ComputeType<S>;
  const auto blocks = static_cast<uint32_t>(ceil_div(args.length, kThreads));
  const Task task(args.sizes, blockIdx.x / blocks);
  const auto row = static_cast<int32_t>(blockIdx.x % blocks * kThreads + threadIdx.x);
  T scale = 0;  // of the channels, so that squares neither overflow nor underflow
  T sum_of_squares = 0;
  if (row < args.length && !(args.masked && args.masked[int64_t{task.image} * args.length + row])) {
    const S* channels = args.rows.head(task.image, task.head) + row * args.rows.row_stride;
    for (int32_t d = 0; d < args.sizes.head_dim; ++d) {
      scale = std::fmax(scale, std::abs(static_cast<T>(channels[d])));
    }
    scale = scale > T(0) && std::isfinite(scale) ? scale : T(1);
    for (int32_t d = 0; d < args.sizes.head_dim; ++d) {
      const T x = static_cast<T>(channels[d]) / scale;
      sum_of_squares += x * x;
    }
  }
  T sum = scale * std::sqrt(sum_of_squares);
  T max = sum;
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(kFullMask, sum, offset);
    const T other = __shfl_xor_sync(kFullMask, max, offset);
    max = other > max ? other : max;  // may miss a NaN, but the sum does not
  }
  T* parts = dynamic_shared_memory<T>();
  const auto warp = static_cast<int>(threadIdx.x / kWarpSize);
  if (threadIdx.x % kWarpSize == 0) {
    parts[2 * warp] = sum;
    parts[2 * warp + 1] = max;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads / kWarpSize; ++i) {
      sum += parts[2 * i];
      max = parts[2 * i + 1] > max ? parts[2 * i + 1] : max;
    }
    const int64_t part = (int64_t{task.head} * args.sizes.batch + task.image) * blocks + blockIdx.x % blocks;
    args.sums[part] = sum;
    args.maxima[part] = max;
  }
}

// For each head, the smallest e with bound < 2^e, where bound is the sum or the maximum of the norms. One warp per head
// adds in a fixed order.
template <typename T>
struct ExponentArgs {
  int64_t parts;  // per head
  const T* sums;
  const T* maxima;
  bool use_sum;
  int32_t* exponents;  // (H)
};

template <typename T>
__global__ void __launch_bounds__(kWarpSize) exponent_kernel(const __grid_constant__ ExponentArgs<T> args) {
  T sum = 0;
  T max = 0;
  for (int64_t i = threadIdx.x; i < args.parts; i += kWarpSize) {
    const int64_t part = blockIdx.x * args.parts + i;
    sum += args.sums[part];
    max = args.maxima[part] > max ? args.maxima[part] : max;
  }
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(kFullMask, sum, offset);
    const T other = __shfl_xor_sync(kFullMask, max, offset);
    max = other > max ? other : max;
  }
  if (threadIdx.x == 0) {
    const T bound = args.use_sum ? sum : max;
    args.exponents[blockIdx.x] = !std::isfinite(sum) ? kNonfiniteExponent
        : bound == T(0)                              ? -kNonfiniteExponent
                                                     : std::ilogb(bound) + 1;
  }
}

// log₂ of the scale of the fixed-point gradients of a head's tables. The gradients of the scores of a query are its
// weights, which add up to 1, times at most 2 · |grad_output| · max |value|. One of the 63 bits is left for rounding.
template <typename T>
__device__ int32_t log2_fixed_point_scale(const Sizes& sizes, const int32_t* exponents, int32_t head) {
  constexpr int32_t kMaxExponent = std::numeric_limits<T>::max_exponent - 2;
  return max(-kMaxExponent, min(61 - exponents[head] - exponents[sizes.heads + head], kMaxExponent));
}

// What a thread keeps of its query.
template <typename T>
struct QueryState {
  T logsumexp;  // to base 2, like the scores
  T delta;

  __device__ __forceinline__ T weight(T score) const {
    return std::exp2(score - logsumexp);
  }
};

template <typename T, int kDim>
constexpr int kGradQuerySharedElements = 2 * kThreads * kPitch<T, kDim> + KeyTile<T, kDim, kKeyTile>::kElements;

template <typename S, int kDim>
__global__ void __launch_bounds__(kThreads, kGradQueryBlocksPerSm<ComputeType<S>, kDim>)
    grad_query_kernel(const __grid_constant__ BackwardArgs<S> args) {
  using T = ComputeType<S>;
  const Inputs<S>& inputs = args.inputs;
  const Sizes& sizes = inputs.sizes;
  const auto blocks = static_cast<uint32_t>(ceil_div(sizes.queries, kThreads));
  const Task task(sizes, blockIdx.x / blocks);
  const int32_t first_query = static_cast<int32_t>(blockIdx.x % blocks) * kThreads;
  const int32_t count = sizes.queries - first_query;
  const bool active = static_cast<int32_t>(threadIdx.x) < count;
  const int32_t query = first_query + min(static_cast<int32_t>(threadIdx.x), count - 1);
  const int64_t row = task.index * sizes.queries + query;
  T* queries = dynamic_shared_memory<T>();
  T* grad_outputs = queries + kThreads * kPitch<T, kDim>;
  T* my_query = queries + threadIdx.x * kPitch<T, kDim>;
  T* my_grad_output = grad_outputs + threadIdx.x * kPitch<T, kDim>;
  const KeyTile<T, kDim, kKeyTile> tile(grad_outputs + kThreads * kPitch<T, kDim>);
  const bool* no_mask = nullptr;
  rows_to_shared<kThreads, kDim>(
      inputs.vectorized, task.rows(args.output, first_query), args.output.row_stride, count, sizes.head_dim, T(1),
      no_mask, queries);
  rows_to_shared<kThreads, kDim>(
      inputs.vectorized, task.rows(args.grad_output, first_query), args.grad_output.row_stride, count, sizes.head_dim,
      T(1), no_mask, grad_outputs);
  __syncthreads();
  QueryState<T> state{active ? T(kLog2E) * args.logsumexp[row] : T(INFINITY), T(0)};
#pragma unroll
  for (int d = 0; d < kDim; ++d) {
    state.delta += my_query[d] * my_grad_output[d];
  }
  if (active) {
    args.delta[row] = state.delta;
  }
  __syncthreads();
  rows_to_shared<kThreads, kDim>(
      inputs.vectorized, task.rows(inputs.query, first_query), inputs.query.row_stride, count, sizes.head_dim,
      inputs.scale * T(kLog2E), no_mask, queries);
  const T fixed_point_scale = std::ldexp(T(1), log2_fixed_point_scale<T>(sizes, args.exponents, task.head));
  const T fixed_point_limit = std::ldexp(T(1), 62);
  bool nonfinite = false;
  T grad_query[1][kDim] = {};
  for (int32_t l = 0; l < sizes.num_levels; ++l) {
    const Level32 level = sizes.levels[l];
    const T* cells = inputs.level_cells(task, level);
    unsigned long long* sums =
        args.grad_tables.sums + (int64_t{task.head} * sizes.cells + level.table_offset) * kWordsPerCell<T>;
    const Position<T> my_position = table_position(inputs.level_query_positions(task, l), query, level);
    Position<T> grad_position{T(0), T(0)};
    for (int32_t first = level.first_key; first < level.end_key; first += kKeyTile) {
      __syncthreads();
      tile.load(inputs, task, first, level.end_key);
      __syncthreads();
#pragma unroll 1
      for (int step = 0; step < kKeyTile && first + step < level.end_key; step += kKeysPerStep) {
        const auto step_tile = tile.from_key(step);
        T scores[1][kKeysPerStep] = {};
        T grad_scores[1][kKeysPerStep] = {};
        add_dots<kDim, 2>(my_query, step_tile.keys, scores);
        add_dots<kDim, 2>(my_grad_output, step_tile.values, grad_scores);
        Footprint<T> footprints[kKeysPerStep];
        Cell<T> step_cells[kKeysPerStep];
#pragma unroll
        for (int j = 0; j < kKeysPerStep; ++j) {
          footprints[j] = compute_footprint(my_position, step_tile.positions[j], level);
          step_cells[j] = load_cell(cells, level, footprints[j]);
        }
#pragma unroll
        for (int j = 0; j < kKeysPerStep; ++j) {
          if (!step_tile.visible[j]) {
            grad_scores[0][j] = 0;
            continue;
          }
          const Footprint<T>& footprint = footprints[j];
          const T score = scores[0][j] + interpolate(step_cells[j], footprint);
          const T grad_score = state.weight(score) * (grad_scores[0][j] - state.delta);
          grad_scores[0][j] = grad_score;
          add_position_gradient(step_cells[j], footprint, grad_score, grad_position);
          const T scaled_grad = footprint.touches(level) ? grad_score * fixed_point_scale : T(0);
          const bool finite = std::abs(scaled_grad) < fixed_point_limit;
          nonfinite = nonfinite || !finite;
          interpolate_backward(sums, level, footprint, finite ? scaled_grad : T(0));
        }
        add_weighted_rows<kDim>(step_tile.keys, grad_scores, grad_query);
      }
    }
    if (active) {
      T* to = args.grad_query_positions +
          ((task.index * sizes.num_levels + l) * sizes.queries + query) * 2;
      to[0] = T(kLn2) * grad_position.x;
      to[1] = T(kLn2) * grad_position.y;
    }
  }
  if (nonfinite) {
    atomicMax(args.grad_tables.nonfinite + task.head, 1);
  }
  __syncthreads();
#pragma unroll
  for (int d = 0; d < kDim; ++d) {
    my_query[d] = inputs.scale * grad_query[0][d];
  }
  __syncthreads();
  rows_from_shared<kThreads, kDim>(
      inputs.vectorized, queries, count, sizes.head_dim, task.rows(args.grad_query, first_query),
      args.grad_query.row_stride);
}

// Threads that sum the gradients of one key; each has a part of the channels.
constexpr int kThreadsPerKey = kThreads / kKeysPerBlock;

template <typename T, int kDim>
constexpr int kGradKeySharedElements = 2 * kThreads * kPitch<T, kDim> + KeyTile<T, kDim, kKeysPerBlock>::kElements +
    2 * kKeysPerBlock * kPitch<T, kThreads>;

template <typename S, int kDim>
__global__ void __launch_bounds__(kThreads, kGradKeyBlocksPerSm<ComputeType<S>, kDim>)
    grad_key_value_kernel(const __grid_constant__ BackwardArgs<S> args) {
  using T = ComputeType<S>;
  constexpr int kVectors = kDim / kVectorSize<T> / kThreadsPerKey;  // vectors of channels per thread
  const Inputs<S>& inputs = args.inputs;
  const Sizes& sizes = inputs.sizes;
  const Level32& last = sizes.levels[sizes.num_levels - 1];
  const auto blocks = static_cast<uint32_t>(last.first_block + ceil_div(last.end_key - last.first_key, kKeysPerBlock));
  const auto block = static_cast<int32_t>(blockIdx.x % blocks);
  const int64_t split_task = blockIdx.x / blocks;
  const Task task(sizes, split_task % sizes.tasks());
  const int32_t first_query = static_cast<int32_t>(split_task / sizes.tasks()) * args.queries_per_split;
  const int32_t end_query = min(first_query + args.queries_per_split, sizes.queries);
  int32_t l = sizes.num_levels - 1;
  while (sizes.levels[l].first_block > block) {
    --l;
  }
  const Level32 level = sizes.levels[l];
  const T* cells = inputs.level_cells(task, level);
  const int32_t first_key = level.first_key + (block - level.first_block) * kKeysPerBlock;
  T* queries = dynamic_shared_memory<T>();
  T* grad_outputs = queries + kThreads * kPitch<T, kDim>;
  T* weights = grad_outputs + kThreads * kPitch<T, kDim>;  // (kKeysPerBlock, kThreads)
  T* grad_scores = weights + kKeysPerBlock * kPitch<T, kThreads>;
  const KeyTile<T, kDim, kKeysPerBlock> tile(grad_scores + kKeysPerBlock * kPitch<T, kThreads>);
  const bool* no_mask = nullptr;
  tile.load(inputs, task, first_key, level.end_key);
  Position<T> grad_positions[kKeysPerBlock] = {};
  AlignedVector<T> grad_key[kVectors] = {};
  AlignedVector<T> grad_value[kVectors] = {};
  const int my_key = static_cast<int>(threadIdx.x) / kThreadsPerKey;
  const int my_part = static_cast<int>(threadIdx.x) % kThreadsPerKey;
  for (int32_t first = first_query; first < end_query; first += kThreads) {
    const int32_t count = end_query - first;
    __syncthreads();
    rows_to_shared<kThreads, kDim>(
        inputs.vectorized, task.rows(inputs.query, first), inputs.query.row_stride, count, sizes.head_dim,
        inputs.scale * T(kLog2E), no_mask, queries);
    rows_to_shared<kThreads, kDim>(
        inputs.vectorized, task.rows(args.grad_output, first), args.grad_output.row_stride, count, sizes.head_dim, T(1),
        no_mask, grad_outputs);
    __syncthreads();
    const bool active = static_cast<int32_t>(threadIdx.x) < count;
    const int32_t query = first + min(static_cast<int32_t>(threadIdx.x), count - 1);
    const int64_t row = task.index * sizes.queries + query;
    // A missing query gets zero weights.
    const QueryState<T> state{
        active ? T(kLog2E) * args.logsumexp[row] : T(INFINITY), active ? args.delta[row] : T(0)};
    const Position<T> my_position = table_position(inputs.level_query_positions(task, l), query, level);
    T scores[1][kKeysPerBlock] = {};
    T grad_weights[1][kKeysPerBlock] = {};
    add_dots<kDim, 2>(queries + threadIdx.x * kPitch<T, kDim>, tile.keys, scores);
    add_dots<kDim, 2>(grad_outputs + threadIdx.x * kPitch<T, kDim>, tile.values, grad_weights);
    Footprint<T> footprints[kKeysPerBlock];
    Cell<T> tile_cells[kKeysPerBlock];
#pragma unroll
    for (int j = 0; j < kKeysPerBlock; ++j) {
      footprints[j] = compute_footprint(my_position, tile.positions[j], level);
      tile_cells[j] = load_cell(cells, level, footprints[j]);
    }
#pragma unroll
    for (int j = 0; j < kKeysPerBlock; ++j) {
      T weight = 0;
      T grad_score = 0;
      if (tile.visible[j]) {
        weight = state.weight(scores[0][j] + interpolate(tile_cells[j], footprints[j]));
        grad_score = weight * (grad_weights[0][j] - state.delta);
        add_position_gradient(tile_cells[j], footprints[j], grad_score, grad_positions[j]);
      }
      weights[j * kPitch<T, kThreads> + threadIdx.x] = weight;
      grad_scores[j * kPitch<T, kThreads> + threadIdx.x] = grad_score;
    }
    __syncthreads();
#pragma unroll 2
    for (int i = 0; i < kThreads; i += kVectorSize<T>) {
      const AlignedVector<T> weight = load_vector(weights + my_key * kPitch<T, kThreads> + i);
      const AlignedVector<T> grad_score = load_vector(grad_scores + my_key * kPitch<T, kThreads> + i);
#pragma unroll
      for (int k = 0; k < kVectorSize<T>; ++k) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          const int offset = (i + k) * kPitch<T, kDim> + (v * kThreadsPerKey + my_part) * kVectorSize<T>;
          const AlignedVector<T> grad_output = load_vector(grad_outputs + offset);
          const AlignedVector<T> query_vector = load_vector(queries + offset);
#pragma unroll
          for (int d = 0; d < kVectorSize<T>; ++d) {
            grad_value[v].val[d] += weight.val[k] * grad_output.val[d];
            grad_key[v].val[d] += grad_score.val[k] * query_vector.val[d];
          }
        }
      }
    }
  }
  __syncthreads();  // in a split without queries, nothing has waited for the tile yet
  const int32_t row = 2 * sizes.head_dim + 2;
  T* to = args.key_grad_parts + (split_task * sizes.keys + first_key) * row;
  const bool in_range = first_key + my_key < level.end_key;
  const bool visible = tile.visible[my_key];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
#pragma unroll
    for (int d = 0; d < kVectorSize<T>; ++d) {
      const int32_t channel = (v * kThreadsPerKey + my_part) * kVectorSize<T> + d;
      if (in_range && channel < sizes.head_dim) {
        // The sums of a masked key are zero only if all queries are finite. kLn2 undoes the factor kLog2E of queries.
        to[my_key * row + channel] = visible ? T(kLn2) * grad_key[v].val[d] : T(0);
        to[my_key * row + sizes.head_dim + channel] = visible ? grad_value[v].val[d] : T(0);
      }
    }
  }
  __syncthreads();
  // Every thread has a part of the gradient of each key's position: reduce over the warps, then over the block.
  constexpr int kWarps = kThreads / kWarpSize;
  T* sums = queries;  // (kKeysPerBlock, 2, kWarps)
#pragma unroll
  for (int j = 0; j < kKeysPerBlock; ++j) {
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      grad_positions[j].x += __shfl_xor_sync(kFullMask, grad_positions[j].x, offset);
      grad_positions[j].y += __shfl_xor_sync(kFullMask, grad_positions[j].y, offset);
    }
    if (threadIdx.x % kWarpSize == 0) {
      sums[2 * j * kWarps + threadIdx.x / kWarpSize] = grad_positions[j].x;
      sums[(2 * j + 1) * kWarps + threadIdx.x / kWarpSize] = grad_positions[j].y;
    }
  }
  __syncthreads();
  if (threadIdx.x < 2 * kKeysPerBlock && first_key + static_cast<int32_t>(threadIdx.x) / 2 < level.end_key) {
    T sum = 0;
    for (int k = 0; k < kWarps; ++k) {
      sum += sums[threadIdx.x * kWarps + k];
    }
    to[threadIdx.x / 2 * row + 2 * sizes.head_dim + threadIdx.x % 2] = T(-kLn2) * sum;
  }
}

// to[i, j] = Σ_k parts[i, k, j], with sizes outer, count, inner of i, k, j. One thread per element of `to`.
template <typename T>
struct SumArgs {
  const T* parts;
  int64_t outer;
  int64_t count;
  int64_t inner;
  T* to;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) sum_kernel(const __grid_constant__ SumArgs<T> args) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < args.outer * args.inner) {
    const T* part = args.parts + i / args.inner * args.count * args.inner + i % args.inner;
    T sum = 0;
    for (int64_t k = 0; k < args.count; ++k) {
      sum += part[k * args.inner];
    }
    args.to[i] = sum;
  }
}

// Sums `key_grad_parts` over the splits. One thread per element of a split.
template <typename S>
struct ReduceKeyGradsArgs {
  using T = ComputeType<S>;
  Sizes sizes;
  int32_t splits;
  const T* key_grad_parts;
  StridedTensor<S> grad_key;
  StridedTensor<S> grad_value;
  T* grad_key_positions;  // (B, H, Nk, 2)
};

template <typename S>
__global__ void __launch_bounds__(kThreads)
    reduce_key_grads_kernel(const __grid_constant__ ReduceKeyGradsArgs<S> args) {
  using T = ComputeType<S>;
  const Sizes& sizes = args.sizes;
  const int32_t row = 2 * sizes.head_dim + 2;
  const int64_t split_size = sizes.tasks() * sizes.keys * row;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= split_size) {
    return;
  }
  T sum = 0;
  for (int32_t split = 0; split < args.splits; ++split) {
    sum += args.key_grad_parts[split * split_size + i];
  }
  const auto column = static_cast<int32_t>(i % row);
  const int64_t key = i / row % sizes.keys;
  const Task task(sizes, i / row / sizes.keys);
  if (column < sizes.head_dim) {
    args.grad_key.head(task.image, task.head)[key * args.grad_key.row_stride + column] = static_cast<S>(sum);
  } else if (column < 2 * sizes.head_dim) {
    args.grad_value.head(task.image, task.head)[key * args.grad_value.row_stride + column - sizes.head_dim] = static_cast<S>(sum);
  } else {
    args.grad_key_positions[(task.index * sizes.keys + key) * 2 + column - 2 * sizes.head_dim] = sum;
  }
}

// Converts the gradients of the tables from fixed point; NaN for a head with an infinite or NaN gradient.
template <typename T>
struct TableGradsArgs {
  Sizes sizes;
  TableGradSums<T> sums;
  const int32_t* exponents;
  T* grad_tables;  // (H, cells)
};

template <typename T>
__global__ void __launch_bounds__(kThreads) table_grads_kernel(const __grid_constant__ TableGradsArgs<T> args) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < int64_t{args.sizes.heads} * args.sizes.cells) {
    const auto head = static_cast<int32_t>(i / args.sizes.cells);
    const int32_t log2_scale = log2_fixed_point_scale<T>(args.sizes, args.exponents, head);
    T sum = static_cast<T>(static_cast<long long>(args.sums.sums[i * kWordsPerCell<T>]));
    if constexpr (kWordsPerCell<T> == 2) {
      sum += std::ldexp(static_cast<T>(static_cast<long long>(args.sums.sums[i * 2 + 1])), -kLowWordBits);
    }
    const int32_t max_exponent = max(args.exponents[head], args.exponents[args.sizes.heads + head]);
    const bool finite = max_exponent < kNonfiniteExponent && !args.sums.nonfinite[head];
    args.grad_tables[i] = finite ? std::ldexp(sum, -log2_scale) : T(NAN);
  }
}

}  // namespace attnzoo::deform_kv_attn

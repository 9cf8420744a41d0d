// Backward, in two passes over all pairs. By queries: every thread has a query, goes through the keys as in the forward
// pass, and adds to the gradient of the table. By keys: a block has a tile of keys and goes through a share of the
// queries; for every tile of them its threads are first queries, which work out weights and slopes, and then keys, which
// gather these. Nothing but integers is added atomically, so the result is always the same.
#pragma once

#include <cmath>

#include "cuda_forward.cuh"

namespace attnzoo::deform_kv_attn {

template <typename T>
struct BackwardCall {
  Given<T> given;
  Rows<const T> by_output;
  Rows<const T> output;
  const T* log_sums;  // (B, H, Nq)
  T* means;  // (B, H, Nq): of the gradients by the weights of a query, written by queries, read by keys
  Rows<T> by_query;
  T* by_query_positions;  // (B, H, L, Nq, 2)
  TableSums<T> by_tables;
  const int32_t* exponents;  // (2, H), of the sum of the norms of output gradients, and of the largest norm of a value
  int32_t splits;  // of the queries, among blocks of keys
  int32_t queries_per_split;
  T* by_keys;  // (splits, B, H, Nk, 2 · D + 2): by key, by value, by position
};

// Blocks that a multiprocessor is to hold at a time, where that costs no spills: left to itself, the compiler takes all
// registers there are to have the biases of several keys under way.
template <typename T, int kDim>
constexpr int kBlocks = sizeof(T) * kDim <= 128 ? 6 : 1;

constexpr int32_t kNotFinite = 1 << 20;  // as an exponent

// The norms of the rows of a head, added up and the largest of them, per block of kThreads rows.
template <typename T>
struct NormCall {
  Sizes sizes;
  Rows<const T> rows;
  int32_t length;  // rows of a head of an image
  const bool* hidden;  // (B, length), or null
  T* sums;  // (H, B, blocks)
  T* maxima;  // (H, B, blocks)
};

template <typename T>
__global__ void __launch_bounds__(kThreads) norm_kernel(const __grid_constant__ NormCall<T> call) {
  const auto blocks = static_cast<uint32_t>(ceil_div(call.length, kThreads));
  const Task task(call.sizes, blockIdx.x / blocks);
  const auto row = static_cast<int32_t>(blockIdx.x % blocks * kThreads + threadIdx.x);
  T unit = 0;  // so that squares neither overflow nor vanish
  T squares = 0;
  if (row < call.length && !(call.hidden && call.hidden[int64_t{task.image} * call.length + row])) {
    const T* channels = call.rows.of(task.image, task.head) + row * call.rows.row;
    for (int32_t d = 0; d < call.sizes.dim; ++d) {
      unit = std::fmax(unit, std::abs(channels[d]));
    }
    unit = unit > T(0) && std::isfinite(unit) ? unit : T(1);
    for (int32_t d = 0; d < call.sizes.dim; ++d) {
      const T x = channels[d] / unit;
      squares += x * x;
    }
  }
  T sum = unit * std::sqrt(squares);
  T largest = sum;
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(kFullMask, sum, offset);
    const T other = __shfl_xor_sync(kFullMask, largest, offset);
    largest = other > largest ? other : largest;  // what is not a number is found in the sum
  }
  T* parts = dynamic_shared_memory<T>();
  const auto warp = static_cast<int>(threadIdx.x / kWarpSize);
  if (threadIdx.x % kWarpSize == 0) {
    parts[2 * warp] = sum;
    parts[2 * warp + 1] = largest;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads / kWarpSize; ++i) {
      sum += parts[2 * i];
      largest = parts[2 * i + 1] > largest ? parts[2 * i + 1] : largest;
    }
    const int64_t at =
        (int64_t{task.head} * call.sizes.batch + task.image) * blocks + blockIdx.x % blocks;
    call.sums[at] = sum;
    call.maxima[at] = largest;
  }
}

// Of each head the least e such that the sum of all norms, or the largest, is below 2ᵉ: a warp per head, always in the
// same order.
template <typename T>
struct ExponentCall {
  int64_t parts;  // per head
  const T* sums;
  const T* maxima;
  bool of_sum;
  int32_t* exponents;  // (H)
};

template <typename T>
__global__ void __launch_bounds__(kWarpSize) exponent_kernel(const __grid_constant__ ExponentCall<T> call) {
  T sum = 0;
  T largest = 0;
  for (int64_t i = threadIdx.x; i < call.parts; i += kWarpSize) {
    const int64_t at = blockIdx.x * call.parts + i;
    sum += call.sums[at];
    largest = call.maxima[at] > largest ? call.maxima[at] : largest;
  }
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(kFullMask, sum, offset);
    const T other = __shfl_xor_sync(kFullMask, largest, offset);
    largest = other > largest ? other : largest;
  }
  if (threadIdx.x == 0) {
    const T bound = call.of_sum ? sum : largest;
    call.exponents[blockIdx.x] = !std::isfinite(sum) ? kNotFinite : bound == T(0) ? -kNotFinite : std::ilogb(bound) + 1;
  }
}

// log₂ of how many units make one in the gradient of a head's tables. The gradients by the scores of a query are its
// weights, which add up to one, times at most 2 · |by_output| · max|value|; of the 63 bits one more is left for
// rounding.
template <typename T>
__device__ int32_t log2_units(const Sizes& sizes, const int32_t* exponents, int32_t head) {
  constexpr int32_t kFurthest = std::numeric_limits<T>::max_exponent - 2;
  return max(-kFurthest, min(61 - exponents[head] - exponents[sizes.heads + head], kFurthest));
}

// What the threads know of a query.
template <typename T>
struct QueryState {
  T log_sum;  // to base 2, as scores are
  T mean;

  __device__ __forceinline__ T weight(T score) const {
    return std::exp2(score - log_sum);
  }
};

template <typename T, int kDim>
constexpr int kByQueriesNumbers = 2 * kThreads * kPitch<T, kDim> + KeyTile<T, kDim, kTile>::kNumbers;

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kDim>)
    by_queries_kernel(const __grid_constant__ BackwardCall<T> call) {
  const Given<T>& given = call.given;
  const Sizes& sizes = given.sizes;
  const auto blocks = static_cast<uint32_t>(ceil_div(sizes.queries, kThreads));
  const Task task(sizes, blockIdx.x / blocks);
  const int32_t first_query = static_cast<int32_t>(blockIdx.x % blocks) * kThreads;
  const int32_t count = sizes.queries - first_query;
  const bool active = static_cast<int32_t>(threadIdx.x) < count;
  const int32_t query = first_query + min(static_cast<int32_t>(threadIdx.x), count - 1);
  const int64_t row_of_all = task.number * sizes.queries + query;
  T* queries = dynamic_shared_memory<T>();
  T* slopes = queries + kThreads * kPitch<T, kDim>;
  T* my_query = queries + threadIdx.x * kPitch<T, kDim>;
  T* my_slope = slopes + threadIdx.x * kPitch<T, kDim>;
  const KeyTile<T, kDim, kTile> staged(slopes + kThreads * kPitch<T, kDim>);
  const bool* none = nullptr;
  stage<kThreads, kDim>(
      given.whole, call.output.of(task.image, task.head) + first_query * call.output.row, call.output.row, count,
      sizes.dim, T(1), none, queries);
  stage<kThreads, kDim>(
      given.whole, call.by_output.of(task.image, task.head) + first_query * call.by_output.row, call.by_output.row,
      count, sizes.dim, T(1), none, slopes);
  __syncthreads();
  QueryState<T> state{active ? T(kLog2E) * call.log_sums[row_of_all] : T(INFINITY), T(0)};
#pragma unroll
  for (int d = 0; d < kDim; ++d) {
    state.mean += my_query[d] * my_slope[d];
  }
  if (active) {
    call.means[row_of_all] = state.mean;
  }
  __syncthreads();
  stage<kThreads, kDim>(
      given.whole, given.query.of(task.image, task.head) + first_query * given.query.row, given.query.row, count,
      sizes.dim, given.scale * T(kLog2E), none, queries);
  const T units = std::ldexp(T(1), log2_units<T>(sizes, call.exponents, task.head));
  const T most = std::ldexp(T(1), 62);
  bool broken = false;
  T by_query[1][kDim] = {};
  for (int32_t l = 0; l < sizes.num_levels; ++l) {
    const Level32 level = sizes.levels[l];
    const T* table = given.table(task, level);
    unsigned long long* sums =
        call.by_tables.sums + (int64_t{task.head} * sizes.cells + level.first_cell) * kWords<T>;
    const Place<T> my_place = place(given.queries_on(task, l), query, level);
    Place<T> by_place{T(0), T(0)};
    for (int32_t first = level.first_key; first < level.end_key; first += kTile) {
      __syncthreads();
      staged.load(given, task, first, level.end_key);
      __syncthreads();
#pragma unroll 1
      for (int part = 0; part < kTile && first + part < level.end_key; part += kScores) {
        const auto tile = staged.from(part);
        T scores[1][kScores] = {};
        T by_scores[1][kScores] = {};
        add_products<kDim>(my_query, tile.keys, scores);
        add_products<kDim>(my_slope, tile.values, by_scores);
#pragma unroll
        for (int j = 0; j < kScores; ++j) {
          if (!tile.seen[j]) {
            by_scores[0][j] = 0;
            continue;
          }
          const Footprint<T> at = locate(my_place, tile.places[j], level);
          const Bias<T> bias = interpolate(table, level, at);
          const T slope = state.weight(scores[0][j] + T(kLog2E) * bias.value) * (by_scores[0][j] - state.mean);
          by_scores[0][j] = slope;
          by_place.x += slope * bias.by_x;
          by_place.y += slope * bias.by_y;
          const T in_units = at.inside ? slope * units : T(0);
          const bool fits = std::abs(in_units) < most;
          broken = broken || !fits;
          spread(sums, level, at, fits ? in_units : T(0));
        }
        add_rows<kDim>(tile.keys, by_scores, by_query);
      }
    }
    if (active) {
      T* to = call.by_query_positions +
          ((task.number * sizes.num_levels + l) * sizes.queries + query) * 2;
      to[0] = by_place.x;
      to[1] = by_place.y;
    }
  }
  if (broken) {
    atomicMax(call.by_tables.broken + task.head, 1);
  }
  __syncthreads();
#pragma unroll
  for (int d = 0; d < kDim; ++d) {
    my_query[d] = given.scale * by_query[0][d];
  }
  __syncthreads();
  unstage<kThreads, kDim>(
      given.whole, queries, count, sizes.dim, call.by_query.of(task.image, task.head) + first_query * call.by_query.row,
      call.by_query.row);
}

// Per key, `kThreads / kKeys` threads share its channels when they gather.
constexpr int kGatherers = kThreads / kKeys;

template <typename T, int kDim>
constexpr int kByKeysNumbers =
    2 * kThreads * kPitch<T, kDim> + KeyTile<T, kDim, kKeys>::kNumbers + 2 * kKeys * kPitch<T, kThreads>;

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kDim>)
    by_keys_kernel(const __grid_constant__ BackwardCall<T> call) {
  constexpr int kVectors = kDim / kVectorSize<T> / kGatherers;  // of channels that a thread gathers
  const Given<T>& given = call.given;
  const Sizes& sizes = given.sizes;
  const Level32& last = sizes.levels[sizes.num_levels - 1];
  const auto blocks = static_cast<uint32_t>(last.first_block + ceil_div(last.end_key - last.first_key, kKeys));
  const auto block = static_cast<int32_t>(blockIdx.x % blocks);
  const int64_t task_of_split = blockIdx.x / blocks;
  const Task task(sizes, task_of_split % sizes.tasks());
  const int32_t first_query = static_cast<int32_t>(task_of_split / sizes.tasks()) * call.queries_per_split;
  const int32_t end_query = min(first_query + call.queries_per_split, sizes.queries);
  int32_t l = sizes.num_levels - 1;
  while (sizes.levels[l].first_block > block) {
    --l;
  }
  const Level32 level = sizes.levels[l];
  const T* table = given.table(task, level);
  const int32_t first_key = level.first_key + (block - level.first_block) * kKeys;
  T* queries = dynamic_shared_memory<T>();
  T* slopes = queries + kThreads * kPitch<T, kDim>;
  T* weights = slopes + kThreads * kPitch<T, kDim>;  // (kKeys, kThreads)
  T* by_scores = weights + kKeys * kPitch<T, kThreads>;
  const KeyTile<T, kDim, kKeys> tile(by_scores + kKeys * kPitch<T, kThreads>);
  const bool* none = nullptr;
  tile.load(given, task, first_key, level.end_key);
  Place<T> by_places[kKeys] = {};
  Vector<T> by_key[kVectors] = {};
  Vector<T> by_value[kVectors] = {};
  const int my_key = static_cast<int>(threadIdx.x) / kGatherers;
  const int my_share = static_cast<int>(threadIdx.x) % kGatherers;
  for (int32_t first = first_query; first < end_query; first += kThreads) {
    const int32_t count = end_query - first;
    __syncthreads();
    stage<kThreads, kDim>(
        given.whole, given.query.of(task.image, task.head) + first * given.query.row, given.query.row, count, sizes.dim,
        given.scale * T(kLog2E), none, queries);
    stage<kThreads, kDim>(
        given.whole, call.by_output.of(task.image, task.head) + first * call.by_output.row, call.by_output.row, count,
        sizes.dim, T(1), none, slopes);
    __syncthreads();
    const bool active = static_cast<int32_t>(threadIdx.x) < count;
    const int32_t query = first + min(static_cast<int32_t>(threadIdx.x), count - 1);
    const int64_t row_of_all = task.number * sizes.queries + query;
    // A query that is not there has weight zero.
    const QueryState<T> state{
        active ? T(kLog2E) * call.log_sums[row_of_all] : T(INFINITY), active ? call.means[row_of_all] : T(0)};
    const Place<T> my_place = place(given.queries_on(task, l), query, level);
    T scores[1][kKeys] = {};
    T products[1][kKeys] = {};
    add_products<kDim>(queries + threadIdx.x * kPitch<T, kDim>, tile.keys, scores);
    add_products<kDim>(slopes + threadIdx.x * kPitch<T, kDim>, tile.values, products);
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      T weight = 0;
      T slope = 0;
      if (tile.seen[j]) {
        const Bias<T> bias = interpolate(table, level, locate(my_place, tile.places[j], level));
        weight = state.weight(scores[0][j] + T(kLog2E) * bias.value);
        slope = weight * (products[0][j] - state.mean);
        by_places[j].x += slope * bias.by_x;
        by_places[j].y += slope * bias.by_y;
      }
      weights[j * kPitch<T, kThreads> + threadIdx.x] = weight;
      by_scores[j * kPitch<T, kThreads> + threadIdx.x] = slope;
    }
    __syncthreads();
#pragma unroll 2
    for (int i = 0; i < kThreads; i += kVectorSize<T>) {
      const Vector<T> weight = vector_at(weights + my_key * kPitch<T, kThreads> + i);
      const Vector<T> slope = vector_at(by_scores + my_key * kPitch<T, kThreads> + i);
#pragma unroll
      for (int k = 0; k < kVectorSize<T>; ++k) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          const int at = (i + k) * kPitch<T, kDim> + (v * kGatherers + my_share) * kVectorSize<T>;
          const Vector<T> by_output = vector_at(slopes + at);
          const Vector<T> of_query = vector_at(queries + at);
#pragma unroll
          for (int d = 0; d < kVectorSize<T>; ++d) {
            by_value[v].x[d] += weight.x[k] * by_output.x[d];
            by_key[v].x[d] += slope.x[k] * of_query.x[d];
          }
        }
      }
    }
  }
  __syncthreads();  // a split without queries has not waited for the tile
  const int32_t row = 2 * sizes.dim + 2;
  T* to = call.by_keys + (task_of_split * sizes.keys + first_key) * row;
  const bool there = first_key + my_key < level.end_key;
  const bool seen = tile.seen[my_key];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
#pragma unroll
    for (int d = 0; d < kVectorSize<T>; ++d) {
      const int32_t channel = (v * kGatherers + my_share) * kVectorSize<T> + d;
      if (there && channel < sizes.dim) {
        // What is added for a hidden key is zero only where the queries' numbers are finite. Queries were staged in units
        // of ln 2.
        to[my_key * row + channel] = seen ? T(kLn2) * by_key[v].x[d] : T(0);
        to[my_key * row + sizes.dim + channel] = seen ? by_value[v].x[d] : T(0);
      }
    }
  }
  __syncthreads();
  // Of each key the positions' gradients lie in all threads: first the sums of the warps, then those of the block.
  constexpr int kWarps = kThreads / kWarpSize;
  T* sums = queries;  // (kKeys, 2, kWarps)
#pragma unroll
  for (int j = 0; j < kKeys; ++j) {
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      by_places[j].x += __shfl_xor_sync(kFullMask, by_places[j].x, offset);
      by_places[j].y += __shfl_xor_sync(kFullMask, by_places[j].y, offset);
    }
    if (threadIdx.x % kWarpSize == 0) {
      sums[2 * j * kWarps + threadIdx.x / kWarpSize] = by_places[j].x;
      sums[(2 * j + 1) * kWarps + threadIdx.x / kWarpSize] = by_places[j].y;
    }
  }
  __syncthreads();
  if (threadIdx.x < 2 * kKeys && first_key + static_cast<int32_t>(threadIdx.x) / 2 < level.end_key) {
    T sum = 0;
    for (int k = 0; k < kWarps; ++k) {
      sum += sums[threadIdx.x * kWarps + k];
    }
    to[threadIdx.x / 2 * row + 2 * sizes.dim + threadIdx.x % 2] = -sum;
  }
}

// to[o, i] = Σ_k parts[o, k, i], a number per thread.
template <typename T>
struct SumCall {
  const T* parts;
  int64_t outer;
  int64_t count;
  int64_t inner;
  T* to;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) sum_kernel(const __grid_constant__ SumCall<T> call) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at < call.outer * call.inner) {
    const T* part = call.parts + at / call.inner * call.count * call.inner + at % call.inner;
    T sum = 0;
    for (int64_t k = 0; k < call.count; ++k) {
      sum += part[k * call.inner];
    }
    call.to[at] = sum;
  }
}

// Brings together what the splits of `by_keys` hold: a thread per image, head, key and number.
template <typename T>
struct KeysCall {
  Sizes sizes;
  int32_t splits;
  const T* by_keys;
  Rows<T> by_key;
  Rows<T> by_value;
  T* by_position;  // (B, H, Nk, 2)
};

template <typename T>
__global__ void __launch_bounds__(kThreads) finish_keys_kernel(const __grid_constant__ KeysCall<T> call) {
  const Sizes& sizes = call.sizes;
  const int32_t row = 2 * sizes.dim + 2;
  const int64_t numbers = sizes.tasks() * sizes.keys * row;
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= numbers) {
    return;
  }
  T sum = 0;
  for (int32_t split = 0; split < call.splits; ++split) {
    sum += call.by_keys[split * numbers + at];
  }
  const auto column = static_cast<int32_t>(at % row);
  const int64_t key = at / row % sizes.keys;
  const Task task(sizes, at / row / sizes.keys);
  if (column < sizes.dim) {
    call.by_key.of(task.image, task.head)[key * call.by_key.row + column] = sum;
  } else if (column < 2 * sizes.dim) {
    call.by_value.of(task.image, task.head)[key * call.by_value.row + column - sizes.dim] = sum;
  } else {
    call.by_position[(task.number * sizes.keys + key) * 2 + column - 2 * sizes.dim] = sum;
  }
}

template <typename T>
struct TablesCall {
  Sizes sizes;
  TableSums<T> sums;
  const int32_t* exponents;
  T* gradient;  // (H, cells)
};

template <typename T>
__global__ void __launch_bounds__(kThreads) finish_tables_kernel(const __grid_constant__ TablesCall<T> call) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at < int64_t{call.sizes.heads} * call.sizes.cells) {
    const auto head = static_cast<int32_t>(at / call.sizes.cells);
    const int32_t units = log2_units<T>(call.sizes, call.exponents, head);
    T sum = static_cast<T>(static_cast<long long>(call.sums.sums[at * kWords<T>]));
    if constexpr (kWords<T> == 2) {
      sum += std::ldexp(static_cast<T>(static_cast<long long>(call.sums.sums[at * 2 + 1])), -kLower);
    }
    const int32_t most = max(call.exponents[head], call.exponents[call.sizes.heads + head]);
    const bool finite = most < kNotFinite && !call.sums.broken[head];
    call.gradient[at] = finite ? std::ldexp(sum, -units) : T(NAN);
  }
}

}  // namespace attnzoo::deform_kv_attn

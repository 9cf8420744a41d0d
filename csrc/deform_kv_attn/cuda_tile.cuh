// Rows of channels in the memory that the threads of a block share, and products of rows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../common/cuda_launch.cuh"
#include "../common/cuda_vector.cuh"
#include "cuda_sizes.cuh"

namespace attnzoo::deform_kv_attn {

// Numbers from one row to the next. With a vector more than a row is long, eight threads that each read a vector of
// neighbouring rows do so from different banks.
template <typename T, int kLength>
constexpr int kPitch = kLength + kVectorSize<T>;

template <typename T>
struct alignas(16) Vector {
  T x[kVectorSize<T>];
};

template <typename T>
__device__ __forceinline__ Vector<T> vector_at(const T* shared) {
  return *reinterpret_cast<const Vector<T>*>(shared);
}

// `count` rows of `dim` channels, times `factor`, into `kRows` rows of kDim; what is missing or hidden becomes zero.
// kVectorized: as in `load`.
template <bool kVectorized, int kRows, int kDim, typename T>
__device__ __forceinline__ void stage_as(
    const T* rows, int64_t stride, int32_t count, int32_t dim, T factor, const bool* hidden, T* to) {
#pragma unroll 4
  for (int i = threadIdx.x; i < kRows * kDim / kVectorSize<T>; i += kThreads) {
    const int row = i / (kDim / kVectorSize<T>);
    const int channel = i % (kDim / kVectorSize<T>) * kVectorSize<T>;
    Vector<T> vector{};
    if (row < count && channel < dim && !(hidden && hidden[row])) {
      load<kVectorized>(rows + row * stride + channel, dim - channel, vector.x);
    }
#pragma unroll
    for (int k = 0; k < kVectorSize<T>; ++k) {
      vector.x[k] *= factor;
    }
    *reinterpret_cast<Vector<T>*>(to + row * kPitch<T, kDim> + channel) = vector;
  }
}

template <int kRows, int kDim, typename T>
__device__ __forceinline__ void stage(
    bool whole, const T* rows, int64_t stride, int32_t count, int32_t dim, T factor, const bool* hidden, T* to) {
  if (whole) {
    stage_as<true, kRows, kDim>(rows, stride, count, dim, factor, hidden, to);
  } else {
    stage_as<false, kRows, kDim>(rows, stride, count, dim, factor, hidden, to);
  }
}

// The other way: kRows rows of kDim, of which `count` are wanted, to rows of `dim` channels.
template <int kRows, int kDim, typename T>
__device__ __forceinline__ void unstage(
    bool whole, const T* from, int32_t count, int32_t dim, T* rows, int64_t stride) {
#pragma unroll 4
  for (int i = threadIdx.x; i < kRows * kDim / kVectorSize<T>; i += kThreads) {
    const int row = i / (kDim / kVectorSize<T>);
    const int channel = i % (kDim / kVectorSize<T>) * kVectorSize<T>;
    if (row < count && channel < dim) {
      const Vector<T> vector = vector_at(from + row * kPitch<T, kDim> + channel);
      T* to = rows + row * stride + channel;
      if (whole) {
        store<true>(to, dim - channel, vector.x);
      } else {
        store<false>(to, dim - channel, vector.x);
      }
    }
  }
}

// products[i][j] += row i of kThreads apart · rows[j]. What is read of `rows` serves all of a thread's own.
template <int kDim, typename T, int kMine, int kRows>
__device__ __forceinline__ void add_products(const T* mine, const T* rows, T (&products)[kMine][kRows]) {
#pragma unroll 2
  for (int d = 0; d < kDim; d += kVectorSize<T>) {
    Vector<T> a[kMine];
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      a[i] = vector_at(mine + i * kThreads * kPitch<T, kDim> + d);
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const Vector<T> b = vector_at(rows + j * kPitch<T, kDim> + d);
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
#pragma unroll
        for (int k = 0; k < kVectorSize<T>; ++k) {
          products[i][j] += a[i].x[k] * b.x[k];
        }
      }
    }
  }
}

// sums[i] += Σ_j factors[i][j] · rows[j]
template <int kDim, typename T, int kMine, int kRows>
__device__ __forceinline__ void add_rows(const T* rows, const T (&factors)[kMine][kRows], T (&sums)[kMine][kDim]) {
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
#pragma unroll
    for (int d = 0; d < kDim; d += kVectorSize<T>) {
      const Vector<T> b = vector_at(rows + j * kPitch<T, kDim> + d);
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
#pragma unroll
        for (int k = 0; k < kVectorSize<T>; ++k) {
          sums[i][d + k] += factors[i][j] * b.x[k];
        }
      }
    }
  }
}

// kTile keys of one level, of one head of one image.
template <typename T, int kDim, int kTile>
struct KeyTile {
  static constexpr int kNumbers = kTile * (2 * kPitch<T, kDim> + 2 + kVectorSize<T>);

  T* keys;
  T* values;
  Place<T>* places;
  bool* seen;

  __device__ explicit KeyTile(T* shared)
      : keys(shared),
        values(keys + kTile * kPitch<T, kDim>),
        places(reinterpret_cast<Place<T>*>(values + kTile * kPitch<T, kDim>)),
        seen(reinterpret_cast<bool*>(places + kTile)) {}

  // All threads of the block take part; none may still read the tile before.
  __device__ void load(const Given<T>& given, const Task& task, int32_t first, int32_t end) const {
    const Sizes& sizes = given.sizes;
    const bool* hidden = given.hidden ? given.hidden + int64_t{task.image} * sizes.keys + first : nullptr;
    const int32_t count = min(end - first, kTile);
    stage<kTile, kDim>(
        given.whole, given.key.of(task.image, task.head) + first * given.key.row, given.key.row, count, sizes.dim, T(1), hidden, keys);
    stage<kTile, kDim>(
        given.whole, given.value.of(task.image, task.head) + first * given.value.row, given.value.row, count, sizes.dim, T(1), hidden,
        values);
    if (threadIdx.x < kTile) {
      const int j = static_cast<int>(threadIdx.x);
      const T* position =
          given.key_positions + ((int64_t{task.image} * sizes.groups + task.group) * sizes.keys + first + j) * 2;
      seen[j] = j < count && !(hidden && hidden[j]);
      places[j] = seen[j] ? Place<T>{position[0], position[1]} : Place<T>{T(0), T(0)};
    }
  }

  // The keys from j on.
  __device__ KeyTile from(int j) const {
    KeyTile rest = *this;
    rest.keys += j * kPitch<T, kDim>;
    rest.values += j * kPitch<T, kDim>;
    rest.places += j;
    rest.seen += j;
    return rest;
  }
};

}  // namespace attnzoo::deform_kv_attn

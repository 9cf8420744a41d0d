// Rows of channels in shared memory, and products of such rows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../common/cuda_launch.cuh"
#include "../common/cuda_vector.cuh"
#include "cuda_sizes.cuh"

namespace attnzoo::deform_kv_attn {

// Elements from one row to the next. The padding of one vector avoids bank conflicts when eight threads read a vector
// each from consecutive rows.
template <typename T, int kLength>
constexpr int kPitch = kLength + kVectorSize<T>;

template <typename T>
struct alignas(16) AlignedVector {
  T val[kVectorSize<T>];
};

template <typename T>
__device__ __forceinline__ AlignedVector<T> load_vector(const T* shared) {
  return *reinterpret_cast<const AlignedVector<T>*>(shared);
}

// kVectorized: as in `load`.
template <bool kVectorized, int kRows, int kDim, typename S, typename T>
__device__ __forceinline__ void rows_to_shared_as(
    const S* rows, int64_t row_stride, int32_t count, int32_t head_dim, T factor, const bool* masked, T* to) {
#pragma unroll 4
  for (int i = threadIdx.x; i < kRows * kDim / kVectorSize<T>; i += kThreads) {
    const int row = i / (kDim / kVectorSize<T>);
    const int channel = i % (kDim / kVectorSize<T>) * kVectorSize<T>;
    AlignedVector<T> vector{};
    if (row < count && channel < head_dim && !(masked && masked[row])) {
      load<kVectorized>(rows + row * row_stride + channel, head_dim - channel, vector.val);
    }
#pragma unroll
    for (int k = 0; k < kVectorSize<T>; ++k) {
      vector.val[k] *= factor;
    }
    *reinterpret_cast<AlignedVector<T>*>(to + row * kPitch<T, kDim> + channel) = vector;
  }
}

// Copies `count` rows of head_dim channels, times `factor`, to kRows rows of kDim channels in shared memory. Masked
// rows, missing rows and missing channels become zero.
template <int kRows, int kDim, typename S, typename T>
__device__ __forceinline__ void rows_to_shared(
    bool vectorized, const S* rows, int64_t row_stride, int32_t count, int32_t head_dim, T factor, const bool* masked,
    T* to) {
  if (vectorized) {
    rows_to_shared_as<true, kRows, kDim>(rows, row_stride, count, head_dim, factor, masked, to);
  } else {
    rows_to_shared_as<false, kRows, kDim>(rows, row_stride, count, head_dim, factor, masked, to);
  }
}

// The inverse of `rows_to_shared`, without factor and mask.
template <int kRows, int kDim, typename T, typename S>
__device__ __forceinline__ void rows_from_shared(
    bool vectorized, const T* from, int32_t count, int32_t head_dim, S* rows, int64_t row_stride) {
#pragma unroll 4
  for (int i = threadIdx.x; i < kRows * kDim / kVectorSize<T>; i += kThreads) {
    const int row = i / (kDim / kVectorSize<T>);
    const int channel = i % (kDim / kVectorSize<T>) * kVectorSize<T>;
    if (row < count && channel < head_dim) {
      const AlignedVector<T> vector = load_vector(from + row * kPitch<T, kDim> + channel);
      S* to = rows + row * row_stride + channel;
      if (vectorized) {
        store<true>(to, head_dim - channel, vector.val);
      } else {
        store<false>(to, head_dim - channel, vector.val);
      }
    }
  }
}

// dots[i][j] += (row i of this thread) · rows[j]. A thread has kMyRows rows, kThreads rows apart, from `my_rows` on.
template <int kDim, int kUnroll, typename T, int kMyRows, int kRows>
__device__ __forceinline__ void add_dots(const T* my_rows, const T* rows, T (&dots)[kMyRows][kRows]) {
#pragma unroll kUnroll
  for (int d = 0; d < kDim; d += kVectorSize<T>) {
    AlignedVector<T> a[kMyRows];
#pragma unroll
    for (int i = 0; i < kMyRows; ++i) {
      a[i] = load_vector(my_rows + i * kThreads * kPitch<T, kDim> + d);
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const AlignedVector<T> b = load_vector(rows + j * kPitch<T, kDim> + d);
#pragma unroll
      for (int i = 0; i < kMyRows; ++i) {
#pragma unroll
        for (int k = 0; k < kVectorSize<T>; ++k) {
          dots[i][j] += a[i].val[k] * b.val[k];
        }
      }
    }
  }
}

// sums[i] += Σ_j factors[i][j] · rows[j]
template <int kDim, typename T, int kMyRows, int kRows>
__device__ __forceinline__ void add_weighted_rows(
    const T* rows, const T (&factors)[kMyRows][kRows], T (&sums)[kMyRows][kDim]) {
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
#pragma unroll
    for (int d = 0; d < kDim; d += kVectorSize<T>) {
      const AlignedVector<T> b = load_vector(rows + j * kPitch<T, kDim> + d);
#pragma unroll
      for (int i = 0; i < kMyRows; ++i) {
#pragma unroll
        for (int k = 0; k < kVectorSize<T>; ++k) {
          sums[i][d + k] += factors[i][j] * b.val[k];
        }
      }
    }
  }
}

// A tile of kKeys keys of one level, for one head of one image, in shared memory.
template <typename T, int kDim, int kKeys>
struct KeyTile {
  static constexpr int kElements = kKeys * (2 * kPitch<T, kDim> + 2 + kVectorSize<T>);

  T* keys;
  T* values;
  Position<T>* positions;
  bool* visible;

  __device__ explicit KeyTile(T* shared)
      : keys(shared),
        values(keys + kKeys * kPitch<T, kDim>),
        positions(reinterpret_cast<Position<T>*>(values + kKeys * kPitch<T, kDim>)),
        visible(reinterpret_cast<bool*>(positions + kKeys)) {}

  // Loads the keys from `first` on, up to `end`. All threads of the block must call it; synchronize before and after.
  template <typename S>
  __device__ void load(const Inputs<S>& inputs, const Task& task, int32_t first, int32_t end) const {
    const Sizes& sizes = inputs.sizes;
    const bool* masked = inputs.masked ? inputs.masked + int64_t{task.image} * sizes.keys + first : nullptr;
    const int32_t count = min(end - first, kKeys);
    rows_to_shared<kKeys, kDim>(
        inputs.vectorized, task.rows(inputs.key, first), inputs.key.row_stride, count, sizes.head_dim, T(1), masked,
        keys);
    rows_to_shared<kKeys, kDim>(
        inputs.vectorized, task.rows(inputs.value, first), inputs.value.row_stride, count, sizes.head_dim, T(1), masked,
        values);
    if (threadIdx.x < kKeys) {
      const int j = static_cast<int>(threadIdx.x);
      const T* position =
          inputs.key_positions + ((int64_t{task.image} * sizes.groups + task.group) * sizes.keys + first + j) * 2;
      visible[j] = j < count && !(masked && masked[j]);
      positions[j] = visible[j] ? Position<T>{position[0], position[1]} : Position<T>{T(0), T(0)};
    }
  }

  // A view of the tile that starts at key j.
  __device__ KeyTile from_key(int j) const {
    KeyTile view = *this;
    view.keys += j * kPitch<T, kDim>;
    view.values += j * kPitch<T, kDim>;
    view.positions += j;
    view.visible += j;
    return view;
  }
};

}  // namespace attnzoo::deform_kv_attn

// Sixteen bytes at a time between memory and registers, computed with in float (double for double).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace attnzoo {

// What values stored as T are computed with.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Elements of T in one access of 128 bits.
template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(uint4) == 0;
}

// kWhole: rows are a multiple of 16 bytes long and aligned so. Otherwise `count` elements, at most a vector, are read
// or written one by one, and the others are zero or left alone. What is read must not change while the kernel runs.
template <bool kWhole, typename T>
__device__ __forceinline__ void load(const T* from, int count, Compute<T> (&x)[kVector<T>]) {
  T elements[kVector<T>];
  if constexpr (kWhole) {
    const uint4 bytes = __ldg(reinterpret_cast<const uint4*>(from));
    memcpy(elements, &bytes, sizeof(bytes));
  } else {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      elements[i] = i < count ? from[i] : T(0);
    }
  }
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    x[i] = static_cast<Compute<T>>(elements[i]);
  }
}

template <bool kWhole, typename T>
__device__ __forceinline__ void store(T* to, int count, const Compute<T> (&x)[kVector<T>]) {
  T elements[kVector<T>];
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    elements[i] = static_cast<T>(x[i]);
  }
  if constexpr (kWhole) {
    uint4 bytes;
    memcpy(&bytes, elements, sizeof(bytes));
    *reinterpret_cast<uint4*>(to) = bytes;
  } else {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      if (i < count) {
        to[i] = elements[i];
      }
    }
  }
}

// to += scale · x, atomically by element. Four floats travel together where the chip can (compute capability 9.0).
template <bool kWhole, typename A, int N>
__device__ __forceinline__ void add_atomically(A* to, int count, A scale, const A (&x)[N]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kTogether = kWhole && std::is_same_v<A, float>;
#else
  constexpr bool kTogether = false;
#endif
  if constexpr (kTogether) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      atomicAdd(
          reinterpret_cast<float4*>(to + i),
          make_float4(scale * x[i], scale * x[i + 1], scale * x[i + 2], scale * x[i + 3]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (kWhole || i < count) {
        atomicAdd(to + i, scale * x[i]);
      }
    }
  }
}

}  // namespace attnzoo

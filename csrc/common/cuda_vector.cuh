// Vectorized loads and stores: 8 or 16 bytes of T in memory, ComputeType<T> in registers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace attnzoo {

// The type that values stored as T are computed in (as at::opmath_type).
template <typename T>
using ComputeType = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Elements of T in a 128-bit access.
template <typename T>
constexpr int kVectorSize = 16 / static_cast<int>(sizeof(T));

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(uint4) == 0;
}

// An unsigned integer type of 8 or 16 bytes.
template <int kBytes>
using VectorBits = std::conditional_t<kBytes == 16, uint4, uint2>;

// kVectorized: every row is aligned to the vector of N elements (8 or 16 bytes), and its size is a multiple of it; one
// access. Otherwise only the first `count` elements are accessed, one by one, and `load` sets the others to zero. The
// memory that `load` reads must not change while the kernel runs, because __ldg uses the read-only cache.
template <bool kVectorized, typename T, int N>
__device__ __forceinline__ void load(const T* from, int count, ComputeType<T> (&x)[N]) {
  T elements[N];
  if constexpr (kVectorized) {
    using Bits = VectorBits<sizeof(elements)>;
    static_assert(sizeof(Bits) == sizeof(elements));
    const Bits bytes = __ldg(reinterpret_cast<const Bits*>(from));
    memcpy(elements, &bytes, sizeof(bytes));
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      elements[i] = i < count ? from[i] : T(0);
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    x[i] = static_cast<ComputeType<T>>(elements[i]);
  }
}

template <bool kVectorized, typename T, int N>
__device__ __forceinline__ void store(T* to, int count, const ComputeType<T> (&x)[N]) {
  T elements[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    elements[i] = static_cast<T>(x[i]);
  }
  if constexpr (kVectorized) {
    using Bits = VectorBits<sizeof(elements)>;
    static_assert(sizeof(Bits) == sizeof(elements));
    Bits bytes;
    memcpy(&bytes, elements, sizeof(bytes));
    *reinterpret_cast<Bits*>(to) = bytes;
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i < count) {
        to[i] = elements[i];
      }
    }
  }
}

// to += scale · x, with an atomic addition per element; from compute capability 9.0 on, one per float4.
template <bool kVectorized, typename A, int N>
__device__ __forceinline__ void atomic_add_scaled(A* to, int count, A scale, const A (&x)[N]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kFloat4 = kVectorized && std::is_same_v<A, float>;
#else
  constexpr bool kFloat4 = false;
#endif
  if constexpr (kFloat4) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      atomicAdd(
          reinterpret_cast<float4*>(to + i),
          make_float4(scale * x[i], scale * x[i + 1], scale * x[i + 2], scale * x[i + 3]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (kVectorized || i < count) {
        atomicAdd(to + i, scale * x[i]);
      }
    }
  }
}

}  // namespace attnzoo

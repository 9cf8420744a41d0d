// Macros for compiler-specific keywords.
#pragma once

#define ATTNZOO_INLINE __attribute__((always_inline)) inline

#if defined(__CUDACC__)
#define ATTNZOO_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ATTNZOO_HOST_DEVICE ATTNZOO_INLINE
#endif

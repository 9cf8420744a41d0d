// The kernels for AVX2.
#if defined(__x86_64__)

#define ATTNZOO_ISA avx2
#define ATTNZOO_VECTOR_BYTES 32
#define ATTNZOO_VECTOR_REGISTERS 16

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#pragma GCC target("avx2,fma")
#include "kernels.h"

namespace attnzoo::deform_kv_attn::avx2 {

template Kernels<float> kernels<float>(Kind);
template Kernels<double> kernels<double>(Kind);

}  // namespace attnzoo::deform_kv_attn::avx2

#endif

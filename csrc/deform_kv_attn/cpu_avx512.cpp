// The kernels for AVX512.
#if defined(__x86_64__)

#define ATTNZOO_ISA avx512
#define ATTNZOO_VECTOR_BYTES 64
#define ATTNZOO_VECTOR_REGISTERS 32

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma")
#include "kernels.h"

namespace attnzoo::deform_kv_attn::avx512 {

template Kernels<float> kernels<float>(Kind);
template Kernels<double> kernels<double>(Kind);

}  // namespace attnzoo::deform_kv_attn::avx512

#endif

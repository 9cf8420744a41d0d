#if defined(__x86_64__)

#define ATTNZOO_ISA avx512
#define ATTNZOO_VECTOR_BYTES 64
#define ATTNZOO_VECTOR_REGISTERS 32

#include "../common/simd_target.h"
#include "cpu_interface.h"

ATTNZOO_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#include "cpu_kernels.h"
ATTNZOO_END_TARGET

#endif

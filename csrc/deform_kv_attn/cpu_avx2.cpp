#if defined(__x86_64__)

#define ATTNZOO_ISA avx2
#define ATTNZOO_VECTOR_BYTES 32
#define ATTNZOO_VECTOR_REGISTERS 16

#include "../common/simd_target.h"
#include "cpu_interface.h"

ATTNZOO_BEGIN_TARGET("avx2,fma")
#include "cpu_kernels.h"
ATTNZOO_END_TARGET

#endif

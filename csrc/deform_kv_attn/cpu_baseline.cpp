// Vectors of 16 bytes, which every x86-64 (SSE2) and every AArch64 (NEON) has; elsewhere the compiler makes scalars.
#define ATTNZOO_ISA baseline
#define ATTNZOO_VECTOR_BYTES 16
#define ATTNZOO_VECTOR_REGISTERS 16

#include "cpu_kernels.h"

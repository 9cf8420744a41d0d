// The baseline: 16-byte vectors, which every x86-64 (SSE2) and AArch64 (NEON) machine has. On other architectures the
// compiler falls back to scalar code.
#define ATTNZOO_ISA baseline
#define ATTNZOO_VECTOR_BYTES 16
#define ATTNZOO_HAS_F16C 0

#include "cpu_kernels.h"

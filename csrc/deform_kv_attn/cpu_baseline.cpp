// The kernels for what every machine has: SSE2 on x86-64, NEON on Arm.
#define ATTNZOO_ISA baseline
#define ATTNZOO_VECTOR_BYTES 16
#define ATTNZOO_VECTOR_REGISTERS 16

#include "kernels.h"

namespace attnzoo::deform_kv_attn::baseline {

template Kernels<float> kernels<float>(Kind);
template Kernels<double> kernels<double>(Kind);

}  // namespace attnzoo::deform_kv_attn::baseline

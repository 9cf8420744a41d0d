// All kernels for one instruction set: included by the one source file that defines ATTNZOO_ISA as its name.
#pragma once

#include "cpu_backward.h"
#include "cpu_forward.h"
#include "cpu_fused_backward.h"

namespace attnzoo::ms_deform_attn::ATTNZOO_ISA {

template <typename T>
Kernels<T> kernels() {
  return {&fill<T>, &forward<T>, &backward<T>, &finish<T>};
}

template Kernels<float> kernels<float>();
template Kernels<double> kernels<double>();

}  // namespace attnzoo::ms_deform_attn::ATTNZOO_ISA

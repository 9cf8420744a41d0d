// All kernels of one instruction set. Included only by the source file that defines ATTNZOO_ISA.
#pragma once

#include "cpu_backward.h"
#include "cpu_forward.h"
#include "cpu_fused_backward.h"
#include "cpu_shared_value.h"

namespace attnzoo::ms_deform_attn::ATTNZOO_ISA {

template <typename T>
Kernels<T> kernels() {
  return {
      &pack<T>,
      &forward<T>,
      &backward<T>,
      &forward_shared<T>,
      &backward_shared<T>,
      &add_shared_gradients<T>,
      &fused_backward<T>};
}

template Kernels<float> kernels<float>();
template Kernels<double> kernels<double>();

}  // namespace attnzoo::ms_deform_attn::ATTNZOO_ISA

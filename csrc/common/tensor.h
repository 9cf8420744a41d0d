// Typed access to tensors of PyTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace attnzoo {

using torch::stable::Tensor;

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Calls `body` with a scalar of the tensor's dtype, float or double (as AT_DISPATCH_FLOATING_TYPES).
template <typename Body>
void dispatch_floating(const Tensor& tensor, const char* operation, const Body& body) {
  using torch::headeronly::ScalarType;
  if (tensor.scalar_type() == ScalarType::Float) {
    return body(float());
  }
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double, operation, ": expected float32 or float64");
  body(double());
}

// The same for half precision too (as AT_DISPATCH_FLOATING_TYPES_AND2).
template <typename Body>
void dispatch_floating_and_half(const Tensor& tensor, const char* operation, const Body& body) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return body(c10::Half());
    case ScalarType::BFloat16:
      return body(c10::BFloat16());
    default:
      return dispatch_floating(tensor, operation, body);
  }
}

}  // namespace attnzoo

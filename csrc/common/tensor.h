// Typed access to tensors of the stable ABI.
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

// Calls `body` with a float or a double, as the tensor holds.
template <typename Body>
void with_scalar(const Tensor& tensor, const char* operation, const Body& body) {
  using torch::headeronly::ScalarType;
  if (tensor.scalar_type() == ScalarType::Float) {
    return body(float());
  }
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double, operation, ": the kernels take float32 and float64");
  body(double());
}

// Calls `body` with a number of the type that the tensor holds.
template <typename Body>
void with_storage(const Tensor& tensor, const char* operation, const Body& body) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return body(c10::Half());
    case ScalarType::BFloat16:
      return body(c10::BFloat16());
    default:
      return with_scalar(tensor, operation, body);
  }
}

}  // namespace attnzoo

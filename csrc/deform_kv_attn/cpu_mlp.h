// The bias from an MLP of log-spaced displacements, sign(d) · ln(1 + |d|) in x and y (Swin Transformer V2).
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "../common/simd_math.h"
#include "cpu_block.h"
#include "cpu_matmul.h"
#include "problem.h"

namespace attnzoo::deform_kv_attn::ATTNZOO_ISA {

template <typename T>
ATTNZOO_INLINE Simd<T> absolute(const Simd<T>& x) {
  return x < 0 ? -x : x;
}

template <typename T>
ATTNZOO_INLINE Simd<T> log_spaced(const Simd<T>& x) {
  const Simd<T> log = log_ge_one<Simd<T>>(T(1) + absolute<T>(x));
  return x < 0 ? -log : log;
}

// The MLPs of one head, one per level, with ReLU between the layers. The parameters of a layer are its weight (out, in)
// and bias (out); the last layer has one output. Activations are (features, kQueryBlock).
template <typename T>
struct MlpBias {
  const Problem& problem;
  const T* parameters;
  T* grad_parameters;
  T* lane_grads;     // (parameters, lanes): gradients before the sum over lanes
  T* activations;    // the input of the first layer, then the output of each layer
  T* layer_grad[2];  // gradients of the output and the input of a layer

  MlpBias(const Problem& p, const T* parameters, T* grad_parameters, T* scratch)
      : problem(p), parameters(parameters), grad_parameters(grad_parameters) {
    layer_grad[0] = scratch;
    layer_grad[1] = layer_grad[0] + max_width(p) * kQueryBlock<T>;
    activations = layer_grad[1] + max_width(p) * kQueryBlock<T>;
    lane_grads = activations;
    for (int64_t layer = 0; layer <= p.num_layers; ++layer) {
      lane_grads += p.layer_widths[layer] * kQueryBlock<T>;
    }
    if (grad_parameters) {
      std::fill(lane_grads, lane_grads + p.parameters_per_head * kSimdWidth<T>, T(0));
    }
  }

  static int64_t max_width(const Problem& p) {
    return *std::max_element(p.layer_widths, p.layer_widths + p.num_layers + 1);
  }

  static int64_t scratch_size(const Problem& p) {
    int64_t rows = 2 * max_width(p);
    for (int64_t layer = 0; layer <= p.num_layers; ++layer) {
      rows += p.layer_widths[layer];
    }
    return rows * kQueryBlock<T> + p.parameters_per_head * kSimdWidth<T>;
  }

  static Position<T> position_offset(const Level&) {
    return {0, 0};
  }

  // Computes all activations for one key. Returns those of the last layer, the biases (kQueryBlock).
  ATTNZOO_INLINE const T* forward(const Level& level, const BlockPositions<T>& positions, const T* key_position) const {
    for (int v = 0; v < kBlockVectors; ++v) {
      store(activations + v * kSimdWidth<T>, log_spaced<T>(positions.x[v] - key_position[0]));
      store(activations + kQueryBlock<T> + v * kSimdWidth<T>, log_spaced<T>(positions.y[v] - key_position[1]));
    }
    T* input = activations;
    const T* weight = parameters + level.parameter_offset;
    for (int64_t layer = 0; layer < problem.num_layers; ++layer) {
      const int64_t in_features = problem.layer_widths[layer];
      const int64_t out_features = problem.layer_widths[layer + 1];
      const T* bias = weight + out_features * in_features;
      T* output = input + in_features * kQueryBlock<T>;
      for (int64_t row = 0; row < out_features; ++row) {
        std::fill(output + row * kQueryBlock<T>, output + (row + 1) * kQueryBlock<T>, bias[row]);
      }
      matmul_add<T>({weight, in_features, 1}, out_features, in_features, input, output, kQueryBlock<T>);
      for (int64_t i = 0; layer + 1 < problem.num_layers && i < out_features * kQueryBlock<T>; i += kSimdWidth<T>) {
        const Simd<T> x = load<Simd<T>>(output + i);
        store(output + i, x < 0 ? Simd<T>{} : x);  // ReLU
      }
      input = output;
      weight = bias + out_features;
    }
    return input;
  }

  // The biases (kQueryBlock) of one key.
  ATTNZOO_INLINE void evaluate(
      const Level& level, const BlockPositions<T>& positions, const T* key_position, T* biases) const {
    const T* output = forward(level, positions, key_position);
    std::copy(output, output + kQueryBlock<T>, biases);
  }

  // Adds the gradients of the weight and bias of a layer to `layer_grads`, which has one entry per lane and parameter.
  // `grad_output` is (out_features, kQueryBlock).
  ATTNZOO_INLINE void layer_backward(
      const T* grad_output, int64_t out_features, const T* input, int64_t in_features, T* layer_grads) const {
    T* bias_grads = layer_grads + out_features * in_features * kSimdWidth<T>;
    for (int64_t row = 0; row < out_features; ++row) {
      Simd<T> grad_row[kBlockVectors];
      Simd<T> total{};
      for (int v = 0; v < kBlockVectors; ++v) {
        grad_row[v] = load<Simd<T>>(grad_output + row * kQueryBlock<T> + v * kSimdWidth<T>);
        total += grad_row[v];
      }
      store(bias_grads + row * kSimdWidth<T>, load<Simd<T>>(bias_grads + row * kSimdWidth<T>) + total);
      for (int64_t column = 0; column < in_features; ++column, layer_grads += kSimdWidth<T>) {
        Simd<T> sum = load<Simd<T>>(layer_grads);
        for (int v = 0; v < kBlockVectors; ++v) {
          sum += grad_row[v] * load<Simd<T>>(input + column * kQueryBlock<T> + v * kSimdWidth<T>);
        }
        store(layer_grads, sum);
      }
    }
  }

  // Given the gradients of the biases (kQueryBlock) of one key, returns the gradients of the displacements and adds to
  // the gradients of the parameters.
  ATTNZOO_INLINE BlockPositions<T> backward(
      const Level& level, const BlockPositions<T>& positions, const T* key_position, const T* grad_biases) const {
    const T* output = forward(level, positions, key_position);
    T* grad_output = layer_grad[0];
    T* grad_input = layer_grad[1];
    std::copy(grad_biases, grad_biases + kQueryBlock<T>, grad_output);
    int64_t offset = level.parameter_offset;
    for (int64_t layer = 0; layer < problem.num_layers; ++layer) {
      offset += problem.layer_widths[layer + 1] * (problem.layer_widths[layer] + 1);
    }
    for (int64_t layer = problem.num_layers - 1; layer >= 0; --layer) {
      const int64_t in_features = problem.layer_widths[layer];
      const int64_t out_features = problem.layer_widths[layer + 1];
      const T* input = output - in_features * kQueryBlock<T>;
      offset -= out_features * (in_features + 1);
      layer_backward(grad_output, out_features, input, in_features, lane_grads + offset * kSimdWidth<T>);
      std::fill(grad_input, grad_input + in_features * kQueryBlock<T>, T(0));
      matmul_add<T>(
          {parameters + offset, 1, in_features}, in_features, out_features, grad_output, grad_input, kQueryBlock<T>);
      for (int64_t i = 0; layer > 0 && i < in_features * kQueryBlock<T>; i += kSimdWidth<T>) {  // ReLU
        store(grad_input + i, load<Simd<T>>(input + i) > 0 ? load<Simd<T>>(grad_input + i) : Simd<T>{});
      }
      std::swap(grad_output, grad_input);
      output = input;
    }
    BlockPositions<T> grads;
    for (int v = 0; v < kBlockVectors; ++v) {
      const T* grad = grad_output + v * kSimdWidth<T>;
      grads.x[v] = load<Simd<T>>(grad) / (T(1) + absolute<T>(positions.x[v] - key_position[0]));
      grads.y[v] = load<Simd<T>>(grad + kQueryBlock<T>) / (T(1) + absolute<T>(positions.y[v] - key_position[1]));
    }
    return grads;
  }

  // Sums the gradients of the parameters over the lanes.
  void finish() const {
    for (int64_t i = 0; i < problem.parameters_per_head; ++i) {
      grad_parameters[i] = reduce_add(load<Simd<T>>(lane_grads + i * kSimdWidth<T>));
    }
  }
};

}  // namespace attnzoo::deform_kv_attn::ATTNZOO_ISA

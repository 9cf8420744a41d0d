// The bias: a perceptron of log-spaced displacements, sign(d) ln(1 + |d|) in x and y.
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
ATTNZOO_INLINE Simd<T> magnitude(const Simd<T>& x) {
  return x < 0 ? -x : x;
}

template <typename T>
ATTNZOO_INLINE Simd<T> log_spaced(const Simd<T>& x) {
  const Simd<T> log = log_ge_one<Simd<T>>(T(1) + magnitude<T>(x));
  return x < 0 ? -log : log;
}

// The perceptrons of one head, one per level: per layer its weight (out, in) and bias (out), the last layer's only for
// this head. Values between the layers are (width, kBlock).
template <typename T>
struct MlpBias {
  const Problem& problem;
  const T* parameters;
  T* by_parameters;
  T* lane_sums;  // (parameters, lanes): gradients whose lanes are not yet added up
  T* values;  // the input of every layer, one after the other
  T* slopes[2];  // gradients by the output and the input of a layer

  MlpBias(const Problem& p, const T* given, T* by_given, T* scratch)
      : problem(p), parameters(given), by_parameters(by_given) {
    slopes[0] = scratch;
    slopes[1] = slopes[0] + widest(p) * kBlock<T>;
    values = slopes[1] + widest(p) * kBlock<T>;
    lane_sums = values;
    for (int64_t layer = 0; layer <= p.layers; ++layer) {
      lane_sums += p.widths[layer] * kBlock<T>;
    }
    if (by_given) {
      std::fill(lane_sums, lane_sums + p.parameters * kSimdWidth<T>, T(0));
    }
  }

  static int64_t widest(const Problem& p) {
    return *std::max_element(p.widths, p.widths + p.layers + 1);
  }

  static int64_t scratch_size(const Problem& p) {
    int64_t rows = 2 * widest(p);
    for (int64_t layer = 0; layer <= p.layers; ++layer) {
      rows += p.widths[layer];
    }
    return rows * kBlock<T> + p.parameters * kSimdWidth<T>;
  }

  static Place<T> origin(const Level&) {
    return {0, 0};
  }

  // The values between all layers for one key; returns the last, which are the biases.
  ATTNZOO_INLINE const T* activate(const Level& level, const Places<T>& places, const T* key) const {
    for (int v = 0; v < kVectors; ++v) {
      store(values + v * kSimdWidth<T>, log_spaced<T>(places.x[v] - key[0]));
      store(values + kBlock<T> + v * kSimdWidth<T>, log_spaced<T>(places.y[v] - key[1]));
    }
    T* input = values;
    const T* weight = parameters + level.parameters;
    for (int64_t layer = 0; layer < problem.layers; ++layer) {
      const int64_t given = problem.widths[layer];
      const int64_t rows = problem.widths[layer + 1];
      const T* bias = weight + rows * given;
      T* output = input + given * kBlock<T>;
      for (int64_t row = 0; row < rows; ++row) {
        std::fill(output + row * kBlock<T>, output + (row + 1) * kBlock<T>, bias[row]);
      }
      add_product<T>({weight, given, 1}, rows, given, input, output, kBlock<T>);
      for (int64_t i = 0; layer + 1 < problem.layers && i < rows * kBlock<T>; i += kSimdWidth<T>) {
        const Simd<T> x = load<Simd<T>>(output + i);
        store(output + i, x < 0 ? Simd<T>{} : x);
      }
      input = output;
      weight = bias + rows;
    }
    return input;
  }

  // The biases (kBlock) of one key.
  ATTNZOO_INLINE void evaluate(const Level& level, const Places<T>& places, const T* key, T* biases) const {
    const T* last = activate(level, places, key);
    std::copy(last, last + kBlock<T>, biases);
  }

  // Adds to the gradients by weight and bias of a layer, given those by its output (rows, kBlock).
  ATTNZOO_INLINE void add_to_layer(const T* slope, int64_t rows, const T* input, int64_t given, T* sums) const {
    T* bias_sums = sums + rows * given * kSimdWidth<T>;
    for (int64_t row = 0; row < rows; ++row) {
      Simd<T> by_output[kVectors];
      Simd<T> total{};
      for (int v = 0; v < kVectors; ++v) {
        by_output[v] = load<Simd<T>>(slope + row * kBlock<T> + v * kSimdWidth<T>);
        total += by_output[v];
      }
      store(bias_sums + row * kSimdWidth<T>, load<Simd<T>>(bias_sums + row * kSimdWidth<T>) + total);
      for (int64_t column = 0; column < given; ++column, sums += kSimdWidth<T>) {
        Simd<T> sum = load<Simd<T>>(sums);
        for (int v = 0; v < kVectors; ++v) {
          sum += by_output[v] * load<Simd<T>>(input + column * kBlock<T> + v * kSimdWidth<T>);
        }
        store(sums, sum);
      }
    }
  }

  // Gradients by displacement, given those by the biases (kBlock) of one key; those by the parameters are added up.
  ATTNZOO_INLINE Places<T> differentiate(
      const Level& level, const Places<T>& places, const T* key, const T* by_biases) const {
    const T* output = activate(level, places, key);
    T* by_output = slopes[0];
    T* by_input = slopes[1];
    std::copy(by_biases, by_biases + kBlock<T>, by_output);
    int64_t end = level.parameters;
    for (int64_t layer = 0; layer < problem.layers; ++layer) {
      end += problem.widths[layer + 1] * (problem.widths[layer] + 1);
    }
    for (int64_t layer = problem.layers - 1; layer >= 0; --layer) {
      const int64_t given = problem.widths[layer];
      const int64_t rows = problem.widths[layer + 1];
      const T* input = output - given * kBlock<T>;
      end -= rows * (given + 1);
      add_to_layer(by_output, rows, input, given, lane_sums + end * kSimdWidth<T>);
      std::fill(by_input, by_input + given * kBlock<T>, T(0));
      add_product<T>({parameters + end, 1, given}, given, rows, by_output, by_input, kBlock<T>);
      for (int64_t i = 0; layer > 0 && i < given * kBlock<T>; i += kSimdWidth<T>) {
        store(by_input + i, load<Simd<T>>(input + i) > 0 ? load<Simd<T>>(by_input + i) : Simd<T>{});
      }
      std::swap(by_output, by_input);
      output = input;
    }
    Places<T> by_places;
    for (int v = 0; v < kVectors; ++v) {
      const T* slope = by_output + v * kSimdWidth<T>;
      by_places.x[v] = load<Simd<T>>(slope) / (T(1) + magnitude<T>(places.x[v] - key[0]));
      by_places.y[v] = load<Simd<T>>(slope + kBlock<T>) / (T(1) + magnitude<T>(places.y[v] - key[1]));
    }
    return by_places;
  }

  void finish() const {
    for (int64_t i = 0; i < problem.parameters; ++i) {
      by_parameters[i] = reduce_add(load<Simd<T>>(lane_sums + i * kSimdWidth<T>));
    }
  }
};

}  // namespace attnzoo::deform_kv_attn::ATTNZOO_ISA

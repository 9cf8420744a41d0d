// The kernels of one instruction set: attention of blocks of queries to tiles of keys, forward and backward. Only one
// tile of the (queries × keys) scores and biases exists at a time.
//
// The lanes of a vector are queries. So the softmax needs no reductions across lanes. And where consecutive queries are
// neighbours in a row of the map, their biases are neighbours in a row of the table.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../common/simd_math.h"
#include "cpu_block.h"
#include "cpu_interface.h"
#include "cpu_matmul.h"
#include "cpu_mlp.h"
#include "cpu_table.h"

namespace attnzoo::deform_kv_attn::ATTNZOO_ISA {

constexpr int64_t kKeyTile = 64;  // keys in a tile

template <typename T, template <typename> class BiasOf>
int64_t scratch_size(const Problem& problem) {
  return 5 * pad_to_vector<T>(problem.head_dim) * kQueryBlock<T> + BiasOf<T>::scratch_size(problem);
}

// The inputs of one head of one image.
template <typename T>
struct HeadInputs {
  const Problem& problem;
  const T* key;
  const T* value;
  int64_t key_stride;
  int64_t value_stride;
  const T* key_positions;
  const T* query_positions;  // of all levels

  HeadInputs(const Problem& p, const Inputs<T>& inputs, int64_t image, int64_t head)
      : problem(p),
        key(inputs.key.head(image, head)),
        value(inputs.value.head(image, head)),
        key_stride(inputs.key.row_stride),
        value_stride(inputs.value.row_stride),
        key_positions(inputs.key_positions + (image * p.groups + head / (p.heads / p.groups)) * p.keys * 2),
        query_positions(inputs.query_positions + image * p.num_levels * p.queries * 2) {}
};

// Scores (keys, kQueryBlock) of a tile of keys: dot products with the scaled queries (D, kQueryBlock), plus bias.
template <typename T, template <typename> class BiasOf>
ATTNZOO_INLINE void compute_scores(
    const HeadInputs<T>& inputs, const BiasOf<T>& bias, const BlockPositions<T>& positions, const Level& level,
    const T* query, int64_t first_key, int64_t keys, T* scores) {
  for (int64_t j = 0; j < keys; ++j) {
    bias.evaluate(level, positions, inputs.key_positions + 2 * (first_key + j), scores + j * kQueryBlock<T>);
  }
  const StridedMatrix<T> key{inputs.key + first_key * inputs.key_stride, inputs.key_stride, 1};
  matmul_add(key, keys, inputs.problem.head_dim, query, scores, kQueryBlock<T>);
}

// The running maximum of the scores of each query, and the running sum of exp(score - max).
template <typename T>
struct OnlineSoftmax {
  Simd<T> max[kBlockVectors];
  Simd<T> sum[kBlockVectors];
};

// Replaces the scores of a tile by exp(score - max), with the new maximum. Rescales the sums so far and `output`
// (D, kQueryBlock) to it.
template <typename T>
ATTNZOO_INLINE void update_softmax(OnlineSoftmax<T>& softmax, T* scores, int64_t keys, T* output, int64_t head_dim) {
  for (int v = 0; v < kBlockVectors; ++v) {
    T* column = scores + v * kSimdWidth<T>;
    Simd<T> max = softmax.max[v];
    for (int64_t j = 0; j < keys; ++j) {
      const Simd<T> x = load<Simd<T>>(column + j * kQueryBlock<T>);
      max = x > max ? x : max;
    }
    const Simd<T> rescale = exp_nonpositive<Simd<T>>(softmax.max[v] - max);
    softmax.max[v] = max;
    Simd<T> sum = softmax.sum[v] * rescale;
    for (int64_t j = 0; j < keys; ++j) {
      const Simd<T> x = exp_nonpositive<Simd<T>>(load<Simd<T>>(column + j * kQueryBlock<T>) - max);
      store(column + j * kQueryBlock<T>, x);
      sum += x;
    }
    softmax.sum[v] = sum;
    for (int64_t d = 0; d < head_dim; ++d) {
      T* channel = output + d * kQueryBlock<T> + v * kSimdWidth<T>;
      store(channel, load<Simd<T>>(channel) * rescale);
    }
  }
}

template <typename T, template <typename> class BiasOf>
void forward_block(
    const Problem& problem, const Inputs<T>& inputs, KeyRanges ranges, int64_t image, int64_t head,
    int64_t first_query, T* scratch, const Outputs<T>& outputs) {
  const QueryBlock<T> block{first_query, std::min(kQueryBlock<T>, problem.queries - first_query)};
  const HeadInputs<T> head_inputs(problem, inputs, image, head);
  const int64_t columns = pad_to_vector<T>(problem.head_dim);
  T* rows = scratch;
  T* query = rows + columns * kQueryBlock<T>;
  T* output = query + columns * kQueryBlock<T>;
  const BiasOf<T> bias(
      problem, inputs.parameters + head * problem.parameters_per_head, nullptr, output + columns * kQueryBlock<T>);
  block.load_rows(
      inputs.query.head(image, head), inputs.query.row_stride, problem.head_dim, static_cast<T>(problem.scale), rows);
  transpose(rows, kQueryBlock<T>, columns, query);
  std::fill(output, output + columns * kQueryBlock<T>, T(0));
  alignas(kAlignment) T scores[kKeyTile * kQueryBlock<T>];
  // The lowest finite number instead of -inf, because -inf - (-inf) is NaN.
  OnlineSoftmax<T> softmax;
  for (int v = 0; v < kBlockVectors; ++v) {
    softmax.max[v] = broadcast<Simd<T>>(std::numeric_limits<T>::lowest());
    softmax.sum[v] = Simd<T>{};
  }
  for (const KeyRange* range = ranges.begin; range != ranges.end; ++range) {
    const Level& level = problem.levels[range->level];
    const T* query_positions = head_inputs.query_positions + range->level * problem.queries * 2;
    const BlockPositions<T> positions = load_positions(BiasOf<T>::position_offset(level), query_positions, block);
    for (int64_t first = range->begin; first < range->end; first += kKeyTile) {
      const int64_t keys = std::min(kKeyTile, range->end - first);
      compute_scores(head_inputs, bias, positions, level, query, first, keys, scores);
      update_softmax(softmax, scores, keys, output, problem.head_dim);
      const StridedMatrix<T> value{
          head_inputs.value + first * head_inputs.value_stride, 1, head_inputs.value_stride};
      matmul_add(value, problem.head_dim, keys, scores, output, kQueryBlock<T>);
    }
  }
  alignas(kAlignment) T factors[kQueryBlock<T>];
  T* logsumexp = outputs.logsumexp + (image * problem.heads + head) * problem.queries + block.first;
  for (int64_t i = 0; i < block.count; ++i) {
    const T sum = softmax.sum[i / kSimdWidth<T>][i % kSimdWidth<T>];
    // If all keys are masked, the output is zero. The infinite logsumexp makes all weights zero in the backward pass.
    factors[i] = ranges.begin == ranges.end ? T(0) : T(1) / sum;
    logsumexp[i] = ranges.begin == ranges.end ? std::numeric_limits<T>::infinity()
                                              : softmax.max[i / kSimdWidth<T>][i % kSimdWidth<T>] + std::log(sum);
  }
  transpose(output, columns, kQueryBlock<T>, rows);
  block.store_rows(rows, problem.head_dim, factors, outputs.output.head(image, head), outputs.output.row_stride);
}

// Given the gradients of the scores of a tile, adds to the gradients of positions and bias parameters.
template <typename T, template <typename> class BiasOf>
ATTNZOO_INLINE void bias_backward(
    const HeadInputs<T>& inputs, const BiasOf<T>& bias, const BlockPositions<T>& positions, const Level& level,
    const T* grad_scores, int64_t first_key, int64_t keys, BlockPositions<T>& grad_positions, T* grad_key_positions) {
  for (int64_t j = 0; j < keys; ++j) {
    const T* key_position = inputs.key_positions + 2 * (first_key + j);
    const BlockPositions<T> grad_displacements =
        bias.backward(level, positions, key_position, grad_scores + j * kQueryBlock<T>);
    Simd<T> grad_x{};
    Simd<T> grad_y{};
    for (int v = 0; v < kBlockVectors; ++v) {
      grad_positions.x[v] += grad_displacements.x[v];
      grad_positions.y[v] += grad_displacements.y[v];
      grad_x += grad_displacements.x[v];
      grad_y += grad_displacements.y[v];
    }
    grad_key_positions[2 * (first_key + j)] -= reduce_add(grad_x);
    grad_key_positions[2 * (first_key + j) + 1] -= reduce_add(grad_y);
  }
}

// Replaces the scores (keys, kQueryBlock) by weights, and the gradients of weights by gradients of scores. `delta` is
// grad_output · output of each query, as in FlashAttention.
template <typename T>
ATTNZOO_INLINE void softmax_backward(T* scores, T* grads, int64_t keys, const T* logsumexp, const T* delta) {
  for (int v = 0; v < kBlockVectors; ++v) {
    const Simd<T> block_logsumexp = load<Simd<T>>(logsumexp + v * kSimdWidth<T>);
    const Simd<T> block_delta = load<Simd<T>>(delta + v * kSimdWidth<T>);
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t i = j * kQueryBlock<T> + v * kSimdWidth<T>;
      const Simd<T> weight = exp_nonpositive<Simd<T>>(load<Simd<T>>(scores + i) - block_logsumexp);
      store(scores + i, weight);
      store(grads + i, weight * (load<Simd<T>>(grads + i) - block_delta));
    }
  }
}

// All gradients of one head of one image.
template <typename T, template <typename> class BiasOf>
void backward_head(
    const Problem& problem, const Inputs<T>& inputs, KeyRanges ranges, int64_t image, int64_t head, T* scratch,
    const Gradients<T>& grads) {
  const int64_t head_dim = problem.head_dim;
  const int64_t columns = pad_to_vector<T>(head_dim);
  const int64_t task = image * problem.heads + head;
  const HeadInputs<T> head_inputs(problem, inputs, image, head);
  const T scale = static_cast<T>(problem.scale);
  const T* grad_output = grads.grad_output.head(image, head);
  const T* output = grads.output.head(image, head);
  T* grad_query_positions = grads.grad_query_positions + task * problem.num_levels * problem.queries * 2;
  T* grad_key_positions = grads.grad_key_positions + task * problem.keys * 2;
  // Of the current block, as rows (kQueryBlock, D) or transposed (D, kQueryBlock):
  T* query_transposed = scratch;
  T* grad_output_transposed = query_transposed + columns * kQueryBlock<T>;
  T* grad_query = grad_output_transposed + columns * kQueryBlock<T>;  // transposed
  T* query_rows = grad_query + columns * kQueryBlock<T>;
  T* grad_output_rows = query_rows + kQueryBlock<T> * columns;
  const BiasOf<T> bias(
      problem, inputs.parameters + head * problem.parameters_per_head,
      grads.grad_parameters + task * problem.parameters_per_head, grad_output_rows + kQueryBlock<T> * columns);
  alignas(kAlignment) T scores[kKeyTile * kQueryBlock<T>];
  alignas(kAlignment) T grad_scores[kKeyTile * kQueryBlock<T>];
  alignas(kAlignment) T logsumexp[kQueryBlock<T>];
  alignas(kAlignment) T delta[kQueryBlock<T>];
  alignas(kAlignment) T scales[kQueryBlock<T>];
  std::fill(scales, scales + kQueryBlock<T>, scale);

  for (int64_t first_query = 0; first_query < problem.queries; first_query += kQueryBlock<T>) {
    const QueryBlock<T> block{first_query, std::min(kQueryBlock<T>, problem.queries - first_query)};
    block.load_rows(inputs.query.head(image, head), inputs.query.row_stride, head_dim, scale, query_rows);
    transpose(query_rows, kQueryBlock<T>, columns, query_transposed);
    block.load_rows(grad_output, grads.grad_output.row_stride, head_dim, T(1), grad_output_rows);
    transpose(grad_output_rows, kQueryBlock<T>, columns, grad_output_transposed);
    std::fill(grad_query, grad_query + columns * kQueryBlock<T>, T(0));
    std::fill(logsumexp, logsumexp + kQueryBlock<T>, std::numeric_limits<T>::infinity());
    std::fill(delta, delta + kQueryBlock<T>, T(0));
    for (int64_t i = 0; i < block.count; ++i) {
      logsumexp[i] = grads.logsumexp[task * problem.queries + first_query + i];
      delta[i] = dot(grad_output_rows + i * columns, output + (first_query + i) * grads.output.row_stride, head_dim);
    }
    for (const KeyRange* range = ranges.begin; range != ranges.end; ++range) {
      const Level& level = problem.levels[range->level];
      const int64_t level_offset = range->level * problem.queries * 2;
      const BlockPositions<T> positions =
          load_positions(BiasOf<T>::position_offset(level), head_inputs.query_positions + level_offset, block);
      BlockPositions<T> grad_positions{};
      for (int64_t first = range->begin; first < range->end; first += kKeyTile) {
        const int64_t keys = std::min(kKeyTile, range->end - first);
        compute_scores(head_inputs, bias, positions, level, query_transposed, first, keys, scores);
        std::fill(grad_scores, grad_scores + keys * kQueryBlock<T>, T(0));
        const StridedMatrix<T> value{
            head_inputs.value + first * head_inputs.value_stride, head_inputs.value_stride, 1};
        matmul_add(value, keys, head_dim, grad_output_transposed, grad_scores, kQueryBlock<T>);
        softmax_backward(scores, grad_scores, keys, logsumexp, delta);
        matmul_add<T>(
            {scores, kQueryBlock<T>, 1}, keys, kQueryBlock<T>, grad_output_rows, grads.grad_value + first * columns,
            columns);
        matmul_add<T>(
            {grad_scores, kQueryBlock<T>, 1}, keys, kQueryBlock<T>, query_rows, grads.grad_key + first * columns,
            columns);
        const StridedMatrix<T> key{head_inputs.key + first * head_inputs.key_stride, 1, head_inputs.key_stride};
        matmul_add(key, head_dim, keys, grad_scores, grad_query, kQueryBlock<T>);
        bias_backward(
            head_inputs, bias, positions, level, grad_scores, first, keys, grad_positions, grad_key_positions);
      }
      add_position_grads(grad_positions, block, grad_query_positions + level_offset);
    }
    transpose(grad_query, columns, kQueryBlock<T>, query_rows);
    block.store_rows(
        query_rows, head_dim, scales, grads.grad_query.head(image, head), grads.grad_query.row_stride);
  }
  bias.finish();
}

template <typename T, template <typename> class BiasOf>
Kernels<T> kernels_with() {
  return {kQueryBlock<T>, kSimdWidth<T>, scratch_size<T, BiasOf>, forward_block<T, BiasOf>, backward_head<T, BiasOf>};
}

template <typename T>
Kernels<T> kernels(BiasKind kind) {
  return kind == BiasKind::kTable ? kernels_with<T, TableBias>() : kernels_with<T, MlpBias>();
}

template Kernels<float> kernels<float>(BiasKind);
template Kernels<double> kernels<double>(BiasKind);

}  // namespace attnzoo::deform_kv_attn::ATTNZOO_ISA

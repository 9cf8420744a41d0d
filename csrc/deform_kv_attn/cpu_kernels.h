// Attention of blocks of queries to tiles of keys, forward and backward. Of the (queries × keys) scores and biases only
// one tile exists at a time.
//
// Lanes of vectors are queries, which makes the softmax free of sums across lanes and, where queries stand in a row of
// a map, reads their biases from neighbouring cells of the table.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../common/simd_math.h"
#include "cpu_block.h"
#include "cpu_matmul.h"
#include "cpu_mlp.h"
#include "cpu_table.h"

namespace attnzoo::deform_kv_attn::ATTNZOO_ISA {

constexpr int64_t kTile = 64;  // keys

template <typename T, template <typename> class BiasOf>
int64_t scratch_size(const Problem& problem) {
  return 5 * padded<T>(problem.dim) * kBlock<T> + BiasOf<T>::scratch_size(problem);
}

// What a task sees of its head.
template <typename T>
struct View {
  const Problem& problem;
  const T* key;
  const T* value;
  int64_t key_row;
  int64_t value_row;
  const T* key_positions;
  const T* query_positions;  // of the image, all levels

  View(const Problem& p, const Inputs<T>& in, int64_t image, int64_t head)
      : problem(p),
        key(in.key.of(image, head)),
        value(in.value.of(image, head)),
        key_row(in.key.row),
        value_row(in.value.row),
        key_positions(in.key_positions + (image * p.groups + head / (p.heads / p.groups)) * p.keys * 2),
        query_positions(in.query_positions + image * p.level_count * p.queries * 2) {}
};

// Scores (keys, kBlock) of a tile: products with the scaled queries (D, kBlock), plus bias.
template <typename T, template <typename> class BiasOf>
ATTNZOO_INLINE void score(
    const View<T>& view, const BiasOf<T>& bias, const Places<T>& places, const Level& level, const T* query,
    int64_t first, int64_t keys, T* scores) {
  for (int64_t j = 0; j < keys; ++j) {
    bias.evaluate(level, places, view.key_positions + 2 * (first + j), scores + j * kBlock<T>);
  }
  const Matrix<T> key{view.key + first * view.key_row, view.key_row, 1};
  add_product(key, keys, view.problem.dim, query, scores, kBlock<T>);
}

// The softmax so far: the largest score of each query, and the sum of exponentials relative to it.
template <typename T>
struct Softmax {
  Simd<T> largest[kVectors];
  Simd<T> sum[kVectors];
};

// Takes the scores of a tile into the softmax and leaves their exponentials; what was summed before, `output`
// (D, kBlock) included, is brought to the new largest score.
template <typename T>
ATTNZOO_INLINE void take_in(Softmax<T>& softmax, T* scores, int64_t keys, T* output, int64_t dim) {
  for (int v = 0; v < kVectors; ++v) {
    T* column = scores + v * kSimdWidth<T>;
    Simd<T> largest = softmax.largest[v];
    for (int64_t j = 0; j < keys; ++j) {
      const Simd<T> x = load<Simd<T>>(column + j * kBlock<T>);
      largest = x > largest ? x : largest;
    }
    const Simd<T> shrink = exp_nonpositive<Simd<T>>(softmax.largest[v] - largest);
    softmax.largest[v] = largest;
    Simd<T> sum = softmax.sum[v] * shrink;
    for (int64_t j = 0; j < keys; ++j) {
      const Simd<T> x = exp_nonpositive<Simd<T>>(load<Simd<T>>(column + j * kBlock<T>) - largest);
      store(column + j * kBlock<T>, x);
      sum += x;
    }
    softmax.sum[v] = sum;
    for (int64_t d = 0; d < dim; ++d) {
      T* channel = output + d * kBlock<T> + v * kSimdWidth<T>;
      store(channel, load<Simd<T>>(channel) * shrink);
    }
  }
}

template <typename T, template <typename> class BiasOf>
void forward_block(
    const Problem& problem, const Inputs<T>& in, Runs runs, int64_t image, int64_t head, int64_t first_query,
    T* scratch, const Outputs<T>& out) {
  const Block<T> block{first_query, std::min(kBlock<T>, problem.queries - first_query)};
  const View<T> view(problem, in, image, head);
  const int64_t columns = padded<T>(problem.dim);
  T* rows = scratch;
  T* query = rows + columns * kBlock<T>;
  T* output = query + columns * kBlock<T>;
  const BiasOf<T> bias(problem, in.parameters + head * problem.parameters, nullptr, output + columns * kBlock<T>);
  block.take(in.query.of(image, head), in.query.row, problem.dim, static_cast<T>(problem.scale), rows);
  transpose(rows, kBlock<T>, columns, query);
  std::fill(output, output + columns * kBlock<T>, T(0));
  alignas(kAlignment) T scores[kTile * kBlock<T>];
  // The lowest finite number: its difference from itself, unlike that of infinity, is a number.
  Softmax<T> softmax;
  for (int v = 0; v < kVectors; ++v) {
    softmax.largest[v] = broadcast<Simd<T>>(std::numeric_limits<T>::lowest());
    softmax.sum[v] = Simd<T>{};
  }
  for (const Run* run = runs.begin; run != runs.end; ++run) {
    const Level& level = problem.levels[run->level];
    const T* positions = view.query_positions + run->level * problem.queries * 2;
    const Places<T> places = place(BiasOf<T>::origin(level), positions, block);
    for (int64_t first = run->begin; first < run->end; first += kTile) {
      const int64_t keys = std::min(kTile, run->end - first);
      score(view, bias, places, level, query, first, keys, scores);
      take_in(softmax, scores, keys, output, problem.dim);
      const Matrix<T> value{view.value + first * view.value_row, 1, view.value_row};
      add_product(value, problem.dim, keys, scores, output, kBlock<T>);
    }
  }
  alignas(kAlignment) T factors[kBlock<T>];
  T* log_sums = out.log_sums + (image * problem.heads + head) * problem.queries + block.first;
  for (int64_t i = 0; i < block.count; ++i) {
    const T sum = softmax.sum[i / kSimdWidth<T>][i % kSimdWidth<T>];
    // Without a key the output is zero, and an infinite logarithm makes all weights zero in the backward pass.
    factors[i] = runs.begin == runs.end ? T(0) : T(1) / sum;
    log_sums[i] = runs.begin == runs.end ? std::numeric_limits<T>::infinity()
                                         : softmax.largest[i / kSimdWidth<T>][i % kSimdWidth<T>] + std::log(sum);
  }
  transpose(output, columns, kBlock<T>, rows);
  block.give(rows, problem.dim, factors, out.output.of(image, head), out.output.row);
}

// Gradients of one tile by everything that its bias depends on, given those of its scores.
template <typename T, template <typename> class BiasOf>
ATTNZOO_INLINE void backward_bias(
    const View<T>& view, const BiasOf<T>& bias, const Places<T>& places, const Level& level, const T* by_scores,
    int64_t first, int64_t keys, Places<T>& by_places, T* by_key_positions) {
  for (int64_t j = 0; j < keys; ++j) {
    const T* key = view.key_positions + 2 * (first + j);
    const Places<T> by_displacement = bias.differentiate(level, places, key, by_scores + j * kBlock<T>);
    Simd<T> by_x{};
    Simd<T> by_y{};
    for (int v = 0; v < kVectors; ++v) {
      by_places.x[v] += by_displacement.x[v];
      by_places.y[v] += by_displacement.y[v];
      by_x += by_displacement.x[v];
      by_y += by_displacement.y[v];
    }
    by_key_positions[2 * (first + j)] -= reduce_add(by_x);
    by_key_positions[2 * (first + j) + 1] -= reduce_add(by_y);
  }
}

// Turns products of value and output gradient (keys, kBlock) into gradients by score, and scores into weights.
template <typename T>
ATTNZOO_INLINE void backward_softmax(T* scores, T* products, int64_t keys, const T* log_sums, const T* means) {
  for (int v = 0; v < kVectors; ++v) {
    const Simd<T> log_sum = load<Simd<T>>(log_sums + v * kSimdWidth<T>);
    const Simd<T> mean = load<Simd<T>>(means + v * kSimdWidth<T>);
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t at = j * kBlock<T> + v * kSimdWidth<T>;
      const Simd<T> weight = exp_nonpositive<Simd<T>>(load<Simd<T>>(scores + at) - log_sum);
      store(scores + at, weight);
      store(products + at, weight * (load<Simd<T>>(products + at) - mean));
    }
  }
}

// All gradients of one head of one image.
template <typename T, template <typename> class BiasOf>
void backward_head(
    const Problem& problem, const Inputs<T>& in, Runs runs, int64_t image, int64_t head, T* scratch,
    const Gradients<T>& out) {
  const int64_t dim = problem.dim;
  const int64_t columns = padded<T>(dim);
  const int64_t task = image * problem.heads + head;
  const View<T> view(problem, in, image, head);
  const T scale = static_cast<T>(problem.scale);
  const T* by_output = out.by_output.of(image, head);
  const T* output = out.output.of(image, head);
  T* by_query_positions = out.by_query_positions + task * problem.level_count * problem.queries * 2;
  T* by_key_positions = out.by_key_positions + task * problem.keys * 2;
  T* query_columns = scratch;
  T* slope_columns = query_columns + columns * kBlock<T>;  // the gradient by the output
  T* by_query = slope_columns + columns * kBlock<T>;
  T* query_rows = by_query + columns * kBlock<T>;
  T* slope_rows = query_rows + kBlock<T> * columns;
  const BiasOf<T> bias(
      problem, in.parameters + head * problem.parameters, out.by_parameters + task * problem.parameters,
      slope_rows + kBlock<T> * columns);
  alignas(kAlignment) T scores[kTile * kBlock<T>];
  alignas(kAlignment) T by_scores[kTile * kBlock<T>];
  alignas(kAlignment) T log_sums[kBlock<T>];
  alignas(kAlignment) T means[kBlock<T>];
  alignas(kAlignment) T scales[kBlock<T>];
  std::fill(scales, scales + kBlock<T>, scale);

  for (int64_t first_query = 0; first_query < problem.queries; first_query += kBlock<T>) {
    const Block<T> block{first_query, std::min(kBlock<T>, problem.queries - first_query)};
    block.take(in.query.of(image, head), in.query.row, dim, scale, query_rows);
    transpose(query_rows, kBlock<T>, columns, query_columns);
    block.take(by_output, out.by_output.row, dim, T(1), slope_rows);
    transpose(slope_rows, kBlock<T>, columns, slope_columns);
    std::fill(by_query, by_query + columns * kBlock<T>, T(0));
    std::fill(log_sums, log_sums + kBlock<T>, std::numeric_limits<T>::infinity());
    std::fill(means, means + kBlock<T>, T(0));
    for (int64_t i = 0; i < block.count; ++i) {
      log_sums[i] = out.log_sums[task * problem.queries + first_query + i];
      means[i] = product(slope_rows + i * columns, output + (first_query + i) * out.output.row, dim);
    }
    for (const Run* run = runs.begin; run != runs.end; ++run) {
      const Level& level = problem.levels[run->level];
      const int64_t level_start = run->level * problem.queries * 2;
      const Places<T> places = place(BiasOf<T>::origin(level), view.query_positions + level_start, block);
      Places<T> by_places{};
      for (int64_t first = run->begin; first < run->end; first += kTile) {
        const int64_t keys = std::min(kTile, run->end - first);
        score(view, bias, places, level, query_columns, first, keys, scores);
        std::fill(by_scores, by_scores + keys * kBlock<T>, T(0));
        const Matrix<T> value{view.value + first * view.value_row, view.value_row, 1};
        add_product(value, keys, dim, slope_columns, by_scores, kBlock<T>);
        backward_softmax(scores, by_scores, keys, log_sums, means);
        add_product<T>({scores, kBlock<T>, 1}, keys, kBlock<T>, slope_rows, out.by_value + first * columns, columns);
        add_product<T>({by_scores, kBlock<T>, 1}, keys, kBlock<T>, query_rows, out.by_key + first * columns, columns);
        const Matrix<T> key{view.key + first * view.key_row, 1, view.key_row};
        add_product(key, dim, keys, by_scores, by_query, kBlock<T>);
        backward_bias(view, bias, places, level, by_scores, first, keys, by_places, by_key_positions);
      }
      add_places(by_places, block, by_query_positions + level_start);
    }
    transpose(by_query, columns, kBlock<T>, query_rows);
    block.give(query_rows, dim, scales, out.by_query.of(image, head), out.by_query.row);
  }
  bias.finish();
}

template <typename T, template <typename> class BiasOf>
Kernels<T> kernels_with() {
  return {kBlock<T>, kSimdWidth<T>, scratch_size<T, BiasOf>, forward_block<T, BiasOf>, backward_head<T, BiasOf>};
}

template <typename T>
Kernels<T> kernels(Kind kind) {
  return kind == Kind::kTable ? kernels_with<T, TableBias>() : kernels_with<T, MlpBias>();
}

template Kernels<float> kernels<float>(Kind);
template Kernels<double> kernels<double>(Kind);

}  // namespace attnzoo::deform_kv_attn::ATTNZOO_ISA

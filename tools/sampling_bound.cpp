// What a kernel that reads the four corners of every sample must do at least, with AVX2: see sampling_bound.py.
// Coordinates, weights and the copies of heads are left out; rows hold 32 channels, 128 bytes.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

constexpr int kChannels = 32;
constexpr int kVectors = kChannels / 8;
constexpr int64_t kQueriesPerTask = 512;

struct Samples {
  const int32_t* rows;     // (heads, queries, samples): row of the upper left corner, counted over all heads
  const int32_t* pitches;  // (samples): rows from a corner to the one below
  int64_t samples;
};

// Calls task(i) for every i below `count`, on `threads` threads.
template <typename Task>
void in_parallel(int64_t count, int threads, const Task& task) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t i; (i = next++) < count;) {
      task(i);
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) {
    others.emplace_back(work);
  }
  work();
  for (std::thread& other : others) {
    other.join();
  }
}

// The sum of all corners of the samples of a query and head: one multiply-accumulate for each vector that is loaded, in
// two chains, as the operator does it.
void sum_corners(const Samples& samples, int64_t index, const float* value, float* output) {
  const __m256 one = _mm256_set1_ps(1);
  __m256 sums[2][kVectors] = {};
  for (int64_t i = 0; i < samples.samples; ++i) {
    const float* upper = value + samples.rows[index * samples.samples + i] * int64_t{kChannels};
    const float* lower = upper + samples.pitches[i] * int64_t{kChannels};
    for (int v = 0; v < kVectors; ++v) {
      sums[0][v] = _mm256_fmadd_ps(one, _mm256_loadu_ps(upper + 8 * v), sums[0][v]);
      sums[1][v] = _mm256_fmadd_ps(one, _mm256_loadu_ps(upper + kChannels + 8 * v), sums[1][v]);
      sums[0][v] = _mm256_fmadd_ps(one, _mm256_loadu_ps(lower + 8 * v), sums[0][v]);
      sums[1][v] = _mm256_fmadd_ps(one, _mm256_loadu_ps(lower + kChannels + 8 * v), sums[1][v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    _mm256_storeu_ps(output + index * kChannels + 8 * v, _mm256_add_ps(sums[0][v], sums[1][v]));
  }
}

// One corner of the backward pass: its product with the output's gradient, which is added to the corner's gradient. A
// row holds the channels and then their gradients.
void visit_corner(float* row, const __m256 (&gradient)[kVectors], __m256 (&products)[kVectors]) {
  for (int v = 0; v < kVectors; ++v) {
    products[v] = _mm256_fmadd_ps(gradient[v], _mm256_loadu_ps(row + 8 * v), products[v]);
    float* to = row + kChannels + 8 * v;
    _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), gradient[v]));
  }
}

void visit_corners(const Samples& samples, int64_t index, float* rows, const float* output_gradient, float* output) {
  __m256 gradient[kVectors], products[kVectors] = {};
  for (int v = 0; v < kVectors; ++v) {
    gradient[v] = _mm256_loadu_ps(output_gradient + index * kChannels + 8 * v);
  }
  for (int64_t i = 0; i < samples.samples; ++i) {
    float* upper = rows + samples.rows[index * samples.samples + i] * int64_t{2 * kChannels};
    float* lower = upper + samples.pitches[i] * int64_t{2 * kChannels};
    visit_corner(upper, gradient, products);
    visit_corner(upper + 2 * kChannels, gradient, products);
    visit_corner(lower, gradient, products);
    visit_corner(lower + 2 * kChannels, gradient, products);
  }
  for (int v = 0; v < kVectors; ++v) {
    _mm256_storeu_ps(output + index * kChannels + 8 * v, products[v]);
  }
}

}  // namespace

// value (rows, 32), output (heads, queries, 32).
extern "C" void forward(
    const float* value, const int32_t* rows, const int32_t* pitches, float* output, int64_t heads, int64_t queries,
    int64_t num_samples, int threads) {
  const Samples samples{rows, pitches, num_samples};
  const int64_t count = heads * queries;
  in_parallel((count + kQueriesPerTask - 1) / kQueriesPerTask, threads, [&](int64_t task) {
    const int64_t end = std::min(count, (task + 1) * kQueriesPerTask);
    for (int64_t index = task * kQueriesPerTask; index < end; ++index) {
      sum_corners(samples, index, value, output);
    }
  });
}

// values_and_gradients (rows, 2, 32), output_gradient and output (heads, queries, 32). Heads are split over threads: no
// two of them add to the same row.
extern "C" void backward(
    float* values_and_gradients, const int32_t* rows, const int32_t* pitches, const float* output_gradient,
    float* output, int64_t heads, int64_t queries, int64_t num_samples, int threads) {
  const Samples samples{rows, pitches, num_samples};
  in_parallel(heads, threads, [&](int64_t head) {
    for (int64_t index = head * queries; index < (head + 1) * queries; ++index) {
      visit_corners(samples, index, values_and_gradients, output_gradient, output);
    }
  });
}

// One binary for every x86-64: the same loops compiled for the baseline and for AVX2 with FMA, chosen when run.
#pragma once

#if defined(__x86_64__)

namespace attnzoo {

inline bool has_avx2_fma() {
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has;
}

template <typename Body>
__attribute__((target("avx2,fma"), noinline)) void run_avx2_fma(const Body& body) {
  body();
}

// Calls `body`, whose operator() and everything in it that is hot must be always_inline.
template <typename Body>
void run_vectorised(const Body& body) {
  if (has_avx2_fma()) {
    run_avx2_fma(body);
  } else {
    body();
  }
}

}  // namespace attnzoo

#else

namespace attnzoo {

template <typename Body>
void run_vectorised(const Body& body) {
  body();
}

}  // namespace attnzoo

#endif

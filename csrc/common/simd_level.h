// The instruction sets that the CPU kernels are compiled for, and the choice between them at run time: the best one
// that the machine supports, or the one named by the environment variable ATTNZOO_SIMD.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <string_view>
#include <utility>

namespace attnzoo {

enum class SimdLevel { kBaseline, kAvx2, kAvx512 };

inline bool is_supported(SimdLevel level) {
#if defined(__x86_64__)
  switch (level) {
    case SimdLevel::kAvx512:
      return is_supported(SimdLevel::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case SimdLevel::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case SimdLevel::kBaseline:
      return true;
  }
#endif
  return level == SimdLevel::kBaseline;
}

inline SimdLevel simd_level() {
  constexpr std::pair<std::string_view, SimdLevel> levels[] = {
      {"avx512", SimdLevel::kAvx512}, {"avx2", SimdLevel::kAvx2}, {"baseline", SimdLevel::kBaseline}};
  const char* const variable = std::getenv("ATTNZOO_SIMD");
  const std::string_view requested = variable ? variable : "";
  for (const auto& [name, level] : levels) {
    if (requested == name) {
      STD_TORCH_CHECK(is_supported(level), "ATTNZOO_SIMD=", variable, ": not supported by this machine");
      return level;
    }
  }
  STD_TORCH_CHECK(requested.empty(), "ATTNZOO_SIMD=", variable, ": expected baseline, avx2 or avx512");
  static const SimdLevel best = is_supported(SimdLevel::kAvx512) ? SimdLevel::kAvx512
                                : is_supported(SimdLevel::kAvx2) ? SimdLevel::kAvx2
                                                                : SimdLevel::kBaseline;
  return best;
}

}  // namespace attnzoo

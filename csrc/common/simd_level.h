// The instruction sets that kernels are compiled for, and the one that runs: the best that the machine has, or the
// one that the environment variable ATTNZOO_SIMD names.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <string_view>
#include <utility>

namespace attnzoo {

enum class SimdLevel { kBaseline, kAvx2, kAvx512 };

inline bool machine_has(SimdLevel level) {
#if defined(__x86_64__)
  switch (level) {
    case SimdLevel::kAvx512:
      return machine_has(SimdLevel::kAvx2) && __builtin_cpu_supports("avx512f") &&
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
  constexpr std::pair<std::string_view, SimdLevel> known[] = {
      {"avx512", SimdLevel::kAvx512}, {"avx2", SimdLevel::kAvx2}, {"baseline", SimdLevel::kBaseline}};
  const char* const set = std::getenv("ATTNZOO_SIMD");
  const std::string_view asked = set ? set : "";
  for (const auto& [name, level] : known) {
    if (asked == name) {
      STD_TORCH_CHECK(machine_has(level), "ATTNZOO_SIMD=", set, ": this machine does not have it");
      return level;
    }
  }
  STD_TORCH_CHECK(asked.empty(), "ATTNZOO_SIMD=", set, ": expected baseline, avx2 or avx512");
  static const SimdLevel best = machine_has(SimdLevel::kAvx512) ? SimdLevel::kAvx512
                                : machine_has(SimdLevel::kAvx2) ? SimdLevel::kAvx2
                                                                : SimdLevel::kBaseline;
  return best;
}

}  // namespace attnzoo

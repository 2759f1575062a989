// The instruction sets that the library has and the processor can run. For the driver alone.
#pragma once
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <vector>

#include "kernels.h"

namespace sb {
namespace {

struct Isa {
  const char* name;
  const Kernels* (*kernels)(int64_t D, int64_t dtype);
  const Kernels* (*bf16)(int64_t D);  // that multiply bf16, or 0: then it is widened
};

#if defined(__x86_64__)
// __builtin_cpu_supports does not know these two in Clang and GCC of a few years ago.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}
#ifdef SB_HAS_AVX512_BF16
bool has_avx512_bf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}
#endif
#endif

std::vector<Isa> find_isas() {
  std::vector<Isa> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
#ifdef SB_HAS_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("fma")) {
#ifdef SB_HAS_AVX512_BF16
    if (has_avx512_bf16())
      found.push_back({"avx512", avx512::kernels, avx512_bf16::kernels});
    else
#endif
      found.push_back({"avx512", avx512::kernels, nullptr});
  }
#endif
#ifdef SB_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
    found.push_back({"avx2", avx2::kernels, nullptr});
#endif
#endif
#ifdef SB_HAS_NEON
  found.push_back({"neon", neon::kernels, nullptr});
#endif
  found.push_back({"generic", generic::kernels, nullptr});
  return found;
}

const std::vector<Isa>& isas() {
  static const std::vector<Isa> found = find_isas();
  return found;
}
size_t in_use = 0;

}  // namespace
}  // namespace sb

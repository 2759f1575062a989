// What one core can do at most, by the kernels' own vectors: compiled for the instruction set of
// the kernels that are timed, with kernels/cpu on the include path.
#include <chrono>

#include "elementary.h"

using namespace sb::SB_ISA;

// The fewest nanoseconds that `turn` took, of many times.
template <typename Turn>
static double fastest(Turn turn) {
  double best = 1e30;
  for (int i = 0; i < 400; i++) {
    const auto before = std::chrono::steady_clock::now();
    turn();
    const std::chrono::duration<double, std::nano> took =
        std::chrono::steady_clock::now() - before;
    best = std::min(best, took.count());
  }
  return best;
}

constexpr int CHAINS = 12;  // of operations that wait for each other; the others fill the wait
constexpr int LENGTH = 4096;

static volatile float sink;

template <typename Step>
static double chains(Step step) {
  return fastest([&] {
    vf acc[CHAINS];
    for (int i = 0; i < CHAINS; i++) acc[i] = set1(sink + (float)i);
    for (int n = 0; n < LENGTH; n++)
#pragma GCC unroll 12
      for (int i = 0; i < CHAINS; i++) acc[i] = step(acc[i]);
    vf sum = acc[0];
    for (int i = 1; i < CHAINS; i++) sum = sum + acc[i];
    sink = sum_of(sum) * 0.f;
  });
}

extern "C" {

// GFLOP/s of fused multiply-adds in fp32
double core_fma() {
  sink = 0.5f;
  const vf factor = set1(sink), summand = set1(sink);
  const double ns = chains([&](vf x) { return fma(x, factor, summand); });
  return 2.0 * W * CHAINS * LENGTH / ns;
}

// GFLOP/s of dot products of bf16 pairs, 0 where there is no instruction for them
double core_bf16() {
#if defined(__AVX512BF16__)
  sink = 0.5f;
  const __m512bh pairs = _mm512_cvtne2ps_pbh(set1(sink), set1(sink));
  const double ns = chains([&](vf x) { return _mm512_dpbf16_ps(x, pairs, pairs); });
  return 4.0 * W * CHAINS * LENGTH / ns;
#else
  return 0.0;
#endif
}

// Nanoseconds of 2^x for one x
double core_exp2() {
  constexpr int SCORES = 2048, TIMES = 16;
  alignas(64) static float x[SCORES], y[SCORES];
  for (int i = 0; i < SCORES; i++) x[i] = -(float)i * 0.01f;
  const double ns = fastest([&] {
    for (int n = 0; n < TIMES; n++) {
      for (int i = 0; i < SCORES; i += W) store(y + i, exp2(load(x + i)));
      asm volatile("" ::: "memory");  // so that each time counts
    }
  });
  return ns / (SCORES * TIMES);
}

// GB/s of reading memory that lies in the second cache: more than the first holds
double core_l2() {
  constexpr int FLOATS = 96 * 1024, AT_ONCE = 8 * W;
  alignas(64) static float x[FLOATS];
  const double ns = fastest([&] {
    vf sum[8];
    for (int i = 0; i < 8; i++) sum[i] = set1(0.f);
    for (int n = 0; n < FLOATS; n += AT_ONCE)
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) sum[i] = sum[i] + load(x + n + i * W);
    for (int i = 1; i < 8; i++) sum[0] = sum[0] + sum[i];
    sink = sum_of(sum[0]);
  });
  return sizeof(x) / ns;
}
}

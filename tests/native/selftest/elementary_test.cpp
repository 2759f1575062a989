// What elementary.h is made of, for the instruction set that this is compiled for, -DSB_ISA=<name>
// and its flags: the accuracy of `exp2` over all floats from -150 to 127, that of `log2` over
// those from 1 to 2^31, and the conversions of bf16 and fp16.
//
//   elementary_test [EVERY]     every float, or every so many
//
// Fails if exp2 or log2 is off by more units in the last place than elementary.h states, or if a
// conversion does not round to the nearest, ties to even.
#include "elementary.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "tensors.h"

namespace {

using sb::SB_ISA::W;

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr double LIMIT = 2.04, LOG2_LIMIT = 1.59;
#else
constexpr double LIMIT = 2.30, LOG2_LIMIT = 1.67;
#endif
constexpr float LOWEST = -150.f, HIGHEST = 127.f, ZERO_BELOW = -126.f;

// 2^x within 2^-45 for |x| up to 150: the Taylor series of 2^f, |f| <= 1/2, whose rest is below
// (ln 2 / 2)^14 / 14!; checked against the library's below.
inline double reference(double x) {
  const double n = std::nearbyint(x), y = (x - n) * 0.6931471805599453094;
  double sum = 1;
  for (int i = 13; i > 0; i--) sum = 1 + sum * y / i;
  uint64_t bits = (uint64_t)((int64_t)n + 1023) << 52;
  double power;
  memcpy(&power, &bits, 8);
  return sum * power;
}

float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

struct Result {
  double worst = 0;
  float at = 0;
  long count = 0;
  int failed = 0;

  void fail(const char* what, float x, float y) {
    if (failed++ < 10) printf("%a gives %a: %s\n", x, y, what);
  }
};

// The floats whose bits are from first to last, by `every`.
void examine(uint32_t first, uint32_t last, uint32_t every, Result& result) {
  for (uint64_t begin = first; begin <= last; begin += (uint64_t)every * W) {
    float x[W], y[W];
    double error[W];
    for (int i = 0; i < W; i++)
      x[i] = float_of((uint32_t)std::min<uint64_t>(last, begin + (uint64_t)i * every));
    sb::SB_ISA::store(y, sb::SB_ISA::exp2(sb::SB_ISA::load(x)));
    for (int i = 0; i < W; i++) {
      // The last place of a result in [2^n, 2^(n + 1)) is 2^(n - 23).
      const double exact = reference(x[i]);
      uint64_t bits;
      memcpy(&bits, &exact, 8);
      bits = (bits & 0x7ff0000000000000u) - ((uint64_t)23 << 52);
      double place;
      memcpy(&place, &bits, 8);
      error[i] = std::abs(y[i] - exact) / place;
    }
    for (int i = 0; i < W; i++) {
      if (x[i] <= ZERO_BELOW) {
        if (y[i] != 0) result.fail("not 0", x[i], y[i]);
      } else if (!(error[i] <= result.worst)) {
        result.worst = error[i], result.at = x[i];
        if (!(error[i] <= LIMIT)) result.fail("too far off", x[i], y[i]);
      }
    }
    result.count += W;
  }
}

// The unit in the last place of floats near x, which is not 0 or subnormal.
double place_of(double x) { return std::ldexp(1.0, std::ilogb(x) - 23); }

// log2 of the floats from 1 to 2^31, by `every`, beside the library's in double.
void examine_log2(uint32_t every, Result& result) {
  for (uint64_t begin = bits_of(1.f); begin <= bits_of(0x1p31f); begin += (uint64_t)every * W) {
    float x[W], y[W];
    for (int i = 0; i < W; i++)
      x[i] = float_of((uint32_t)std::min<uint64_t>(bits_of(0x1p31f), begin + (uint64_t)i * every));
    sb::SB_ISA::store(y, sb::SB_ISA::log2(sb::SB_ISA::load(x)));
    for (int i = 0; i < W; i++) {
      const double exact = std::log2((double)x[i]);
      const double error =
          exact == 0 ? y[i] != 0 ? INFINITY : 0 : std::abs(y[i] - exact) / place_of(exact);
      if (error <= result.worst) continue;
      result.worst = error, result.at = x[i];
      if (!(error <= LOG2_LIMIT)) result.fail("log2 too far off", x[i], y[i]);
    }
    result.count += W;
  }
  float y[W];
  sb::SB_ISA::store(y,
                    sb::SB_ISA::log2(sb::SB_ISA::set1(std::numeric_limits<float>::quiet_NaN())));
  if (y[0] == y[0]) result.fail("log2 of NaN must be NaN", y[0], y[0]);
}

bool is_same(double x, double y) { return x == y || (x != x && y != y); }

// All numbers of a dtype of 16 bits as fp32; floats, by `every`, and all ties, as that dtype.
void convert(int64_t dtype, uint32_t every, Result& result) {
  for (uint32_t first = 0; first < 65536; first += W) {
    uint16_t half[2 * W];
    float y[W];
    for (int i = 0; i < W; i++) half[i] = (uint16_t)(first + i);
    sb::SB_ISA::store(y, sb::SB_ISA::load_as_float(half, dtype, 0));
    for (int i = 0; i < W; i++)
      if (!is_same(y[i], selftest::decoded((const char*)(half + i), dtype)))
        result.fail("16 bits read wrong", y[i], half[i]);
  }
  const uint32_t tie = dtype == SB_BFLOAT16 ? 0x8000 : 0x1000;
  auto check = [&](uint64_t first, uint64_t step) {
    float x[W];
    uint16_t half[2 * W];
    for (int i = 0; i < W; i++) x[i] = float_of((uint32_t)(first + (uint64_t)i * step));
    sb::SB_ISA::store_float_as(half, dtype, 0, sb::SB_ISA::load(x));
    for (int i = 0; i < W; i++) {
      const double y = selftest::decoded((const char*)(half + i), dtype);
      if (!is_same(y, selftest::rounded(x[i], dtype)))
        result.fail("rounded wrong", x[i], (float)y);
    }
  };
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += uint64_t{256} * every * W)
    check(bits, uint64_t{256} * every + 1);
  for (uint64_t bits = tie; bits < uint64_t{1} << 32; bits += uint64_t{W} * 2 * tie)
    check(bits, 2 * tie);
}

}  // namespace

int main(int argc, char** argv) {
  const uint32_t every = argc > 1 ? (uint32_t)atol(argv[1]) : 1;
  Result result;
  for (double x = -150; x <= 127; x += 0.0101)
    if (std::abs(reference(x) / std::exp2(x) - 1) > 0x1p-45) result.fail("reference", (float)x, 0);
  examine(0, bits_of(HIGHEST), every, result);
  examine(bits_of(-0.f), bits_of(LOWEST), every, result);
  for (float x : {-std::numeric_limits<float>::infinity(), -1e38f, -1e4f, ZERO_BELOW,
                  std::numeric_limits<float>::quiet_NaN()}) {
    float y[W];
    sb::SB_ISA::store(y, sb::SB_ISA::exp2(sb::SB_ISA::set1(x)));
    if (x != x ? y[0] == y[0] : y[0] != 0) result.fail("must be 0, or NaN of NaN", x, y[0]);
  }
  for (int64_t dtype : {SB_BFLOAT16, SB_FLOAT16}) convert(dtype, std::min(every, 101u), result);
  printf("exp2: %ld floats, at most %.4f units in the last place off, at %.9g; %d wrong\n",
         result.count, result.worst, result.at, result.failed);
  Result logarithms;
  examine_log2(every, logarithms);
  printf("log2: %ld floats, at most %.4f units in the last place off, at %.9g; %d wrong\n",
         logarithms.count, logarithms.worst, logarithms.at, logarithms.failed);
  return result.failed != 0 || logarithms.failed != 0;
}

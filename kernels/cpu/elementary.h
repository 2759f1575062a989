// What the kernels build on: 2^x, dropout's draw, and rows of any dtype as fp32.
#pragma once
#include <algorithm>
#include <limits>

#include "abi.h"
#include "simd.h"

namespace sb::SB_ISA {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
constexpr float LEAST = -1e38f;  // stands for a maximum of -inf, so that nothing subtracts it

// 2^x for x up to 127; 0 from -126 down; NaN stays NaN. Over all floats it is within 2.04 units in
// the last place with FMA and within 2.30 without (tests/native/selftest/elementary_test.cpp).
static inline vf exp2(vf x) {
  vf inside = not_below(x, -126.f);
  vf n = round_to_int(inside), f = inside - n;
  vf p = fma(f, set1(1.3264727648e-3f), set1(9.6715126765e-3f));
  p = fma(f, p, set1(5.5507337417e-2f));
  p = fma(f, p, set1(2.4022242085e-1f));
  p = fma(f, p, set1(6.9314697760e-1f));
  p = fma(f, p, set1(1.0f));
  return zero_below(x, -126.f, exp2_within(n, p));
}

// The binary logarithm of normal x > 0; NaN stays NaN. Over all floats from 1 to 2^31 it is within
// 1.59 units in the last place with FMA and within 1.67 without (the same test).
static inline vf log2(vf x) {
  vf n;
  vf f = mantissa_of(x, &n) - set1(1.f);
  vf p = fma(f, set1(-0x1.078de4p-4f), set1(0x1.3490f6p-3f));
  p = fma(f, p, set1(-0x1.85b0bep-3f));
  p = fma(f, p, set1(0x1.ac3d24p-3f));
  p = fma(f, p, set1(-0x1.ebd2d2p-3f));
  p = fma(f, p, set1(0x1.274e26p-2f));
  p = fma(f, p, set1(-0x1.7154c0p-2f));
  p = fma(f, p, set1(0x1.ec7140p-2f));
  p = fma(f, p, set1(-0x1.715476p-1f));
  p = fma(f, p, set1(0x1.715476p+0f));
  return fma(f, p, fma(x, set1(0.f), n));  // mantissa_of takes NaN for a number
}

// The draw of sparsebert/dropout.py: the first word of Philox2x32-7 of (query, key), under the key
// of a batch and head, at least the threshold. Bit i of the result: lane i is kept.
static inline uint32_t is_kept(uint32_t head_key, vu query, vu key, uint32_t threshold) {
  vu low;
  vu c = xor_u32(product_u32(query, 0xD256D193u, &low), xor_u32(key, set1_u32(head_key)));
#pragma GCC unroll 6
  for (int round = 1; round < 7; round++) {
    head_key += 0x9E3779B9u;
    vu next;
    vu high = product_u32(c, 0xD256D193u, &next);
    c = xor_u32(xor_u32(high, low), set1_u32(head_key));
    low = next;
  }
  return at_least_u32(c, threshold);
}

static inline int64_t bytes_of(int64_t dtype) { return dtype == SB_FLOAT32 ? 4 : 2; }

static inline vf load_as_float(const void* p, int64_t dtype, int64_t at) {
  if (dtype == SB_FLOAT32) return load((const float*)p + at);
  const uint16_t* half = (const uint16_t*)p + at;
  return dtype == SB_BFLOAT16 ? load_bf16(half) : load_f16(half);
}
static inline void store_float_as(void* p, int64_t dtype, int64_t at, vf x) {
  if (dtype == SB_FLOAT32) return store((float*)p + at, x);
  uint16_t* half = (uint16_t*)p + at;
  dtype == SB_BFLOAT16 ? store_bf16(half, x) : store_f16(half, x);
}

// to[0 .. padded) = the D elements of a row, then zeros
static inline void load_row(const void* row, int64_t dtype, int D, int padded, float* to) {
  int d = 0;
  for (; d + W <= D; d += W) store(to + d, load_as_float(row, dtype, d));
  if (d == padded) return;
  const int64_t size = bytes_of(dtype);
  alignas(64) char raw[4 * W] = {};
  memcpy(raw, (const char*)row + d * size, (D - d) * size);
  store(to + d, load_as_float(raw, dtype, 0));
  for (d += W; d < padded; d += W) store(to + d, set1(0.f));
}

// the D elements of a row = from[0 .. D) times `factor`
static inline void store_row(void* row, int64_t dtype, int D, const float* from, float factor) {
  const vf f = set1(factor);
  int d = 0;
  for (; d + W <= D; d += W) store_float_as(row, dtype, d, load(from + d) * f);
  if (d == D) return;
  alignas(64) char raw[4 * W];
  store_float_as(raw, dtype, 0, load(from + d) * f);
  const int64_t size = bytes_of(dtype);
  memcpy((char*)row + d * size, raw, (D - d) * size);
}

}  // namespace sb::SB_ISA

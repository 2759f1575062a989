// Vectors of 4 lanes by the compiler's own extensions: NEON on ARM, SSE2 on x86, plain code else.
#pragma once
#include <cstdint>
#include <cstring>

namespace sb::SB_ISA {

constexpr int W = 4;  // lanes
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

static inline vf load(const float* p) {
  vf x;
  memcpy(&x, p, 16);
  return x;
}
static inline void store(float* p, vf x) { memcpy(p, &x, 16); }
static inline vf set1(float x) { return vf{x, x, x, x}; }
static inline vf fma(vf a, vf b, vf c) { return a * b + c; }  // contracted where FMA exists
static inline vf fma(vf a, float b, vf c) { return a * b + c; }
static inline vf max(vf a, vf b) { return a > b ? a : b; }
// lanes whose bit of `word`, from bit `shift` on, is 0 become those of `other`
static inline vf keep(vf x, uint32_t word, int shift, vf other) {
  const vi bit = {1, 2, 4, 8};
  int w = (int)(word >> shift);
  return (vi{w, w, w, w} & bit) == bit ? x : other;
}
static inline float max_of(vf x) {
  float a = x[0] > x[1] ? x[0] : x[1], b = x[2] > x[3] ? x[2] : x[3];
  return a > b ? a : b;
}
static inline float sum_of(vf x) { return (x[0] + x[1]) + (x[2] + x[3]); }

static inline vf load_bf16(const uint16_t* p) {
  return (vf)vi{p[0] << 16, p[1] << 16, p[2] << 16, p[3] << 16};
}
static inline uint16_t bf16_of(float x) {  // to nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline void store_bf16(uint16_t* p, vf x) {
  for (int i = 0; i < 4; i++) p[i] = bf16_of(x[i]);
}
static inline float float_of_f16(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
  uint32_t bits;
  if (exponent == 0) {
    float x = (float)fraction * 0x1p-24f;
    memcpy(&bits, &x, 4);
    bits |= sign;
  } else {
    bits = sign | ((exponent == 31 ? 255 : exponent + 112) << 23) | (fraction << 13);
  }
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
static inline uint16_t f16_of(float x) {  // to nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &x, 4);
  uint32_t sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00);
  if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00);  // 65520 and more
  if (size < 0x38800000) {  // below 2^-14: a multiple of 2^-24, which adding 0.5 rounds to
    float half;
    memcpy(&half, &size, 4);
    half += 0.5f;
    memcpy(&bits, &half, 4);
    return (uint16_t)(sign | (bits - 0x3f000000));
  }
  return (uint16_t)(sign | ((size - 0x38000000 + 0xfff + ((size >> 13) & 1)) >> 13));
}
static inline vf load_f16(const uint16_t* p) {
  return vf{float_of_f16(p[0]), float_of_f16(p[1]), float_of_f16(p[2]), float_of_f16(p[3])};
}
static inline void store_f16(uint16_t* p, vf x) {
  for (int i = 0; i < 4; i++) p[i] = f16_of(x[i]);
}

// x, or `most` where that is less; NaN stays NaN
static inline vf not_above(vf x, float most) { return x > set1(most) ? set1(most) : x; }
// x, or `least` where that is more; NaN stays NaN. For exp2, which may not need it.
static inline vf not_below(vf x, float least) { return x < set1(least) ? set1(least) : x; }
// p * 2^n for whole n from -126 to 127
static inline vf exp2_within(vf n, vf p) {
  const vf magic = set1(12582912.f);  // 1.5 * 2^23: whole numbers are in the last bits
  vi e = (((vi)(n + magic) - (vi)magic) + 127) << 23;
  return p * (vf)e;
}
static inline vf round_to_int(vf x) {  // for |x| below 2^22
  const vf magic = set1(12582912.f);
  return (x + magic) - magic;
}
// y where x > least or x is NaN, else 0
static inline vf zero_below(vf x, float least, vf y) {
  vi on = ~(vi)(x <= set1(least));
  return (vf)((vi)y & on);
}

typedef vf quad;  // four lanes, whatever W
// the sums of four vectors
static inline quad sums_of_4(vf a, vf b, vf c, vf d) {
  return quad{sum_of(a), sum_of(b), sum_of(c), sum_of(d)};
}
// W lanes of W / 4 quads
static inline vf join(const quad* q) { return q[0]; }

// x[d][16] = rows[16][d], d < D
static inline void transpose_16(const float* rows, int D, float* x) {
  for (int r = 0; r < 16; r++)
    for (int d = 0; d < D; d++) x[d * 16 + r] = rows[r * D + d];
}

typedef uint32_t vu __attribute__((vector_size(16)));
static inline vu load_u32(const uint32_t* p) {
  vu x;
  memcpy(&x, p, 16);
  return x;
}
static inline vu set1_u32(uint32_t x) { return vu{x, x, x, x}; }
static inline vu xor_u32(vu a, vu b) { return a ^ b; }
// the high halves of the 32-bit products, and the low ones
static inline vu product_u32(vu a, uint32_t by, vu* low) {
  vu high;
  for (int i = 0; i < 4; i++) {
    uint64_t p = (uint64_t)a[i] * by;
    high[i] = (uint32_t)(p >> 32);
    (*low)[i] = (uint32_t)p;
  }
  return high;
}
// bit i: lane i is at least b
static inline uint32_t at_least_u32(vu a, uint32_t b) {
  uint32_t word = 0;
  for (int i = 0; i < 4; i++) word |= (uint32_t)(a[i] >= b) << i;
  return word;
}

}  // namespace sb::SB_ISA

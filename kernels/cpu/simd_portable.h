// Vectors of 4 lanes by the compiler's own extensions: NEON on ARM, SSE2 on x86, plain code else.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

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
static inline void store_bf16(uint16_t* p, vf x) {  // to nearest, ties to even
  const vi bits = (vi)x, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const vi whole = x == x ? rounded : vi{} + 0x7fc00000;
  for (int i = 0; i < 4; i++) p[i] = (uint16_t)((uint32_t)whole[i] >> 16);
}
static inline vf load_f16(const uint16_t* p) {
  const vi half = {p[0], p[1], p[2], p[3]}, size = half & 0x7fff, exponent = half & 0x7c00;
  const vi normal = (size << 13) + (112 << 23);
  const vi small = (vi)(__builtin_convertvector(size, vf) * set1(0x1p-24f));
  const vi bits = exponent == 0 ? small : exponent == 0x7c00 ? normal + (112 << 23) : normal;
  return (vf)(bits | (half & 0x8000) << 16);
}
static inline void store_f16(uint16_t* p, vf x) {  // to nearest, ties to even
  const vi bits = (vi)x, size = bits & 0x7fffffff;
  const vi normal = (size - 0x38000000 + 0xfff + ((size >> 13) & 1)) >> 13;
  // Below 2^-14 it is a multiple of 2^-24, to which adding 0.5 rounds.
  const vi small = (vi)((vf)size + set1(0.5f)) - 0x3f000000;
  const vi finite = size < 0x38800000 ? small : normal;
  const vi whole = size > 0x7f800000    ? vi{} + 0x7e00
                   : size >= 0x477ff000 ? vi{} + 0x7c00  // 65520 and more
                                        : finite;
  for (int i = 0; i < 4; i++) p[i] = (uint16_t)(whole[i] | ((bits[i] >> 16) & 0x8000));
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
// m from 0.75 to 1.5 of x = m * 2^n, for normal x > 0, and n
static inline vf mantissa_of(vf x, vf* n) {
  const vi e = ((vi)x - 0x3f400000) >> 23;
  *n = __builtin_convertvector(e, vf);
  return (vf)((vi)x - (e << 23));
}
// y where x > least or x is NaN, else 0
static inline vf zero_below(vf x, float least, vf y) {
  vi on = ~(vi)(x <= set1(least));
  return (vf)((vi)y & on);
}

typedef vf quad;  // four lanes, whatever W
static inline void store_quad(float* p, quad x) { store(p, x); }
// the sums of four vectors
static inline quad sums_of_4(vf a, vf b, vf c, vf d) {
  return quad{sum_of(a), sum_of(b), sum_of(c), sum_of(d)};
}
// W lanes of W / 4 quads
static inline vf join(const quad* q) { return q[0]; }

// x[d][16] = rows[16][d], d < D
static inline void transpose_16(const float* rows, int D, float* x) {
  for (int d = 0; d < D; d += 4)
    for (int r = 0; r < 16; r += 4) {
      const float* p = rows + r * D + d;
      const vf a = load(p), b = load(p + D), c = load(p + 2 * D), e = load(p + 3 * D);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) store(x + (d + i) * 16 + r, vf{a[i], b[i], c[i], e[i]});
    }
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
#ifdef __SSE2__
  const __m128i even = _mm_mul_epu32((__m128i)a, _mm_set1_epi32((int)by));
  const __m128i odd = _mm_mul_epu32(_mm_srli_epi64((__m128i)a, 32), _mm_set1_epi32((int)by));
  const vu e = (vu)even, o = (vu)odd;
  *low = vu{e[0], o[0], e[2], o[2]};
  return vu{e[1], o[1], e[3], o[3]};
#else
  vu high;
  for (int i = 0; i < 4; i++) {
    uint64_t p = (uint64_t)a[i] * by;
    high[i] = (uint32_t)(p >> 32);
    (*low)[i] = (uint32_t)p;
  }
  return high;
#endif
}
// bit i: lane i is at least b
static inline uint32_t at_least_u32(vu a, uint32_t b) {
  uint32_t word = 0;
  for (int i = 0; i < 4; i++) word |= (uint32_t)(a[i] >= b) << i;
  return word;
}

}  // namespace sb::SB_ISA

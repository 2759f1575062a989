// AVX-512: 16 lanes. See simd_portable.h for the meaning of the functions.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace sb::SB_ISA {

constexpr int W = 16;
typedef __m512 vf;

static inline vf load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, vf x) { _mm512_storeu_ps(p, x); }
static inline vf set1(float x) { return _mm512_set1_ps(x); }
static inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf fma(vf a, float b, vf c) { return _mm512_fmadd_ps(a, set1(b), c); }
static inline vf max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf keep(vf x, uint32_t word, int shift, vf other) {
  return _mm512_mask_mov_ps(other, (__mmask16)(word >> shift), x);
}
static inline float max_of(vf x) { return _mm512_reduce_max_ps(x); }
static inline float sum_of(vf x) { return _mm512_reduce_add_ps(x); }

static inline vf load_bf16(const uint16_t* p) {
  __m256i bits = _mm256_loadu_si256((const __m256i*)p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
static inline void store_bf16(uint16_t* p, vf x) {
  __m512i bits = _mm512_castps_si512(x);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
static inline vf load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
static inline void store_f16(uint16_t* p, vf x) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

static inline vf not_above(vf x, float most) { return _mm512_min_ps(set1(most), x); }
static inline vf not_below(vf x, float) { return x; }  // scalef takes any x
static inline vf exp2_within(vf x, vf p) { return _mm512_scalef_ps(p, x); }
static inline vf round_to_int(vf x) { return _mm512_roundscale_ps(x, 8); }
static inline vf mantissa_of(vf x, vf* n) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i e = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f400000)), 23);
  *n = _mm512_cvtepi32_ps(e);
  return _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(e, 23)));
}
static inline vf zero_below(vf x, float least, vf y) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, set1(least), _CMP_NLE_UQ), y);
}

typedef __m128 quad;
static inline void store_quad(float* p, quad x) { _mm_storeu_ps(p, x); }
static inline quad sums_of_4(vf a, vf b, vf c, vf d) {
  vf ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
  vf cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
  __m512d abd = _mm512_castps_pd(ab), cdd = _mm512_castps_pd(cd);
  vf s = _mm512_castpd_ps(_mm512_unpacklo_pd(abd, cdd)) +
         _mm512_castpd_ps(_mm512_unpackhi_pd(abd, cdd));
  __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
  return _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
}
static inline vf join(const quad* q) {
  __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(q[0]), q[1], 1);
  __m256 high = _mm256_insertf128_ps(_mm256_castps128_ps256(q[2]), q[3], 1);
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

// x[d][16] = rows[16][d], d < D, a multiple of 16
static inline void transpose_16(const float* rows, int D, float* x) {
  for (int d0 = 0; d0 < D; d0 += 16) {
    __m512 r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = load(rows + i * D + d0);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 2]);
      __m512d c = _mm512_castps_pd(t[i + 1]), d = _mm512_castps_pd(t[i + 3]);
      r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
      r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
      r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
      t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      store(x + (d0 + i) * 16, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
      store(x + (d0 + i + 8) * 16, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
      store(x + (d0 + i + 4) * 16, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88));
      store(x + (d0 + i + 12) * 16, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd));
    }
  }
}

typedef __m512i vu;
static inline vu load_u32(const uint32_t* p) { return _mm512_loadu_si512(p); }
static inline vu set1_u32(uint32_t x) { return _mm512_set1_epi32((int)x); }
static inline vu xor_u32(vu a, vu b) { return _mm512_xor_si512(a, b); }
// high and low halves of 32-bit products
static inline vu product_u32(vu a, uint32_t by, vu* low) {
  vu m = set1_u32(by);
  vu even = _mm512_mul_epu32(a, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), m);
  *low = _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
  return _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
}
static inline uint32_t at_least_u32(vu a, uint32_t b) {
  return _mm512_cmp_epu32_mask(a, set1_u32(b), _MM_CMPINT_NLT);
}

}  // namespace sb::SB_ISA

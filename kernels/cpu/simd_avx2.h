// AVX2, FMA and F16C: 8 lanes. See simd_portable.h for the meaning of the functions.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace sb::SB_ISA {

constexpr int W = 8;
typedef __m256 vf;

static inline vf load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, vf x) { _mm256_storeu_ps(p, x); }
static inline vf set1(float x) { return _mm256_set1_ps(x); }
static inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf fma(vf a, float b, vf c) { return _mm256_fmadd_ps(a, set1(b), c); }
static inline vf max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf keep(vf x, uint32_t word, int shift, vf other) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  __m256i bits = _mm256_and_si256(_mm256_set1_epi32((int)(word >> shift)), bit);
  return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(bits, bit)));
}
static inline float max_of(vf x) {
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}
static inline float sum_of(vf x) {
  __m128 h = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  h = _mm_hadd_ps(h, h);
  return _mm_cvtss_f32(_mm_hadd_ps(h, h));
}

static inline vf load_bf16(const uint16_t* p) {
  __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
static inline void store_bf16(uint16_t* p, vf x) {
  __m256i bits = _mm256_castps_si256(x);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  vf nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  vf whole = _mm256_blendv_ps(_mm256_castsi256_ps(rounded),
                              _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), nan);
  __m256i top = _mm256_srli_epi32(_mm256_castps_si256(whole), 16);
  __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(top, top), 0xd8);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
}
static inline vf load_f16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
static inline void store_f16(uint16_t* p, vf x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

static inline vf not_above(vf x, float most) { return _mm256_min_ps(set1(most), x); }
static inline vf not_below(vf x, float least) { return _mm256_max_ps(set1(least), x); }
static inline vf exp2_within(vf n, vf p) {
  __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return p * _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
static inline vf round_to_int(vf x) { return _mm256_round_ps(x, 8); }
static inline vf mantissa_of(vf x, vf* n) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i e = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f400000)), 23);
  *n = _mm256_cvtepi32_ps(e);
  return _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(e, 23)));
}
static inline vf zero_below(vf x, float least, vf y) {
  return _mm256_and_ps(_mm256_cmp_ps(x, set1(least), _CMP_NLE_UQ), y);
}

typedef __m128 quad;
static inline void store_quad(float* p, quad x) { _mm_storeu_ps(p, x); }
static inline quad sums_of_4(vf a, vf b, vf c, vf d) {
  vf s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}
static inline vf join(const quad* q) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(q[0]), q[1], 1);
}

static inline void transpose_8(const float* rows, int D, float* x) {
  __m256 r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) r[i] = load(rows + i * D);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    store(x + i * 16, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    store(x + (i + 4) * 16, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}
static inline void transpose_16(const float* rows, int D, float* x) {
  for (int d = 0; d < D; d += 8)
    for (int r = 0; r < 16; r += 8) transpose_8(rows + r * D + d, D, x + d * 16 + r);
}

typedef __m256i vu;
static inline vu load_u32(const uint32_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline vu set1_u32(uint32_t x) { return _mm256_set1_epi32((int)x); }
static inline vu xor_u32(vu a, vu b) { return _mm256_xor_si256(a, b); }
static inline vu product_u32(vu a, uint32_t by, vu* low) {
  vu m = set1_u32(by);
  vu even = _mm256_mul_epu32(a, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), m);
  *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  return _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
}
static inline uint32_t at_least_u32(vu a, uint32_t b) {
  vu least = set1_u32(b);
  __m256i on = _mm256_cmpeq_epi32(_mm256_max_epu32(a, least), a);
  return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(on));
}

}  // namespace sb::SB_ISA

// The elements of q, k and v in products: fp32, or bf16 where the processor multiplies it.
//
// A word is 32 bits, one fp32 element or two neighbours of bf16; a vector has W words. The dot
// product of two words is added to a sum in fp32.
#pragma once
#include <type_traits>

#include "elementary.h"

namespace sb::SB_ISA {

static inline vf load_words(const float* p) { return load(p); }
static inline vf load_words(const float* p, int) { return load(p); }  // rows are padded
// A word for all lanes: of fp32 a number, which NEON takes as it is.
static inline float each_word(const float* p) { return *p; }
static inline vf dot(vf a, vf b, vf sum) { return fma(a, b, sum); }
static inline vf dot(vf a, float b, vf sum) { return fma(a, b, sum); }
static inline vf load_float(const float* p) { return load(p); }
static inline void store_float(float* p, vf x) { store(p, x); }

#ifdef __AVX512BF16__
struct bf16 {
  uint16_t bits;
};

static inline __m512bh load_words(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
static inline __mmask32 first_of(int n) { return n >= 32 ? ~0u : n <= 0 ? 0u : (1u << n) - 1; }
// The first `left` elements, then zeros; nothing beyond is read, for it may be NaN, or not ours.
static inline __m512bh load_words(const bf16* p, int left) {
  if (left >= 32) return load_words(p);
  return (__m512bh)_mm512_maskz_loadu_epi16(first_of(left), p);
}
static inline void store_words(bf16* p, __m512bh x, int left) {
  _mm512_mask_storeu_epi16(p, first_of(left), (__m512i)x);
}
static inline __m512bh each_word(const bf16* p) {
  int32_t word;
  memcpy(&word, p, sizeof word);
  return (__m512bh)_mm512_set1_epi32(word);
}
static inline vf dot(__m512bh a, __m512bh b, vf sum) { return _mm512_dpbf16_ps(sum, a, b); }
static inline vf load_float(const bf16* p) { return load_bf16(&p->bits); }
static inline void store_float(bf16* p, vf x) {
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x));
}
#endif

template <class E>
using words_of = decltype(load_words((const E*)nullptr));
template <class E>
constexpr int PER_WORD = sizeof(float) / sizeof(E);
template <class E>
constexpr int LANES = W * PER_WORD<E>;
// Elements of a row in whole vectors.
template <class E>
constexpr int row_size(int D) {
  return (D + LANES<E> - 1) / LANES<E> * LANES<E>;
}

// x[word][16] = rows[16][size], as words
template <class E>
static inline void transpose_words(const E* rows, int size, E* x) {
  transpose_16((const float*)rows, size / PER_WORD<E>, (float*)x);
}

}  // namespace sb::SB_ISA

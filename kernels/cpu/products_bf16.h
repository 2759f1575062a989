// Weighted sums of bf16 rows: tile.h's `weigh` and `spread` and entries.h's `entry_weigh`, by dot
// products of pairs.
//
// The weights are rounded to bf16. A pair is that of two columns, whose rows are interleaved
// element by element, or in `spread` that of two rows of the group.
#pragma once
#include "entry_gradients.h"

namespace sb::SB_ISA {

// A pair of weights, which stands in the place of a float.
static inline __m512bh each_pair(const float* pair, uint32_t used = ~0u) {
  uint32_t bits;
  memcpy(&bits, pair, sizeof bits);
  return (__m512bh)_mm512_set1_epi32((int)(bits & used));
}

static inline __m512i load_bits(const bf16* p) { return _mm512_loadu_si512(p); }
static inline __m512i load_half(const bf16* p) {
  return _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i*)p));
}

// Elements of a and b in turn: those of the low halves, or of the high ones
static inline __m512bh interleave_low(__m512i a, __m512i b) {
  const __m512i order =
      _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                       37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return (__m512bh)_mm512_permutex2var_epi16(a, order, b);
}
static inline __m512bh interleave_high(__m512i a, __m512i b) {
  const __m512i order =
      _mm512_set_epi16(63, 31, 62, 30, 61, 29, 60, 28, 59, 27, 58, 26, 57, 25, 56, 24, 55, 23, 54,
                       22, 53, 21, 52, 20, 51, 19, 50, 18, 49, 17, 48, 16);
  return (__m512bh)_mm512_permutex2var_epi16(a, order, b);
}

// y[V] = 16 V elements of two rows, interleaved; V is even, or 1
template <int V>
static inline __attribute__((always_inline)) void interleave(const bf16* a, const bf16* b,
                                                             __m512bh* y) {
  if constexpr (V == 1) {
    y[0] = interleave_low(load_half(a), load_half(b));
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < V; i += 2) {
      const __m512i low = load_bits(a + i * W), high = load_bits(b + i * W);
      y[i] = interleave_low(low, high);
      y[i + 1] = interleave_high(low, high);
    }
  }
}

// As tile.h's, of pairs[c / 2][16] of weights
template <int R, int V, bool FIRST>
static inline __attribute__((always_inline)) void weigh_block(const float* pairs, const bf16* x,
                                                              int64_t stride, const int32_t* cols,
                                                              int n, int D, float* o) {
  vf acc[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) acc[r][i] = FIRST ? set1(0.f) : load(o + r * D + i * W);
  for (int c = 0; c < n; c += 2, pairs += GROUP) {
    __m512bh y[V];
    // The weight of a column that is not there is 0.
    interleave<V>(x + cols[c] * stride, x + cols[c + 1 < n ? c + 1 : c] * stride, y);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const __m512bh w = each_pair(pairs + r);
#pragma GCC unroll 16
      for (int i = 0; i < V; i++) acc[r][i] = dot(w, y[i], acc[r][i]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) store(o + r * D + i * W, acc[r][i]);
}

// pairs[c / 2][16] of s[c][16], which may be in the same place
static inline void pair_columns(const float* s, int n, float* pairs) {
  for (int c = 0; c < n; c += 2) {
    const vf next = c + 1 < n ? load(s + (c + 1) * GROUP) : set1(0.f);
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(next, load(s + c * GROUP));
    const __m512i high = _mm512_zextsi256_si512(_mm512_extracti64x4_epi64(both, 1));
    store(pairs + c / 2 * GROUP, (vf)interleave_low(both, high));
  }
}

template <int DC, bool FIRST>
static void weigh(const float* s, const bf16* x, int64_t stride, const int32_t* cols, int n, int D,
                  float* o, int live) {
  D = dim<DC>(D);
  alignas(64) float pairs[CHUNK / 2 * GROUP];
  pair_columns(s, n, pairs);
  int d = 0;
  for (; d + 2 * W <= D; d += 2 * W)
    weigh_vectors<2, FIRST>(pairs, x + d, stride, cols, n, D, o + d, live);
  if (d < D) weigh_vectors<1, FIRST>(pairs, x + d, stride, cols, n, D, o + d, live);
}

// As tile.h's, of bf16 weights[c][16] and rows[r / 2][D] interleaved
template <int C, int V>
static inline __attribute__((always_inline)) void spread_block(const bf16* weights,
                                                               const bf16* rows,
                                                               const int32_t* cols, int D,
                                                               float* out, int live) {
  vf acc[C][V];
#pragma GCC unroll 16
  for (int c = 0; c < C; c++)
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) acc[c][i] = load(out + (int64_t)cols[c] * D + i * W);
  for (int r = 0; r < live; r += 2) {
    __m512bh y[V];
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) y[i] = load_words(rows + r * D + i * LANES<bf16>);
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) {
      const __m512bh w = each_word(weights + c * GROUP + r);
#pragma GCC unroll 16
      for (int i = 0; i < V; i++) acc[c][i] = dot(w, y[i], acc[c][i]);
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < C; c++)
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) store(out + (int64_t)cols[c] * D + i * W, acc[c][i]);
}

template <int DC>
static void spread(const float* s, const bf16* x, const int32_t* cols, int n, int D, float* out,
                   int live) {
  D = dim<DC>(D);
  alignas(64) bf16 weights[CHUNK * GROUP], rows[GROUP * 256];
  for (int c = 0; c < n; c++) store_float(weights + c * GROUP, load(s + c * GROUP));
  const int size = row_size<bf16>(D);
  for (int r = 0; r < live; r += 2)
    for (int d = 0; d < D; d += W) {
      const bf16* from = x + r * size + d;
      __m512bh y;
      interleave<1>(from, from + size, &y);
      store_words(rows + r * D + 2 * d, y, LANES<bf16>);
    }
  int d = 0;
  for (; d + 4 * W <= D; d += 4 * W)
    spread_vectors<4>(weights, rows + 2 * d, cols, n, D, out + d, live);
  if constexpr (DC % (4 * W) != 0 || DC == 0) {
    for (; d + 2 * W <= D; d += 2 * W)
      spread_vectors<2>(weights, rows + 2 * d, cols, n, D, out + d, live);
    if (d < D) spread_vectors<1>(weights, rows + 2 * d, cols, n, D, out + d, live);
  }
}

// As `interleave`, but each 128 bits by themselves, which takes less: of each eight elements the
// first four stand in y[i] and the others in y[i + 1].
template <int V>
static inline __attribute__((always_inline)) void unpack(const bf16* a, const bf16* b,
                                                         __m512bh* y) {
  if constexpr (V == 1) {
    y[0] = interleave_low(load_half(a), load_half(b));
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < V; i += 2) {
      const __m512i low = load_bits(a + i * W), high = load_bits(b + i * W);
      y[i] = (__m512bh)_mm512_unpacklo_epi16(low, high);
      y[i + 1] = (__m512bh)_mm512_unpackhi_epi16(low, high);
    }
  }
}
// Vector i of the V of what `to` has from before, in that order; and back.
template <class To>
static inline vf before_unpacked(To to, int i, int V) {
  if (V == 1) return to.before(0);
  const vf a = to.before((i & ~1) * W), b = to.before((i | 1) * W);
  const __m512i low = _mm512_set_epi32(27, 26, 25, 24, 19, 18, 17, 16, 11, 10, 9, 8, 3, 2, 1, 0);
  return _mm512_permutex2var_ps(a, i & 1 ? _mm512_add_epi32(low, _mm512_set1_epi32(4)) : low, b);
}
template <int V, class To>
static inline void put_unpacked(const vf* x, To to) {
  if (V == 1) return to.put(0, x[0]);
  const __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
#pragma GCC unroll 8
  for (int i = 0; i < V; i += 2) {
    to.put(i * W, _mm512_permutex2var_ps(x[i], low, x[i + 1]));
    to.put((i + 1) * W, _mm512_permutex2var_ps(x[i], high, x[i + 1]));
  }
}

alignas(64) static const bf16 NOTHING[64] = {};

// As entries.h's, of pairs[i / 2 * STEP] of weights
template <int V, int STEP, class To>
static inline __attribute__((always_inline)) void entry_weigh_block(const float* pairs,
                                                                    const bf16* x, int64_t stride,
                                                                    const int32_t* cols, int n,
                                                                    To to) {
  vf acc[V], more[V];
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) {
    acc[i] = before_unpacked(to, i, V);
    more[i] = set1(0.f);
  }
  int c = 0;
  __m512bh y[V], z[V];
  for (; c + 4 <= n; c += 4, pairs += 2 * STEP) {
    unpack<V>(x + cols[c] * stride, x + cols[c + 1] * stride, y);
    unpack<V>(x + cols[c + 2] * stride, x + cols[c + 3] * stride, z);
    const __m512bh w = each_pair(pairs), u = each_pair(pairs + STEP);
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) {
      acc[i] = dot(w, y[i], acc[i]);
      more[i] = dot(u, z[i], more[i]);
    }
  }
  for (; c < n; c += 2, pairs += STEP) {
    // Nothing stands beside the last of an odd number, not itself times 0: it may be infinite.
    const bool two = c + 1 < n;
    unpack<V>(x + cols[c] * stride, two ? x + cols[c + 1] * stride : NOTHING, y);
    const __m512bh w = each_pair(pairs, two ? ~0u : 0xffff);
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) acc[i] = dot(w, y[i], acc[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) acc[i] = acc[i] + more[i];
  put_unpacked<V>(acc, to);
}

// As entry_gradients.h's, of pairs[i / 2 * STEP] of weights for dq
template <int V, int STEP, class To>
static inline __attribute__((always_inline)) void entry_gradients_block(
    const float* p, const float* ds, const float* pairs, const bf16* k, int64_t k_row,
    const int32_t* cols, int n, int D, const Spread<V, bf16>& row, To dq) {
  vf acc[V];
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) acc[i] = before_unpacked(dq, i, V);
  __m512bh y[V];
  int c = 0;
  for (; c + 2 <= n; c += 2, pairs += STEP) {
    unpack<V>(k + cols[c] * k_row, k + cols[c + 1] * k_row, y);
    const __m512bh w = each_pair(pairs);
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) acc[i] = dot(w, y[i], acc[i]);
    row.add(ds[c * STEP], p[c * STEP], (int64_t)cols[c] * D);
    row.add(ds[(c + 1) * STEP], p[(c + 1) * STEP], (int64_t)cols[c + 1] * D);
  }
  if (c < n) {
    unpack<V>(k + cols[c] * k_row, NOTHING, y);
    const __m512bh w = each_pair(pairs, 0xffff);
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) acc[i] = dot(w, y[i], acc[i]);
    row.add(ds[c * STEP], p[c * STEP], (int64_t)cols[c] * D);
  }
  put_unpacked<V>(acc, dq);
}

template <int STEP>
static inline const float* weights_for(const bf16*, const float* e, int n, float* to) {
  if constexpr (STEP == GROUP)
    pair_columns(e, n, to);
  else
    for (int c = 0; c < n; c += W) store_float((bf16*)to + c, load(e + c));
  return to;
}

}  // namespace sb::SB_ISA

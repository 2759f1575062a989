// Single entries of a row: dot products along D with gathered rows of k and v.
#pragma once
#include "tile.h"

namespace sb::SB_ISA {

// q . x[cols[i]] for up to W columns; the lanes beyond n hold some of the others
template <int DC, class E>
static inline __attribute__((always_inline)) vf entry_scores(const E* q, const E* x,
                                                             int64_t stride, const int32_t* cols,
                                                             int n, int D) {
  D = dim<DC>(D);
  constexpr int STEP = LANES<E>;
  // vectors of q that stay in registers
  constexpr int HELD = DC && DC / STEP <= 8 ? DC / STEP : 1;
  words_of<E> held[HELD];
#pragma GCC unroll 8
  for (int i = 0; i < HELD; i++) held[i] = load_words(q + i * STEP);
  quad sums[W / 4];
#pragma GCC unroll 4
  for (int c = 0; c < W; c += 4) {
    if (c >= n) {
      sums[c / 4] = sums[0];
      continue;
    }
    const E* p[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) p[j] = x + cols[c + j < n ? c + j : c] * stride;
    vf acc[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) acc[j] = dot(held[0], load_words(p[j], D), set1(0.f));
#pragma GCC unroll 8
    for (int i = 1; i < HELD; i++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) acc[j] = dot(held[i], load_words(p[j] + i * STEP), acc[j]);
    for (int d = HELD * STEP; d < D; d += STEP) {
      const words_of<E> y = load_words(q + d);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) acc[j] = dot(y, load_words(p[j] + d, D - d), acc[j]);
    }
    sums[c / 4] = sums_of_4(acc[0], acc[1], acc[2], acc[3]);
  }
  return join(sums);
}

template <int V, bool FIRST, int STEP>
static inline __attribute__((always_inline)) void entry_weigh_block(const float* e, const float* x,
                                                                    int64_t stride,
                                                                    const int32_t* cols, int n,
                                                                    float* o, vf alpha) {
  vf even[V], odd[V];
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) {
    even[i] = FIRST ? set1(0.f) : load(o + i * W) * alpha;
    odd[i] = set1(0.f);
  }
  int c = 0;
  for (; c + 2 <= n; c += 2) {
    const float *p = x + cols[c] * stride, *q = x + cols[c + 1] * stride;
    vf w = set1(e[c * STEP]), u = set1(e[(c + 1) * STEP]);
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) {
      even[i] = fma(w, load(p + i * W), even[i]);
      odd[i] = fma(u, load(q + i * W), odd[i]);
    }
  }
  if (c < n) {
    const float* p = x + cols[c] * stride;
    vf w = set1(e[c * STEP]);
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) even[i] = fma(w, load(p + i * W), even[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) store(o + i * W, even[i] + odd[i]);
}

// What `entry_weigh` reads for weights e[n] of one row or, with a STEP of 16, e[n][16] of all
// rows: these in fp32, else what is made of them in `to`, which may be the same place.
template <int STEP>
static inline const float* weights_for(const float*, const float* e, int, float*) {
  return e;
}

// o = alpha * o + sum over i of e[i * STEP] * x[cols[i]]; FIRST: o is not read
template <int DC, bool FIRST, int STEP>
static inline void entry_weigh(const float* e, const float* x, int64_t stride, const int32_t* cols,
                               int n, int D, float* o, float alpha) {
  D = dim<DC>(D);
  const vf a = set1(alpha);
  int d = 0;
  for (; d + 4 * W <= D; d += 4 * W)
    entry_weigh_block<4, FIRST, STEP>(e, x + d, stride, cols, n, o + d, a);
  if constexpr (DC % (4 * W) != 0 || DC == 0)
    for (; d < D; d += W) entry_weigh_block<1, FIRST, STEP>(e, x + d, stride, cols, n, o + d, a);
}

template <int V, int STEP, class E>
static inline __attribute__((always_inline)) void entry_spread_block(const float* p,
                                                                     const float* ds,
                                                                     const int32_t* cols, int n,
                                                                     int D, const E* q, const E* g,
                                                                     float* dk, float* dv) {
  vf qx[V], gx[V];
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) {
    qx[i] = load_float(q + i * W);
    gx[i] = load_float(g + i * W);
  }
  for (int c = 0; c < n; c++) {
    float *dkp = dk + (int64_t)cols[c] * D, *dvp = dv + (int64_t)cols[c] * D;
    vf s = set1(ds[c * STEP]), w = set1(p[c * STEP]);
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) {
      store(dkp + i * W, fma(s, qx[i], load(dkp + i * W)));
      store(dvp + i * W, fma(w, gx[i], load(dvp + i * W)));
    }
  }
}

// dk[cols[i]] += ds[i * STEP] * q; dv[cols[i]] += p[i * STEP] * g
template <int DC, int STEP, class E>
static inline void entry_spread(const float* p, const float* ds, const int32_t* cols, int n, int D,
                                const E* q, const E* g, float* dk, float* dv) {
  D = dim<DC>(D);
  int d = 0;
  for (; d + 4 * W <= D; d += 4 * W)
    entry_spread_block<4, STEP>(p, ds, cols, n, D, q + d, g + d, dk + d, dv + d);
  if constexpr (DC % (4 * W) != 0 || DC == 0)
    for (; d < D; d += W)
      entry_spread_block<1, STEP>(p, ds, cols, n, D, q + d, g + d, dk + d, dv + d);
}

}  // namespace sb::SB_ISA

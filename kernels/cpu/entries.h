// Single entries of a row: dot products along D with gathered rows of k and v.
#pragma once
#include "tile.h"

namespace sb::SB_ISA {

// q . x[cols[i]] for up to W columns; the lanes beyond n hold some of the others
template <int DC>
static inline __attribute__((always_inline)) vf entry_scores(const float* q, const float* x,
                                                             int64_t stride, const int32_t* cols,
                                                             int n, int D) {
  D = dim<DC>(D);
  constexpr int HELD = DC && DC / W <= 8 ? DC / W : 1;  // vectors of q that stay in registers
  vf held[HELD];
#pragma GCC unroll 8
  for (int i = 0; i < HELD; i++) held[i] = load(q + i * W);
  quad sums[W / 4];
#pragma GCC unroll 4
  for (int c = 0; c < W; c += 4) {
    if (c >= n) {
      sums[c / 4] = sums[0];
      continue;
    }
    const float* p[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) p[j] = x + cols[c + j < n ? c + j : c] * stride;
    vf acc[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) acc[j] = held[0] * load(p[j]);
#pragma GCC unroll 8
    for (int i = 1; i < HELD; i++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) acc[j] = fma(held[i], load(p[j] + i * W), acc[j]);
    for (int d = HELD * W; d < D; d += W) {
      const vf y = load(q + d);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) acc[j] = fma(y, load(p[j] + d), acc[j]);
    }
    sums[c / 4] = sums_of_4(acc[0], acc[1], acc[2], acc[3]);
  }
  return join(sums);
}

template <int V, bool FIRST>
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
    vf w = set1(e[c]), u = set1(e[c + 1]);
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) {
      even[i] = fma(w, load(p + i * W), even[i]);
      odd[i] = fma(u, load(q + i * W), odd[i]);
    }
  }
  if (c < n) {
    const float* p = x + cols[c] * stride;
    vf w = set1(e[c]);
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) even[i] = fma(w, load(p + i * W), even[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) store(o + i * W, even[i] + odd[i]);
}

// o = alpha * o + sum over i of e[i] * x[cols[i]]; FIRST: o is not read
template <int DC, bool FIRST>
static inline void entry_weigh(const float* e, const float* x, int64_t stride, const int32_t* cols,
                               int n, int D, float* o, float alpha) {
  D = dim<DC>(D);
  const vf a = set1(alpha);
  int d = 0;
  for (; d + 4 * W <= D; d += 4 * W)
    entry_weigh_block<4, FIRST>(e, x + d, stride, cols, n, o + d, a);
  if constexpr (DC % (4 * W) != 0 || DC == 0)
    for (; d < D; d += W) entry_weigh_block<1, FIRST>(e, x + d, stride, cols, n, o + d, a);
}

template <int V>
static inline __attribute__((always_inline)) void entry_spread_block(
    const float* p, const float* ds, const float* k, int64_t stride, const int32_t* cols, int n,
    int D, const float* q, const float* g, float* dq, float* dk, float* dv) {
  vf acc[V], qx[V], gx[V];
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) {
    acc[i] = load(dq + i * W);
    qx[i] = load(q + i * W);
    gx[i] = load(g + i * W);
  }
  for (int c = 0; c < n; c++) {
    const float* kp = k + cols[c] * stride;
    float *dkp = dk + (int64_t)cols[c] * D, *dvp = dv + (int64_t)cols[c] * D;
    vf s = set1(ds[c]), w = set1(p[c]);
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) {
      acc[i] = fma(s, load(kp + i * W), acc[i]);
      store(dkp + i * W, fma(s, qx[i], load(dkp + i * W)));
      store(dvp + i * W, fma(w, gx[i], load(dvp + i * W)));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) store(dq + i * W, acc[i]);
}

// dq += sum ds[i] * k[cols[i]]; dk[cols[i]] += ds[i] * q; dv[cols[i]] += p[i] * g
template <int DC>
static inline void entry_spread(const float* p, const float* ds, const float* k, int64_t stride,
                                const int32_t* cols, int n, int D, const float* q, const float* g,
                                float* dq, float* dk, float* dv) {
  D = dim<DC>(D);
  int d = 0;
  for (; d + 4 * W <= D; d += 4 * W)
    entry_spread_block<4>(p, ds, k + d, stride, cols, n, D, q + d, g + d, dq + d, dk + d, dv + d);
  if constexpr (DC % (4 * W) != 0 || DC == 0)
    for (; d < D; d += W)
      entry_spread_block<1>(p, ds, k + d, stride, cols, n, D, q + d, g + d, dq + d, dk + d, dv + d);
}

}  // namespace sb::SB_ISA

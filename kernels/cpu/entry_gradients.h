// Single entries of a row in the backward pass. Both of an entry's products are made at once, and
// all three gradients, so that a row's list is gone through twice.
#pragma once
#include "entries.h"

namespace sb::SB_ISA {

// s[i] = q . k[cols[i]] and dp[i] = g . v[cols[i]] for n columns; up to three more may be written.
template <int DC, class E>
static inline __attribute__((always_inline)) void entry_products(const E* q, const E* g,
                                                                 const E* k, int64_t k_row,
                                                                 const E* v, int64_t v_row,
                                                                 const int32_t* cols, int n, int D,
                                                                 float* s, float* dp) {
  const Held<DC, E> by_k(q), by_v(g);
  for (; n >= 4; n -= 4, cols += 4, s += 4, dp += 4) {
    store_scores<4>(q, by_k, k, k_row, cols, D, s);
    store_scores<4>(g, by_v, v, v_row, cols, D, dp);
  }
  switch (n) {
    case 3:
      store_scores<3>(q, by_k, k, k_row, cols, D, s);
      return store_scores<3>(g, by_v, v, v_row, cols, D, dp);
    case 2:
      store_scores<2>(q, by_k, k, k_row, cols, D, s);
      return store_scores<2>(g, by_v, v, v_row, cols, D, dp);
    case 1:
      store_scores<1>(q, by_k, k, k_row, cols, D, s);
      return store_scores<1>(g, by_v, v, v_row, cols, D, dp);
  }
}

// V vectors of a row and of what is added to each of its columns.
template <int V, class E>
struct Spread {
  vf q[V], g[V];
  float *dk, *dv;

  inline __attribute__((always_inline)) Spread(const E* q_row, const E* g_row, float* to_k,
                                               float* to_v)
      : dk(to_k), dv(to_v) {
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) q[i] = load_float(q_row + i * W), g[i] = load_float(g_row + i * W);
  }
  // dk[at] += s * q and dv[at] += w * g
  inline __attribute__((always_inline)) void add(float s, float w, int64_t at) const {
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) store(dk + at + i * W, fma(q[i], s, load(dk + at + i * W)));
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) store(dv + at + i * W, fma(g[i], w, load(dv + at + i * W)));
  }
};

template <int V, int STEP, class To>
static inline __attribute__((always_inline)) void entry_gradients_block(
    const float* p, const float* ds, const float*, const float* k, int64_t k_row,
    const int32_t* cols, int n, int D, const Spread<V, float>& row, To dq) {
  vf even[V], odd[V];
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) even[i] = dq.before(i * W), odd[i] = set1(0.f);
  int c = 0;
  for (; c + 2 <= n; c += 2) {
    const float *x = k + cols[c] * k_row, *y = k + cols[c + 1] * k_row;
    const float s = ds[c * STEP], t = ds[(c + 1) * STEP];
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) {
      even[i] = fma(load(x + i * W), s, even[i]);
      odd[i] = fma(load(y + i * W), t, odd[i]);
    }
    row.add(s, p[c * STEP], (int64_t)cols[c] * D);
    row.add(t, p[(c + 1) * STEP], (int64_t)cols[c + 1] * D);
  }
  if (c < n) {
    const float *x = k + cols[c] * k_row, s = ds[c * STEP];
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) even[i] = fma(load(x + i * W), s, even[i]);
    row.add(s, p[c * STEP], (int64_t)cols[c] * D);
  }
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) dq.put(i * W, even[i] + odd[i]);
}

// Of single entries of a row with p[i * STEP] and ds[i * STEP]: the sum of ds k to where `dq`
// says, dk[cols[i]] += ds q and dv[cols[i]] += p g. `weights` is what `weights_for` made of ds.
template <int DC, int STEP, class E, class To>
static inline void entry_gradients(const float* p, const float* ds, const float* weights,
                                   const E* k, int64_t k_row, const int32_t* cols, int n, int D,
                                   const E* q, const E* g, To dq, float* dk, float* dv) {
  D = dim<DC>(D);
  int d = 0;
  for (; d + 4 * W <= D; d += 4 * W)
    entry_gradients_block<4, STEP>(p, ds, weights, k + d, k_row, cols, n, D,
                                   Spread<4, E>(q + d, g + d, dk + d, dv + d), dq.at(d));
  if constexpr (DC % (4 * W) != 0 || DC == 0) {
    for (; d + 2 * W <= D; d += 2 * W)
      entry_gradients_block<2, STEP>(p, ds, weights, k + d, k_row, cols, n, D,
                                     Spread<2, E>(q + d, g + d, dk + d, dv + d), dq.at(d));
    if (d < D)
      entry_gradients_block<1, STEP>(p, ds, weights, k + d, k_row, cols, n, D,
                                     Spread<1, E>(q + d, g + d, dk + d, dv + d), dq.at(d));
  }
}

}  // namespace sb::SB_ISA

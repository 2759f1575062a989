// Single entries of a row: dot products along D with gathered rows of k and v.
#pragma once
#include "tile.h"

namespace sb::SB_ISA {

// Vectors of a row of q that stay in registers.
template <int DC, class E>
struct Held {
  static constexpr int STEP = LANES<E>;
  static constexpr int COUNT = DC && DC / STEP <= 8 ? DC / STEP : 1;
  words_of<E> x[COUNT];

  explicit Held(const E* q) {
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; i++) x[i] = load_words(q + i * STEP);
  }
};

// q . p[j] for N rows, 1 to 4; the lanes beyond repeat some
template <int N, int DC, class E>
static inline __attribute__((always_inline)) quad products_of(const E* q, const Held<DC, E>& held,
                                                              const E* const* p, int D) {
  constexpr int STEP = LANES<E>, COUNT = Held<DC, E>::COUNT;
  vf acc[N];
#pragma GCC unroll 4
  for (int j = 0; j < N; j++) acc[j] = dot(held.x[0], load_words(p[j], D), set1(0.f));
#pragma GCC unroll 8
  for (int i = 1; i < COUNT; i++)
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) acc[j] = dot(held.x[i], load_words(p[j] + i * STEP), acc[j]);
  for (int d = COUNT * STEP; d < D; d += STEP) {
    const words_of<E> y = load_words(q + d);
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) acc[j] = dot(y, load_words(p[j] + d, D - d), acc[j]);
  }
  return sums_of_4(acc[0], acc[1 % N], acc[2 % N], acc[3 % N]);
}

// q . x[cols[i]] for up to W columns; the lanes beyond n hold some of the others
template <int DC, class E>
static inline __attribute__((always_inline)) vf entry_scores(const E* q, const E* x,
                                                             int64_t stride, const int32_t* cols,
                                                             int n, int D) {
  const Held<DC, E> held(q);
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
    sums[c / 4] = products_of<4>(q, held, p, dim<DC>(D));
  }
  return join(sums);
}

// The same for N columns, to s[4].
template <int N, int DC, class E>
static inline __attribute__((always_inline)) void store_scores(const E* q, const Held<DC, E>& held,
                                                               const E* x, int64_t stride,
                                                               const int32_t* cols, int D,
                                                               float* s) {
  const E* p[N];
#pragma GCC unroll 4
  for (int j = 0; j < N; j++) p[j] = x + cols[j] * stride;
  store_quad(s, products_of<N>(q, held, p, dim<DC>(D)));
}
// s[i] = q . x[cols[i]] for n columns; up to three more may be written. Where n is small, a vector
// of them would have to wait for each of its parts.
template <int DC, class E>
static inline __attribute__((always_inline)) void entry_scores(const E* q, const E* x,
                                                               int64_t stride, const int32_t* cols,
                                                               int n, int D, float* s) {
  const Held<DC, E> held(q);
  for (; n >= 4; n -= 4, cols += 4, s += 4) store_scores<4>(q, held, x, stride, cols, D, s);
  switch (n) {
    case 3: return store_scores<3>(q, held, x, stride, cols, D, s);
    case 2: return store_scores<2>(q, held, x, stride, cols, D, s);
    case 1: return store_scores<1>(q, held, x, stride, cols, D, s);
  }
}

// Where `entry_weigh` begins and what it makes of its sums, d0 elements on. To sums of before,
// which count alpha times;
struct AddTo {
  float* o;
  vf alpha;
  AddTo at(int d0) const { return {o + d0, alpha}; }
  vf before(int d) const { return load(o + d) * alpha; }
  void put(int d, vf x) const { store(o + d, x); }
};
// as they are;
struct Begin {
  float* o;
  Begin at(int d0) const { return {o + d0}; }
  vf before(int) const { return set1(0.f); }
  void put(int d, vf x) const { store(o + d, x); }
};
// times a factor as a row of a call.
template <class E>
struct Finish {
  E* o;
  vf factor;
  Finish at(int d0) const { return {o + d0, factor}; }
  vf before(int) const { return set1(0.f); }
  void put(int d, vf x) const { store_float(o + d, x * factor); }
};

template <int V, int STEP, class To>
static inline __attribute__((always_inline)) void entry_weigh_block(const float* e, const float* x,
                                                                    int64_t stride,
                                                                    const int32_t* cols, int n,
                                                                    To to) {
  vf even[V], odd[V];
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) {
    even[i] = to.before(i * W);
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
  for (int i = 0; i < V; i++) to.put(i * W, even[i] + odd[i]);
}

// What `entry_weigh` reads for weights e[n] of one row or, with a STEP of 16, e[n][16] of all
// rows: these in fp32, else what is made of them in `to`, which may be the same place.
template <int STEP>
static inline const float* weights_for(const float*, const float* e, int, float*) {
  return e;
}

// The sum over i of e[i * STEP] * x[cols[i]], to where `to` says; `weights` is what `weights_for`
// made of e.
template <int DC, int STEP, class E, class To>
static inline void entry_weigh(const float* weights, const E* x, int64_t stride,
                               const int32_t* cols, int n, int D, To to) {
  D = dim<DC>(D);
  int d = 0;
  for (; d + 4 * W <= D; d += 4 * W)
    entry_weigh_block<4, STEP>(weights, x + d, stride, cols, n, to.at(d));
  if constexpr (DC % (4 * W) != 0 || DC == 0) {
    for (; d + 2 * W <= D; d += 2 * W)
      entry_weigh_block<2, STEP>(weights, x + d, stride, cols, n, to.at(d));
    if (d < D) entry_weigh_block<1, STEP>(weights, x + d, stride, cols, n, to.at(d));
  }
}

}  // namespace sb::SB_ISA

// Columns of a tile: products of 16 rows with gathered rows of k and v.
//
// Scores stand column by column, s[c][16]; rows of q, o and gradients are padded to D, a multiple
// of 16. DC is D where the compiler should know it, else 0. E is the type of q, k and v.
#pragma once
#include "element.h"
#include "plan.h"

namespace sb::SB_ISA {

constexpr int GV = GROUP / W;  // vectors of a group's rows
constexpr int CHUNK = 128;     // columns of a tile whose scores are held at once
constexpr int ENTRIES = 512;   // single entries of a row likewise
constexpr int FEW = 64;        // single entries of each row that all rows go through together
static_assert(2 * FEW <= CHUNK && GROUP * FEW >= ENTRIES + 64);  // so memory is shared
#if defined(__AVX512F__)
constexpr int COLUMNS = 12;       // of a block of scores
constexpr int ACCUMULATORS = 16;  // of a block of weighted sums
#elif defined(__AVX2__)
constexpr int COLUMNS = 4;
constexpr int ACCUMULATORS = 8;
#else
constexpr int COLUMNS = 4;
constexpr int ACCUMULATORS = 16;
#endif

template <int DC>
static inline int dim(int D) {
  return DC ? DC : D;
}

// s[c][16] = sum over d of rows[d][16] * x[cols[c]][d], for C columns; d counts words
template <int DC, int C, class E>
static inline __attribute__((always_inline)) void score_block(const E* rows, const E* x,
                                                              int64_t stride, const int32_t* cols,
                                                              int D, float* s) {
  vf acc[C][GV];
  const E* p[C];
#pragma GCC unroll 16
  for (int c = 0; c < C; c++) {
    p[c] = x + cols[c] * stride;
#pragma GCC unroll 4
    for (int i = 0; i < GV; i++) acc[c][i] = set1(0.f);
  }
  const int depth = dim<DC>(D) / PER_WORD<E>;
#pragma GCC unroll 8
  for (int d = 0; d < depth; d++) {
    words_of<E> r[GV];
#pragma GCC unroll 4
    for (int i = 0; i < GV; i++) r[i] = load_words(rows + (d * GROUP + i * W) * PER_WORD<E>);
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) {
      const auto y = each_word(p[c] + d * PER_WORD<E>);
#pragma GCC unroll 4
      for (int i = 0; i < GV; i++) acc[c][i] = dot(r[i], y, acc[c][i]);
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < C; c++)
#pragma GCC unroll 4
    for (int i = 0; i < GV; i++) store(s + c * GROUP + i * W, acc[c][i]);
}

template <int DC, class E>
static void scores(const E* rows, const E* x, int64_t stride, const int32_t* cols, int n, int D,
                   float* s) {
  int c = 0;
  for (; c + COLUMNS <= n; c += COLUMNS)
    score_block<DC, COLUMNS>(rows, x, stride, cols + c, D, s + c * GROUP);
  if constexpr (COLUMNS > 8)
    for (; c + 8 <= n; c += 8) score_block<DC, 8>(rows, x, stride, cols + c, D, s + c * GROUP);
  if constexpr (COLUMNS > 4)
    for (; c + 4 <= n; c += 4) score_block<DC, 4>(rows, x, stride, cols + c, D, s + c * GROUP);
  if (c + 2 <= n) {
    score_block<DC, 2>(rows, x, stride, cols + c, D, s + c * GROUP);
    c += 2;
  }
  if (c < n) score_block<DC, 1>(rows, x, stride, cols + c, D, s + c * GROUP);
}

// o[r][d0 ..] (+)= sum over c of s[c][r] * x[cols[c]][d0 ..], R rows and V vectors at a time
template <int R, int V, bool FIRST>
static inline __attribute__((always_inline)) void weigh_block(const float* s, const float* x,
                                                              int64_t stride, const int32_t* cols,
                                                              int n, int D, float* o) {
  vf acc[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) acc[r][i] = FIRST ? set1(0.f) : load(o + r * D + i * W);
  for (int c = 0; c < n; c++, s += GROUP) {
    const float* p = x + cols[c] * stride;
    vf y[V];
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) y[i] = load(p + i * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const float w = s[r];
#pragma GCC unroll 16
      for (int i = 0; i < V; i++) acc[r][i] = fma(y[i], w, acc[r][i]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) store(o + r * D + i * W, acc[r][i]);
}

template <int V, bool FIRST, class E>
static inline void weigh_vectors(const float* s, const E* x, int64_t stride, const int32_t* cols,
                                 int n, int D, float* o, int live) {
  constexpr int R = ACCUMULATORS / V > GROUP ? GROUP : ACCUMULATORS / V;
  for (int r = 0; r < live; r += R)  // rows beyond `live` have scores, too
    weigh_block<R, V, FIRST>(s + r, x, stride, cols, n, D, o + r * D);
}

// o[r] (+)= sum over c of s[c][r] * x[cols[c]], for the first `live` rows at least
template <int DC, bool FIRST>
static void weigh(const float* s, const float* x, int64_t stride, const int32_t* cols, int n,
                  int D, float* o, int live) {
  D = dim<DC>(D);
  int d = 0;
  for (; d + 4 * W <= D; d += 4 * W)
    weigh_vectors<4, FIRST>(s, x + d, stride, cols, n, D, o + d, live);
  if constexpr (DC % (4 * W) != 0 || DC == 0) {
    for (; d + 2 * W <= D; d += 2 * W)
      weigh_vectors<2, FIRST>(s, x + d, stride, cols, n, D, o + d, live);
    if (d < D) weigh_vectors<1, FIRST>(s, x + d, stride, cols, n, D, o + d, live);
  }
}

// out[cols[c]][d0 ..] += sum over rows r of s[c][r] * x[r][d0 ..], C columns at a time
template <int C, int V>
static inline __attribute__((always_inline)) void spread_block(const float* s, const float* x,
                                                               const int32_t* cols, int D,
                                                               float* out, int live) {
  vf acc[C][V];
#pragma GCC unroll 16
  for (int c = 0; c < C; c++)
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) acc[c][i] = load(out + (int64_t)cols[c] * D + i * W);
  for (int r = 0; r < live; r++) {
    vf y[V];
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) y[i] = load(x + r * D + i * W);
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) {
      const float w = s[c * GROUP + r];
#pragma GCC unroll 16
      for (int i = 0; i < V; i++) acc[c][i] = fma(y[i], w, acc[c][i]);
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < C; c++)
#pragma GCC unroll 16
    for (int i = 0; i < V; i++) store(out + (int64_t)cols[c] * D + i * W, acc[c][i]);
}

template <int V, class E>
static inline void spread_vectors(const E* s, const E* x, const int32_t* cols, int n, int D,
                                  float* out, int live) {
  constexpr int C = ACCUMULATORS / V > 8 ? 8 : ACCUMULATORS / V;
  int c = 0;
  for (; c + C <= n; c += C) spread_block<C, V>(s + c * GROUP, x, cols + c, D, out, live);
  for (; c < n; c++) spread_block<1, V>(s + c * GROUP, x, cols + c, D, out, live);
}

// out[cols[c]] += sum over rows r < live of s[c][r] * x[r]: gradients of keys and values.
// The columns are different ones.
template <int DC>
static void spread(const float* s, const float* x, const int32_t* cols, int n, int D, float* out,
                   int live) {
  D = dim<DC>(D);
  int d = 0;
  for (; d + 4 * W <= D; d += 4 * W) spread_vectors<4>(s, x + d, cols, n, D, out + d, live);
  if constexpr (DC % (4 * W) != 0 || DC == 0) {
    for (; d + 2 * W <= D; d += 2 * W) spread_vectors<2>(s, x + d, cols, n, D, out + d, live);
    if (d < D) spread_vectors<1>(s, x + d, cols, n, D, out + d, live);
  }
}

}  // namespace sb::SB_ISA

// The forward pass: o and LSE of groups of rows, and the merge of partial results.
//
// Scores are in base 2: q . k times scale * log2(e). A row's maximum m, its sum l of
// 2^(s - m) and its o = sum of 2^(s - m) v are brought up to date piece by piece.
#pragma once
#include "ahead.h"

namespace sb::SB_ISA {

// Rows of q: in Work, or those of the call. To ask for one prefetches one of the next group.
template <class E, int DC, bool PLAIN>
struct Queries {
  Ahead<PLAIN ? DC : 0, E> ahead;
  const E* rows[GROUP];

  Queries(const Task& t, const Group<E>& g, bool in_place, Work<E>& w) : ahead(t, g.index) {
    const SbCall& c = *t.call;
    for (int r = 0; r < g.live; r++) {
      const char* row = row_of(c.q, bytes_of(c.dtype), t.b, t.h, g.rows[r]);
      rows[r] = in_place ? (const E*)row : w.q + r * g.size;
      if (!in_place) read_row<DC, PLAIN>(c, row, g.size, w.q + r * g.size);
    }
  }
  inline __attribute__((always_inline)) const E* operator()(int r) {
    ahead.prefetch_q(1);
    return rows[r];
  }
};

// Rows that have seen nothing yet.
template <class E>
static inline void begin(Work<E>& w) {
  for (int r = 0; r < GROUP; r++) w.m[r] = -INF, w.l[r] = 0.f;
}

// Products of n columns, w.s[c][16], become probabilities, 2^(s - m); m and l are brought up to
// date, and w.a is by how much what was there before counts now. Bit r of words[c] says whether
// row r attends to its column c.
template <class E>
static inline void to_probabilities(Work<E>& w, const uint16_t* words, int n, float factor) {
  vf most[GV], base[GV], l[GV];
  for (int i = 0; i < GV; i++) most[i] = load(w.m + i * W);
  for (int c = 0; c < n; c++)
#pragma GCC unroll 4
    for (int i = 0; i < GV; i++) {
      float* s = w.s + c * GROUP + i * W;
      vf x = keep(load(s) * set1(factor), words[c], i * W, set1(-INF));
      most[i] = max(most[i], x);
      store(s, x);
    }
  for (int i = 0; i < GV; i++) {
    base[i] = max(most[i], set1(LEAST));
    vf a = exp2(load(w.m + i * W) - base[i]);
    l[i] = load(w.l + i * W) * a;
    store(w.a + i * W, a);
  }
  for (int c = 0; c < n; c++)
#pragma GCC unroll 4
    for (int i = 0; i < GV; i++) {
      float* s = w.s + c * GROUP + i * W;
      vf x = exp2(load(s) - base[i]);
      l[i] = l[i] + x;
      store(s, x);
    }
  for (int i = 0; i < GV; i++) store(w.m + i * W, most[i]), store(w.l + i * W, l[i]);
}

// Probabilities of column c of w.s that dropout does not keep become 0.
template <class E>
static inline void drop(Work<E>& w, int c, uint32_t kept) {
  for (int i = 0; i < GV; i++) {
    float* s = w.s + c * GROUP + i * W;
    store(s, keep(load(s), kept, i * W, set1(0.f)));
  }
}

// The tile of a group: m, l and o of its rows.
template <int DC, class E, class Q>
static void attend_tile(const Group<E>& g, Work<E>& w, Q& q, float factor) {
  const int step = g.has_entries() ? 2 : 4;  // rows of the next group to prefetch at each turn
  clear(w.q + g.live * g.size, (GROUP - g.live) * g.size);
  q.ahead.prefetch_rows(step);
  transpose_words(w.q, g.size, w.qt);
  q.ahead.prefetch_rows(step);
  Columns tile = g.tile();
  const int32_t* cols;
  const uint16_t* words;
  bool first = true;
  while (const int n = tile.next(w.cols, w.words, CHUNK, cols, words)) {
    scores<DC>(w.qt, g.k, g.k_row, cols, n, g.D, w.s);
    q.ahead.prefetch_rows(step);
    to_probabilities(w, words, n, factor);
    if (g.drops)
      for (int c = 0; c < n; c++) drop(w, c, g.kept(w, cols[c]));
    q.ahead.prefetch_rows(step);
    if (first) {
      weigh<DC, true>(w.s, g.v, g.v_row, cols, n, g.D, w.o, g.live);
    } else {
      for (int r = 0; r < g.live; r++)
        for (int d = 0; d < g.D; d += W) {
          float* o = w.o + r * g.D + d;
          store(o, load(o) * set1(w.a[r]));
        }
      weigh<DC, false>(w.s, g.v, g.v_row, cols, n, g.D, w.o, g.live);
    }
    first = false;
  }
  if (first) clear(w.o, GROUP * g.D);
}

// The single entries of all rows together, where each has few: m and l brought up to date, and
// the sums of row r, to where to(r) says. As in a tile, but column c is another one for each row;
// so the steps of one row need not wait for each other, and the rows share those from scores to
// probabilities.
template <int DC, class E, class Q, class To>
static void attend_few(const Group<E>& g, Work<E>& w, Q& q, float factor, To to) {
  const FewEntries few(g, w);
  few_scores<DC>(few, g, q, g.k, g.k_row, w.ds, w.s);
  to_probabilities(w, few.words, few.longest, factor);
  if (g.drops)
    for (int c = 0; c < few.longest; c++) drop(w, c, g.kept(w, few.listed + c * GROUP));
  const float* weights = weights_for<GROUP>(g.v, w.s, few.longest, w.s);
  for (int r = 0; r < g.live; r++) {
    q.ahead.prefetch_kv(1);
    entry_weigh<DC, GROUP>(weights + r, g.v, g.v_row, few.cols[r], few.count[r], g.D, to(r));
  }
}

// Some single entries of row r: m, l and o brought up to date, or begun if FIRST.
template <int DC, bool FIRST, class E>
static inline void attend_entries(const Group<E>& g, Work<E>& w, const E* q, float factor, int r,
                                  const int32_t* cols, int n) {
  vf most = set1(-INF), last = most;
  for (int i = 0; i < n; i += W) {
    if (g.in_place) prefetch_columns(g.k, g.k_row, cols, i + W, n, g.D);
    last = entry_scores<DC>(q, g.k, g.k_row, cols + i, n - i, g.D) * set1(factor);
    if (i + W > n) last = keep(last, (1u << (n - i)) - 1, 0, set1(-INF));
    most = max(most, last);
    if (n > W) store(w.e + i, last);
  }
  const float m = FIRST ? -INF : w.m[r], l = FIRST ? 0.f : w.l[r];
  const float now = std::max(m, max_of(most)), base = std::max(now, LEAST);
  vf sum = set1(0.f);
  for (int i = 0; i < n; i += W) {
    vf x = exp2((n > W ? load(w.e + i) : last) - set1(base));
    sum = sum + x;
    store(w.e + i, x);
  }
  if (g.drops) {
    alignas(64) int32_t last[W] = {};
    for (int i = 0; i < n; i += W) {
      const int32_t* from = cols + i;
      if (i + W > n) from = (const int32_t*)memcpy(last, from, (n - i) * sizeof(int32_t));
      store(w.e + i, keep(load(w.e + i), g.kept_of_row(r, from), 0, set1(0.f)));
    }
  }
  const float alpha = l == 0.f ? 0.f : exp2f(m - base);
  w.l[r] = l * alpha + sum_of(sum);
  w.m[r] = now;
  const float* weights = weights_for<1>(g.v, w.e, n, w.e);
  if constexpr (FIRST)
    entry_weigh<DC, 1>(weights, g.v, g.v_row, cols, n, g.D, Begin{w.o + r * g.D});
  else
    entry_weigh<DC, 1>(weights, g.v, g.v_row, cols, n, g.D, AddTo{w.o + r * g.D, set1(alpha)});
}

// All of a row by itself: its single entries and, if FIRST, its columns of the tile before.
template <int DC, bool FIRST, class E>
static void attend_row(const Group<E>& g, Work<E>& w, const E* q, float factor, int r) {
  bool first = FIRST;
  auto attend = [&](const int32_t* cols, int n) {
    if (first)
      attend_entries<DC, true>(g, w, q, factor, r, cols, n);
    else
      attend_entries<DC, false>(g, w, q, factor, r, cols, n);
    first = false;
  };
  if (FIRST && g.has_tile()) {
    Columns tile = g.tile();
    while (const int n = tile.next_of_row(w, r)) attend(w.cols, n);
  }
  Columns entries = g.entries(r);
  const int32_t* cols;
  const uint16_t* none;
  while (const int n = entries.next(w.cols, w.words, ENTRIES, cols, none)) attend(cols, n);
  if (first) clear(w.o + r * g.D, g.D);
}

// LSE of a group's rows, to those of its head.
template <class E>
static inline void write_lse(const Group<E>& g, const Work<E>& w, float* lse) {
  alignas(64) float found[GROUP];
  for (int i = 0; i < GROUP; i += W)
    store(found + i, (load(w.m + i) + log2(load(w.l + i))) * set1(LN2));
  for (int r = 0; r < g.live; r++) lse[g.rows[r]] = w.l[r] == 0.f ? -INF : found[r];
}

// All of a group, its sums in w.o.
template <int DC, class E, class Q>
static void attend(const Group<E>& g, Work<E>& w, Q& q, float factor) {
  bool begun = false;
  if (g.has_tile()) {
    attend_tile<DC>(g, w, q, factor);
    // A row that does not attend to a column has a probability of 0 for it, but 0 * NaN is NaN.
    // Then each row goes by itself, with the columns that are its own.
    begun = are_finite(w.o, g.live, g.D);
    if (!begun) begin(w);
  }
  if (!begun && (g.has_tile() || !g.has_few()))
    for (int r = 0; r < g.live; r++, q.ahead.prefetch_kv(1))
      attend_row<DC, true>(g, w, q(r), factor, r);
  else if (!begun)
    attend_few<DC>(g, w, q, factor, [&](int r) { return Begin{w.o + r * g.D}; });
  else if (g.has_entries() && g.has_few())
    attend_few<DC>(g, w, q, factor, [&](int r) { return AddTo{w.o + r * g.D, set1(w.a[r])}; });
  else if (g.has_entries())
    for (int r = 0; r < g.live; r++, q.ahead.prefetch_kv(1))
      attend_row<DC, false>(g, w, q(r), factor, r);
}

template <class E, int DC, bool PLAIN>
static void forward_group(const Task& t, int64_t index, Work<E>& w) {
  const SbCall& c = *t.call;
  const Group<E> g(t, index);
  const int64_t size = bytes_of(c.dtype);
  const float factor = score_factor(c);
  const bool merges = g.plan.slot[index] >= 0;
  // Only a tile needs copies of q.
  Queries<E, DC, PLAIN> q(t, g, PLAIN && DC && !g.has_tile(), w);
  if (g.drops) g.list_rows(w);
  auto o_row = [&](int r) { return row_of(c.o, size, t.b, t.h, g.rows[r]); };

  begin(w);
  const bool finishes = PLAIN && !merges && !g.has_tile() && g.has_few();
  if constexpr (PLAIN)
    if (finishes)
      attend_few<DC>(g, w, q, factor,
                     [&](int r) { return Finish<E>{(E*)o_row(r), set1(g.inverse(w.l[r]))}; });
  if (!finishes) attend<DC>(g, w, q, factor);
  if (merges) {
    const int64_t floats = slot_floats(c.D);
    float* to = t.slots + g.plan.slot[index] * floats;
    for (int r = 0; r < g.live; r++, to += floats) {
      memcpy(to, w.o + r * g.D, g.D * sizeof(float));
      to[g.D] = w.m[r], to[g.D + 1] = w.l[r];
    }
  } else {
    for (int r = 0; r < g.live && !finishes; r++)
      write_row<E, DC, PLAIN>(c, o_row(r), g.inverse(w.l[r]), w.o + r * g.D);
    if (c.lse) write_lse(g, w, c.lse + (t.b * c.H + t.h) * c.N);
  }
  q.ahead.prefetch_rows(GROUP);
}

template <class E, int DC, bool PLAIN>
static void forward(const Task& t, int64_t from, int64_t to, void* memory) {
  Work<E> w(memory, t.call->D);
  for (int64_t g = from; g < to; g++) forward_group<E, DC, PLAIN>(t, g, w);
}

// o and LSE of the rows that several groups have.
static void merge(const Task& t) {
  const SbCall& c = *t.call;
  const HeadPlan& p = *t.plan;
  const int64_t floats = slot_floats(c.D);
  const int D = (int)padded(c.D);
  float* lse = c.lse ? c.lse + (t.b * c.H + t.h) * c.N : nullptr;
  const float factor = c.dropout ? (float)c.dropout_factor : 1.f;
  alignas(64) float o[256];
  for (int64_t i = 0; i < p.merged; i++) {
    const int32_t *begin = p.merged_slots + p.merged_start[i],
                  *end = p.merged_slots + p.merged_start[i + 1];
    float m = -INF, l = 0.f;
    for (const int32_t* s = begin; s < end; s++) m = std::max(m, t.slots[*s * floats + D]);
    const float base = std::max(m, LEAST);
    clear(o, D);
    for (const int32_t* s = begin; s < end; s++) {
      const float* part = t.slots + *s * floats;
      if (part[D + 1] == 0.f) continue;  // it attended to nothing
      const float a = exp2f(part[D] - base);
      l += a * part[D + 1];
      for (int d = 0; d < D; d += W) store(o + d, fma(set1(a), load(part + d), load(o + d)));
    }
    const int32_t row = p.merged_rows[i];
    store_row((void*)row_of(c.o, bytes_of(c.dtype), t.b, t.h, row), c.dtype, (int)c.D, o,
              l == 0.f ? 0.f : factor / l);
    if (lse) lse[row] = l == 0.f ? -INF : (m + log2f(l)) * LN2;
  }
}

}  // namespace sb::SB_ISA

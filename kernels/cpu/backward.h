// The backward pass of groups of rows: dq of each row, and what it adds to dk and dv.
//
// With p = 2^(s - LSE), P the kept p times 1 / (1 - dropout), dp = g . v and
// delta = g . o - grad_lse: ds = p * (kept dp - delta) * scale; dq += ds k, dk += ds q, dv += P g.
#pragma once
#include "entry_gradients.h"
#include "group.h"

namespace sb::SB_ISA {

// What a group's rows bring along: LSE in base 2, and delta.
struct RowTerms {
  alignas(64) float lse[GROUP];
  alignas(64) float delta[GROUP];
  float score;  // factor of q . k in base 2
  float scale;
};

// The group that runs next. What it reads of a call is fetched row by row meanwhile: all at once
// would keep the loads of the one that runs waiting.
template <int DC>
struct NextGroup {
  const Task& task;
  int64_t h;  // its head, or H if there is none
  const int32_t* rows;
  int at = 0;

  inline __attribute__((always_inline)) void fetch(int count) {
    const SbCall& c = *task.call;
    if (h == c.H) return;
    const int64_t size = bytes_of(c.dtype);
    for (; count > 0 && at < GROUP && rows[at] >= 0; count--, at++)
      for (const SbTensor* x : {&c.q, &c.grad_o, &c.o})
        prefetch_row<DC>(c, row_of(*x, size, task.b, h, rows[at]));
  }
};

// 2^(s * factor - lse), at most 1: of large scores rounding alone may leave more than any number.
static inline vf probability(vf s, vf factor, vf lse) {
  return exp2(not_above(fma(s, factor, set1(0.f) - lse), 0.f));
}

// Products of n columns with q and with g, s and ds [n][16], become P and ds. Bit r of words[c]
// says whether row r attends to its column c, and kept(c) which rows keep theirs in dropout's
// draw.
template <class E, class F>
static inline __attribute__((always_inline)) void differentiate(const Group<E>& g,
                                                                const RowTerms& t,
                                                                const uint16_t* words, int n,
                                                                float* s, float* ds, F kept) {
  const vf zero = set1(0.f), score = set1(t.score), scale = set1(t.scale);
  for (int c = 0; c < n; c++) {
    const uint32_t keeps = g.drops ? kept(c) : 0;
#pragma GCC unroll 4
    for (int i = 0; i < GV; i++, s += W, ds += W) {
      vf p = probability(load(s), score, load(t.lse + i * W));
      vf dp = load(ds);
      vf weight = p;
      if (g.drops) {
        weight = keep(p * set1(g.factor), keeps, i * W, zero);
        dp = keep(dp * set1(g.factor), keeps, i * W, zero);
      }
      // Selected and not multiplied by 0: what stands elsewhere may not be finite.
      store(s, keep(weight, words[c], i * W, zero));
      store(ds, keep(p * (dp - load(t.delta + i * W)) * scale, words[c], i * W, zero));
    }
  }
}

// The tile of a group: dq of its rows, in w.o, and their parts of dk and dv.
template <int DC, class E>
static void differentiate_tile(const Group<E>& g, Work<E>& w, const RowTerms& t, float* dk,
                               float* dv) {
  transpose_words(w.q, g.size, w.qt);
  transpose_words(w.g, g.size, w.gt);
  Columns tile = g.tile();
  const int32_t* cols;
  const uint16_t* words;
  bool first = true;
  while (const int n = tile.next(w.cols, w.words, CHUNK, cols, words)) {
    scores<DC>(w.qt, g.k, g.k_row, cols, n, g.D, w.s);
    scores<DC>(w.gt, g.v, g.v_row, cols, n, g.D, w.ds);
    differentiate(g, t, words, n, w.s, w.ds, [&](int c) { return g.kept(w, cols[c]); });
    if (first)
      weigh<DC, true>(w.ds, g.k, g.k_row, cols, n, g.D, w.o, g.live);
    else
      weigh<DC, false>(w.ds, g.k, g.k_row, cols, n, g.D, w.o, g.live);
    spread<DC>(w.ds, w.q, cols, n, g.D, dk, g.live);
    spread<DC>(w.s, w.g, cols, n, g.D, dv, g.live);
    first = false;
  }
  if (first) clear(w.o, GROUP * g.D);
}

// The single entries of all rows together, where each has few: see attend_few. dq is begun if
// FIRST.
template <int DC, bool FIRST, class E>
static void differentiate_few(const Group<E>& g, Work<E>& w, const RowTerms& t,
                              NextGroup<DC>& next, float* dk, float* dv) {
  const FewEntries few(g, w);
  constexpr int HALF = GROUP * FEW;
  float *p = w.s, *ds = p + HALF, *by_row = w.ds;
  for (int r = 0; r < g.live; r++) {
    entry_products<DC>(w.q + r * g.size, w.g + r * g.size, g.k, g.k_row, g.v, g.v_row, few.cols[r],
                       few.count[r], g.D, by_row + r * few.size, by_row + HALF + r * few.size);
    if constexpr (PER_WORD<E> == 1) next.fetch(r + 1 < g.live ? 1 : GROUP);
  }
  transpose_16(by_row, few.size, p);
  transpose_16(by_row + HALF, few.size, ds);
  differentiate(g, t, few.words, few.longest, p, ds,
                [&](int c) { return g.kept(w, few.listed + c * GROUP); });
  const float* weights = weights_for<GROUP>(g.k, ds, few.longest, w.ds);
  for (int r = 0; r < g.live; r++) {
    auto add = [&](auto dq) {
      entry_gradients<DC, GROUP>(p + r, ds + r, weights + r, g.k, g.k_row, few.cols[r],
                                 few.count[r], g.D, w.q + r * g.size, w.g + r * g.size, dq, dk,
                                 dv);
    };
    if constexpr (FIRST)
      add(Begin{w.o + r * g.D});
    else
      add(AddTo{w.o + r * g.D, set1(1.f)});
  }
}

// Some single entries of row r; with dk = 0 only its dq.
template <int DC, class E>
static inline void differentiate_entries(const Group<E>& g, Work<E>& w, const RowTerms& t, int r,
                                         const int32_t* cols, int n, float* dk, float* dv) {
  const E *q = w.q + r * g.size, *go = w.g + r * g.size;
  const vf zero = set1(0.f), lse = set1(t.lse[r]), delta = set1(t.delta[r]);
  alignas(64) int32_t last[W] = {};
  entry_products<DC>(q, go, g.k, g.k_row, g.v, g.v_row, cols, n, g.D, w.e, w.de);
  for (int i = 0; i < n; i += W) {
    vf p = probability(load(w.e + i), set1(t.score), lse), weight = p, dp = load(w.de + i);
    if (g.drops) {
      const int32_t* from = cols + i;
      if (i + W > n) from = (const int32_t*)memcpy(last, from, (n - i) * sizeof(int32_t));
      const uint32_t kept = g.kept_of_row(r, from);
      weight = keep(p * set1(g.factor), kept, 0, zero);
      dp = keep(dp * set1(g.factor), kept, 0, zero);
    }
    store(w.e + i, weight);
    store(w.de + i, p * (dp - delta) * set1(t.scale));
  }
  const float* weights = weights_for<1>(g.k, w.de, n, w.s);
  const AddTo dq{w.o + r * g.D, set1(1.f)};
  if (dk)
    entry_gradients<DC, 1>(w.e, w.de, weights, g.k, g.k_row, cols, n, g.D, q, go, dq, dk, dv);
  else
    entry_weigh<DC, 1>(weights, g.k, g.k_row, cols, n, g.D, dq);
}

// Reads the rows of q and of the gradient, LSE and delta of a group.
template <int DC, bool PLAIN, class E>
static void read_group(const Task& t, const Group<E>& g, Work<E>& w, RowTerms& terms) {
  const SbCall& c = *t.call;
  const int64_t size = bytes_of(c.dtype), first = (t.b * c.H + t.h) * c.N;
  terms.scale = (float)c.scale;
  terms.score = score_factor(c);
  vf sums[GROUP];
  for (int r = 0; r < g.live; r++) {
    const int32_t row = g.rows[r];
    const char *go = row_of(c.grad_o, size, t.b, t.h, row), *o = row_of(c.o, size, t.b, t.h, row);
    read_row<DC, PLAIN>(c, row_of(c.q, size, t.b, t.h, row), g.size, w.q + r * g.size);
    read_row<DC, PLAIN>(c, go, g.size, w.g + r * g.size);
    if constexpr (!PLAIN) {
      read_row<DC, PLAIN>(c, o, g.size, (E*)w.o);
      o = (const char*)w.o, go = (const char*)(w.g + r * g.size);
    }
    vf sum = set1(0.f);
    for (int d = 0; d < dim<DC>(g.D); d += LANES<E>)
      sum = dot(load_words((const E*)go + d, g.D - d), load_words((const E*)o + d, g.D - d), sum);
    sums[r] = sum;
    const float lse = c.lse[first + row];
    terms.lse[r] = lse == -INF ? INF : lse * LOG2E;  // of a dead row: 2^(s - INF) = 0
  }
  clear(w.q + g.live * g.size, (GROUP - g.live) * g.size);
  clear(w.g + g.live * g.size, (GROUP - g.live) * g.size);
  for (int r = g.live; r < GROUP; r++) terms.lse[r] = INF, sums[r] = set1(0.f);
  for (int r = 0; r < GROUP; r += 4) {
    const quad sum = sums_of_4(sums[r], sums[r + 1], sums[r + 2], sums[r + 3]);
    memcpy(terms.delta + r, &sum, sizeof sum);
  }
  if (c.grad_lse)
    for (int r = 0; r < g.live; r++) terms.delta[r] -= c.grad_lse[first + g.rows[r]];
}

// A group, while which the next one's rows are fetched.
template <class E, int DC, bool PLAIN>
static void backward_group(const Task& t, int64_t index, NextGroup<DC> next, Work<E>& w, float* dk,
                           float* dv) {
  const SbCall& c = *t.call;
  const Group<E> g(t, index);
  const int64_t size = bytes_of(c.dtype);
  RowTerms terms;
  read_group<DC, PLAIN>(t, g, w, terms);
  // Rows of bf16 are short enough to be fetched at once.
  if (PER_WORD<E> > 1 || !g.has_few() || !g.has_entries()) next.fetch(GROUP);
  if (g.drops) g.list_rows(w);

  // In a tile a row meets columns that are not its own: as 0 * what is there, which may be NaN.
  const bool by_rows =
      g.has_tile() && !(are_finite(w.q, g.live, g.size) && are_finite(w.g, g.live, g.size));
  bool begun = false;  // dq
  bool again = false;  // dq alone, for the same reason
  if (g.has_tile() && !by_rows) {
    differentiate_tile<DC>(g, w, terms, dk, dv);
    begun = are_finite(w.o, g.live, g.D);
    again = !begun;
  }
  if (by_rows || again) {
    clear(w.o, GROUP * g.D), begun = true;
    for (int r = 0; r < g.live; r++) {
      Columns tile = g.tile();
      while (const int n = tile.next_of_row(w, r))
        differentiate_entries<DC>(g, w, terms, r, w.cols, n, again ? nullptr : dk, dv);
    }
  }
  if (!begun && g.has_few()) {
    differentiate_few<DC, true>(g, w, terms, next, dk, dv);
  } else if (g.has_entries() && g.has_few()) {
    differentiate_few<DC, false>(g, w, terms, next, dk, dv);
  } else {
    if (!begun) clear(w.o, GROUP * g.D);
    for (int r = 0; r < g.live; r++) {
      Columns entries = g.entries(r);
      const int32_t* cols;
      const uint16_t* none;
      while (const int n = entries.next(w.cols, w.words, ENTRIES, cols, none))
        differentiate_entries<DC>(g, w, terms, r, cols, n, dk, dv);
    }
  }

  if (g.plan.slot[index] >= 0) {
    const int64_t floats = slot_floats(c.D);
    float* to = t.slots + g.plan.slot[index] * floats;
    for (int r = 0; r < g.live; r++) memcpy(to + r * floats, w.o + r * g.D, g.D * sizeof(float));
    return;
  }
  for (int r = 0; r < g.live; r++)
    write_row<E, DC, PLAIN>(c, row_of(c.dq, size, t.b, t.h, g.rows[r]), 1.f, w.o + r * g.D);
}

template <class E, int DC, bool PLAIN>
static void backward(const Task& t, int64_t from, int64_t to, void* memory, float* dk, float* dv) {
  Work<E> w(memory, t.call->D);
  for (int64_t g = from; g < to; g++) {
    // After the last group perhaps comes the first one of the next head.
    const bool last = g + 1 == to;
    const NextGroup<DC> next{t, last ? t.h + 1 : t.h,
                             t.plan->rows + (last ? from : g + 1) * GROUP};
    backward_group<E, DC, PLAIN>(t, g, next, w, dk, dv);
  }
}

// dq of the rows that several groups have.
static void merge_dq(const Task& t) {
  const SbCall& c = *t.call;
  const HeadPlan& p = *t.plan;
  const int64_t floats = slot_floats(c.D);
  const int D = (int)padded(c.D);
  alignas(64) float sum[256];
  for (int64_t i = 0; i < p.merged; i++) {
    clear(sum, D);
    for (int32_t s = p.merged_start[i]; s < p.merged_start[i + 1]; s++) {
      const float* part = t.slots + p.merged_slots[s] * floats;
      for (int d = 0; d < D; d += W) store(sum + d, load(sum + d) + load(part + d));
    }
    store_row((void*)row_of(c.dq, bytes_of(c.dtype), t.b, t.h, p.merged_rows[i]), c.dtype,
              (int)c.D, sum, 1.f);
  }
}

template <class E, int DC, bool PLAIN>
static void write_gradients(const SbCall& c, int64_t b, int64_t head, int64_t from, int64_t to,
                            const float* buffers, int64_t count) {
  const int D = (int)padded(c.D);
  const int64_t size = bytes_of(c.grad_dtype), all = c.M * D;
  constexpr int64_t AHEAD = 24;  // rows that are fetched while one is written
  alignas(64) float sum[256];
  for (int which = 0; which < 2; which++) {
    const SbTensor& x = which ? c.dv : c.dk;
    for (int64_t j = from; j < to; j++) {
      if (j + AHEAD < to) prefetch(row_of(x, size, b, head, j + AHEAD), c.D * size);
      const float* row = buffers + which * all + j * D;
      if (count > 1) {
        memcpy(sum, row, D * sizeof(float));
        for (int64_t n = 1; n < count; n++)
          for (int d = 0; d < D; d += W)
            store(sum + d, load(sum + d) + load(row + n * 2 * all + d));
        row = sum;
      }
      const char* out = row_of(x, size, b, head, j);
      if (c.grad_dtype == c.dtype)
        write_row<E, DC, PLAIN>(c, out, 1.f, row);
      else
        store_row((void*)out, c.grad_dtype, (int)c.D, row, 1.f);
    }
  }
}

}  // namespace sb::SB_ISA

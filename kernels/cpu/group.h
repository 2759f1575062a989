// What the passes share: the memory of one thread, and the columns of a group piece by piece.
#pragma once
#include <cmath>

#include "entries.h"
#include "kernels.h"

namespace sb::SB_ISA {

// The memory that one thread works in.
template <class E>
struct Work {
  E *q, *g;       // [16, row_size], rows of the group
  E *qt, *gt;     // [row_size in words, 16]: their words transposed
  float* o;       // [16, D], unnormalised; in the backward pass dq
  float *s, *ds;  // [CHUNK, 16]
  float *e, *de;  // [ENTRIES]
  float *m, *l, *a;
  int32_t* cols;    // [16, FEW] or [ENTRIES], columns that were picked
  uint16_t* words;  // [CHUNK]
  uint32_t* rows;   // [16]

  static int64_t bytes(int64_t D) {
    return 4 * (5 * GROUP * padded(D) + 2 * CHUNK * GROUP + 2 * (ENTRIES + 64) + 3 * GROUP +
                GROUP * FEW + GROUP) +
           2 * CHUNK + 64;
  }
  Work(void* memory, int64_t D) {
    float* p = (float*)memory;
    const int64_t block = GROUP * padded(D);
    auto take = [&](int64_t n) {
      float* from = p;
      p += n;
      return from;
    };
    q = (E*)take(block), g = (E*)take(block), qt = (E*)take(block), gt = (E*)take(block);
    o = take(block);
    s = take(CHUNK * GROUP), ds = take(CHUNK * GROUP);
    e = take(ENTRIES + 64), de = take(ENTRIES + 64);
    m = take(GROUP), l = take(GROUP), a = take(GROUP);
    cols = (int32_t*)take(GROUP * FEW), rows = (uint32_t*)take(GROUP);
    words = (uint16_t*)p;
  }
};

// Columns of a group, in pieces, without those that the key mask hides.
struct Columns {
  const int32_t* cols;
  const uint16_t* words;  // 0 for single entries
  int64_t at, end;
  const uint8_t* visible;  // of the batch, [M], or 0

  // The next piece: its columns and words, and how many there are; 0 at the end. They are written
  // to `picked` and `picked_words` where some are hidden.
  int next(int32_t* picked, uint16_t* picked_words, int most, const int32_t*& c,
           const uint16_t*& word) {
    if (!visible) {
      const int n = (int)std::min<int64_t>(most, end - at);
      c = cols + at, word = words ? words + at : nullptr;
      at += n;
      return n;
    }
    int n = 0;
    for (; at < end && n < most; at++)
      if (visible[cols[at]]) {
        picked[n] = cols[at];
        if (words) picked_words[n] = words[at];
        n++;
      }
    c = picked, word = picked_words;
    return n;
  }

  // The next columns that row r of the group attends to.
  template <class E>
  int next_of_row(Work<E>& w, int r) {
    int n = 0;
    for (; at < end && n < ENTRIES; at++)
      if ((words[at] >> r & 1) && (!visible || visible[cols[at]])) w.cols[n++] = cols[at];
    return n;
  }
};

// A group of a task: its rows and columns, and where k and v are.
template <class E>
struct Group {
  const int32_t* rows;
  int live;  // rows that it has
  int D;     // padded
  int size;  // of its rows in Work
  const E *k, *v;
  int64_t k_row, v_row;
  bool in_place;  // k and v are read in the call
  const uint8_t* visible;
  const HeadPlan& plan;
  int64_t index;
  bool drops;
  uint32_t head_key, threshold;
  float factor;  // of what dropout keeps

  Group(const Task& t, int64_t g) : plan(*t.plan), index(g) {
    const SbCall& c = *t.call;
    rows = plan.rows + g * GROUP;
    for (live = 0; live < GROUP && rows[live] >= 0;) live++;
    D = (int)padded(c.D), size = row_size<E>(D);
    k = (const E*)t.k, v = (const E*)t.v, k_row = t.k_row, v_row = t.v_row;
    in_place = t.in_place;
    visible = c.key_mask ? c.key_mask + t.b * c.M : nullptr;
    drops = c.dropout != 0;
    head_key = t.dropout_key;
    threshold = (uint32_t)c.dropout_threshold;
    factor = drops ? (float)c.dropout_factor : 1.f;
  }
  Columns tile() const {
    return {plan.tile_cols, plan.tile_words, plan.tile_start[index], plan.tile_start[index + 1],
            visible};
  }
  Columns entries(int r) const {
    const int32_t* start = plan.entry_start + index * GROUP + r;
    return {plan.entry_cols, nullptr, start[0], start[1], visible};
  }
  bool has_tile() const { return plan.tile_start[index + 1] > plan.tile_start[index]; }
  bool has_entries() const {
    const int32_t* start = plan.entry_start + index * GROUP;
    return start[GROUP] > start[0];
  }
  // Whether no row has more than FEW single entries.
  bool has_few() const {
    const int32_t* start = plan.entry_start + index * GROUP;
    for (int r = 0; r < live; r++)
      if (start[r + 1] - start[r] > FEW) return false;
    return true;
  }
  // Of a row whose probabilities have the sum l.
  float inverse(float l) const { return l == 0.f ? 0.f : factor / l; }
  void list_rows(Work<E>& w) const {
    for (int r = 0; r < GROUP; r++) w.rows[r] = (uint32_t)std::max(rows[r], 0);
  }
  // Which of the rows keep a column in dropout's draw, or each a column of its own: bit r of it.
  uint32_t kept(const Work<E>& w, int32_t column) const {
    uint32_t columns[GROUP];
    std::fill_n(columns, GROUP, (uint32_t)column);
    return kept(w, columns);
  }
  uint32_t kept(const Work<E>& w, const uint32_t* columns) const {
    uint32_t word = 0;
    for (int i = 0; i < GV; i++)
      word |= is_kept(head_key, load_u32(w.rows + i * W), load_u32(columns + i * W), threshold)
              << (i * W);
    return word;
  }
  // Which of the W columns from `cols` on row r keeps.
  uint32_t kept_of_row(int r, const int32_t* cols) const {
    return is_kept(head_key, set1_u32((uint32_t)rows[r]), load_u32((const uint32_t*)cols),
                   threshold);
  }
};

// The single entries of a group's rows, of which each has few, as columns: column c is the c-th
// entry of each row that has so many.
struct FewEntries {
  const int32_t* cols[GROUP];
  int count[GROUP];  // of each row
  int longest;
  int size;                      // longest, as a multiple of 16
  uint16_t words[FEW];           // bit r of words[c]: row r has a c-th entry
  uint32_t listed[FEW * GROUP];  // the c-th of each row; made for dropout alone

  template <class E>
  FewEntries(const Group<E>& g, Work<E>& w) : count{}, longest(0) {
    for (int r = 0; r < g.live; r++) {
      const uint16_t* none;
      Columns entries = g.entries(r);
      count[r] = entries.next(w.cols + r * FEW, w.words, FEW, cols[r], none);
      longest = std::max(longest, count[r]);
    }
    size = (longest + GROUP - 1) / GROUP * GROUP;
    for (int c = 0; c < longest; c++) {
      uint32_t word = 0;
      for (int i = 0; i < GROUP; i += W)
        word |= at_least_u32(load_u32((const uint32_t*)count + i), c + 1) << i;
      words[c] = (uint16_t)word;
    }
    if (!g.drops) return;
    std::fill_n(listed, longest * GROUP, 0u);
    for (int r = 0; r < g.live; r++)
      for (int c = 0; c < count[r]; c++) listed[c * GROUP + r] = (uint32_t)cols[r][c];
  }
};

// Rows in Work, [16][size].
template <class E>
struct InWork {
  const E* rows;
  int size;
  const E* operator()(int r) const { return rows + r * size; }
};

// by_column[c][16] = products of the rows with their c-th single entries in x; `by_row` is memory
// for as many.
template <int DC, class E, class Rows>
static inline void few_scores(const FewEntries& few, const Group<E>& g, Rows&& rows, const E* x,
                              int64_t stride, float* by_row, float* by_column) {
  for (int r = 0; r < g.live; r++)
    entry_scores<DC>(rows(r), x, stride, few.cols[r], few.count[r], g.D, by_row + r * few.size);
  transpose_16(by_row, few.size, by_column);
}

// Whether all of n rows of D elements are finite.
template <class E>
static inline bool are_finite(const E* x, int n, int D) {
  const vf zero = set1(0.f);
  vf sums[4] = {zero, zero, zero, zero};  // one would wait for each product
  const int64_t all = (int64_t)n * D;
  int64_t i = 0;
  for (; i + 4 * W <= all; i += 4 * W)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) sums[j] = fma(load_float(x + i + j * W), zero, sums[j]);
  for (; i < all; i += W) sums[0] = fma(load_float(x + i), zero, sums[0]);
  return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3])) == 0.f;
}

// Rows of a call, [B, H, N, D]: read as E, padded to `size`, and written. PLAIN: they are of type
// E and need no padding to D, so DC, if not 0, is their size.
template <int DC, bool PLAIN>
static inline void read_row(const SbCall& c, const void* row, int size, float* to) {
  if constexpr (PLAIN)
    for (int d = 0; d < dim<DC>(size); d += W) store(to + d, load((const float*)row + d));
  else
    load_row(row, c.dtype, (int)c.D, size, to);
}
#ifdef __AVX512BF16__
template <int DC, bool PLAIN>
static inline void read_row(const SbCall& c, const void* row, int size, bf16* to) {
  const int D = PLAIN ? dim<DC>((int)c.D) : (int)c.D;
  for (int d = 0; d < size; d += LANES<bf16>)
    store_words(to + d, load_words((const bf16*)row + d, D - d), size - d);
}
#endif
template <class E, int DC, bool PLAIN>
static inline void write_row(const SbCall& c, const void* row, float factor, const float* from) {
  if constexpr (PLAIN)
    for (int d = 0; d < dim<DC>((int)c.D); d += W)
      store_float((E*)row + d, load(from + d) * set1(factor));
  else
    store_row((void*)row, c.dtype, (int)c.D, from, factor);
}

// Asks for a row before it is needed: rows of one head lie kilobytes apart, which processors do
// not foresee. A function that does nothing else is dropped as one without effect, unless it is
// part of its caller.
static inline __attribute__((always_inline)) void prefetch(const char* row, int64_t bytes) {
#pragma GCC unroll 8
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i);
}
// The same for one of a call.
template <int DC>
static inline __attribute__((always_inline)) void prefetch_row(const SbCall& c, const char* row) {
  prefetch(row, dim<DC>((int)c.D) * bytes_of(c.dtype));
}

// What products of q and k are multiplied by: scores are in base 2.
static inline float score_factor(const SbCall& c) { return (float)(c.scale * 1.4426950408889634); }

template <class E>
static inline void clear(E* x, int64_t n) {
  memset((void*)x, 0, n * sizeof(E));
}

static inline const char* row_of(const SbTensor& x, int64_t size, int64_t b, int64_t h,
                                 int64_t row) {
  return (const char*)x.data + (b * x.batch + h * x.head + row * x.row) * size;
}

}  // namespace sb::SB_ISA

// Rows that are needed soon, prefetched.
#pragma once
#include "group.h"

namespace sb::SB_ISA {

// The rows of up to W columns, from number i of n on.
template <class E>
static inline __attribute__((always_inline)) void prefetch_columns(const E* x, int64_t stride,
                                                                   const int32_t* cols, int i,
                                                                   int n, int D) {
  for (const int end = std::min(n, i + W); i < end; i++)
    prefetch((const char*)(x + cols[i] * stride), D * (int64_t)sizeof(E));
}

// What the group after this one begins with: its rows of q and, where k and v are read in the
// call, the rows of these of the same numbers, since masks attend to what is near. It is asked for
// little by little between the work on this group, as only so much can be on its way at once.
template <int DC, class E>
class Ahead {
  const int32_t* rows = nullptr;
  const char *q, *k, *v;
  int64_t q_row, k_row, v_row, bytes, keys;
  int next = 0;

 public:
  Ahead(const Task& t, int64_t index) {
    const SbCall& c = *t.call;
    const bool last = index + 1 == t.plan->groups;
    const int64_t h = t.h + last, size = bytes_of(c.dtype);
    if (h == c.H) return;
    rows = t.plan->rows + (last ? 0 : index + 1) * GROUP;
    const int64_t h_kv = h / (c.H / c.H_kv);
    q = row_of(c.q, size, t.b, h, 0);
    k = row_of(c.k, size, t.b, h_kv, 0), v = row_of(c.v, size, t.b, h_kv, 0);
    q_row = c.q.row * size, k_row = c.k.row * size, v_row = c.v.row * size;
    bytes = DC ? DC * (int64_t)sizeof(E) : c.D * size;
    keys = t.in_place ? c.M : 0;
  }
  // The next so many rows.
  inline __attribute__((always_inline)) void prefetch_rows(int count) {
    if (!rows) return;
#pragma GCC unroll 1
    for (const int end = std::min(GROUP, next + count); next < end; next++) {
      const int64_t row = rows[next], size = DC ? DC * (int64_t)sizeof(E) : bytes;
      if (row < 0) continue;
      prefetch(q + row * q_row, size);
      if (row >= keys) continue;
      prefetch(k + row * k_row, size);
      prefetch(v + row * v_row, size);
    }
  }
};

}  // namespace sb::SB_ISA

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

// What comes after this group: the next one's rows of q, and rows of k and v, of the key head that
// comes next, those that have this group's numbers, or of this one, those that have the next
// group's, since masks attend to what is near. It is asked for little by little between the work
// on this group, as only so much can be on its way at once.
template <int DC, class E>
class Ahead {
  const int32_t *q_rows = nullptr, *k_rows = nullptr;
  const char *q, *k, *v;
  int64_t q_row, k_row, v_row, bytes, keys;
  int next_q = 0, next_kv = 0;

 public:
  Ahead(const Task& t, int64_t index) {
    const SbCall& c = *t.call;
    const bool last = index + 1 == t.plan->groups;
    const int64_t h = t.h + last, h_kv = h / (c.H / c.H_kv), size = bytes_of(c.dtype);
    if (h < c.H) q_rows = t.plan->rows + (last ? 0 : index + 1) * GROUP;
    q = row_of(c.q, size, t.b, h, 0);
    if (t.next_k) {
      k_rows = t.plan->rows + index * GROUP, k = t.next_k, v = t.next_v;
    } else if (t.in_place) {
      k_rows = q_rows, k = row_of(c.k, size, t.b, h_kv, 0), v = row_of(c.v, size, t.b, h_kv, 0);
    }
    q_row = c.q.row * size, k_row = c.k.row * size, v_row = c.v.row * size;
    bytes = DC ? DC * (int64_t)sizeof(E) : c.D * size, keys = c.M;
  }
  // The next so many rows of q, of k and v, or both.
  inline __attribute__((always_inline)) void prefetch_q(int count) {
#pragma GCC unroll 1
    for (const int end = std::min(GROUP, next_q + count); next_q < end; next_q++)
      if (q_rows && q_rows[next_q] >= 0) prefetch(q + q_rows[next_q] * q_row, size());
  }
  inline __attribute__((always_inline)) void prefetch_kv(int count) {
#pragma GCC unroll 1
    for (const int end = std::min(GROUP, next_kv + count); next_kv < end; next_kv++) {
      const int64_t row = k_rows ? k_rows[next_kv] : -1;
      if (row < 0 || row >= keys) continue;
      prefetch(k + row * k_row, size());
      prefetch(v + row * v_row, size());
    }
  }
  inline __attribute__((always_inline)) void prefetch_rows(int count) {
    prefetch_q(count), prefetch_kv(count);
  }

 private:
  int64_t size() const { return DC ? DC * (int64_t)sizeof(E) : bytes; }
};

}  // namespace sb::SB_ISA

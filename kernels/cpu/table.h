// The table of functions for one type of elements and one size of rows.
#pragma once
#include "backward.h"
#include "forward.h"

namespace sb::SB_ISA {

template <class E, int DC, bool PLAIN>
static void pack(const SbCall& c, int64_t b, int64_t h_kv, int64_t from, int64_t to, void* k,
                 void* v) {
  const int D = (int)padded(c.D);
  const int64_t size = bytes_of(c.dtype);
  const uint8_t* visible = c.key_mask ? c.key_mask + b * c.M : nullptr;
  constexpr int64_t AHEAD = 8;
  for (int64_t j = from; j < to; j++) {
    if (j + AHEAD < to) {
      prefetch_row<PLAIN ? DC : 0>(c, row_of(c.k, size, b, h_kv, j + AHEAD));
      prefetch_row<PLAIN ? DC : 0>(c, row_of(c.v, size, b, h_kv, j + AHEAD));
    }
    if (visible && !visible[j]) continue;
    read_row<DC, PLAIN>(c, row_of(c.k, size, b, h_kv, j), D, (E*)k + j * D);
    read_row<DC, PLAIN>(c, row_of(c.v, size, b, h_kv, j), D, (E*)v + j * D);
  }
}

template <class E, int DC, bool PLAIN>
static constexpr Kernels TABLE = {sizeof(E),
                                  !PLAIN,
                                  Work<E>::bytes,
                                  pack<E, DC, PLAIN>,
                                  forward<E, DC, PLAIN>,
                                  merge,
                                  backward<E, DC, PLAIN>,
                                  merge_dq,
                                  write_gradients<E, DC, PLAIN>};

// PLAIN: the call's k and v are of type E, their rows a multiple of 16 elements.
template <class E, bool PLAIN>
static const Kernels* table(int64_t D) {
  switch (padded(D)) {
    case 32: return &TABLE<E, 32, PLAIN>;
    case 64: return &TABLE<E, 64, PLAIN>;
    case 128: return &TABLE<E, 128, PLAIN>;
  }
  return &TABLE<E, 0, PLAIN>;
}

}  // namespace sb::SB_ISA

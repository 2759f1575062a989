// The kernels of one instruction set, SB_ISA, in fp32; other dtypes are widened as rows are read.
#include "backward.h"
#include "forward.h"

namespace sb::SB_ISA {

template <int DC, bool PLAIN>
static void pack(const SbCall& c, int64_t b, int64_t h_kv, int64_t from, int64_t to, void* k,
                 void* v) {
  const int D = (int)padded(c.D);
  const int64_t size = bytes_of(c.dtype);
  const uint8_t* visible = c.key_mask ? c.key_mask + b * c.M : nullptr;
  for (int64_t j = from; j < to; j++) {
    if (visible && !visible[j]) continue;
    read_row<DC, PLAIN>(c, row_of(c.k, size, b, h_kv, j), 1.f, (float*)k + j * D);
    read_row<DC, PLAIN>(c, row_of(c.v, size, b, h_kv, j), 1.f, (float*)v + j * D);
  }
}

template <int DC, bool PLAIN>
static constexpr Kernels TABLE = {sizeof(float),        !PLAIN, Work::bytes,
                                  pack<DC, PLAIN>,      forward<DC, PLAIN>, merge,
                                  backward<DC, PLAIN>,  merge_dq, write_gradients};

template <bool PLAIN>
static const Kernels* of_dim(int64_t D) {
  switch (padded(D)) {
    case 32: return &TABLE<32, PLAIN>;
    case 64: return &TABLE<64, PLAIN>;
    case 128: return &TABLE<128, PLAIN>;
  }
  return &TABLE<0, PLAIN>;
}

const Kernels* kernels(int64_t D, int64_t dtype) {
  return dtype == SB_FLOAT32 && D % GROUP == 0 ? of_dim<true>(D) : of_dim<false>(D);
}

}  // namespace sb::SB_ISA

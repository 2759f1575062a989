// The kernels of one instruction set, SB_ISA, in fp32; other dtypes are widened as rows are read.
#include "backward.h"
#include "forward.h"

namespace sb::SB_ISA {

static void pack(const SbCall& c, int64_t b, int64_t h_kv, int64_t from, int64_t to, void* k,
                 void* v) {
  const int D = (int)padded(c.D);
  const int64_t size = bytes_of(c.dtype);
  const uint8_t* visible = c.key_mask ? c.key_mask + b * c.M : nullptr;
  for (int64_t j = from; j < to; j++) {
    if (visible && !visible[j]) continue;
    load_row(row_of(c.k, size, b, h_kv, j), c.dtype, (int)c.D, D, 1.f, (float*)k + j * D);
    load_row(row_of(c.v, size, b, h_kv, j), c.dtype, (int)c.D, D, 1.f, (float*)v + j * D);
  }
}

template <int DC, bool PACKS>
static constexpr Kernels TABLE = {
    sizeof(float), PACKS, Work::bytes, pack, forward<DC>, merge, backward<DC>, merge_dq,
    write_gradients};

template <bool PACKS>
static const Kernels* of_dim(int64_t D) {
  switch (padded(D)) {
    case 32: return &TABLE<32, PACKS>;
    case 64: return &TABLE<64, PACKS>;
    case 128: return &TABLE<128, PACKS>;
  }
  return &TABLE<0, PACKS>;
}

const Kernels* kernels(int64_t D, int64_t dtype) {
  const bool in_place = dtype == SB_FLOAT32 && D % GROUP == 0;
  return in_place ? of_dim<false>(D) : of_dim<true>(D);
}

}  // namespace sb::SB_ISA

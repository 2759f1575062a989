// The kernels of one instruction set, SB_ISA, in fp32; other dtypes are widened as rows are read.
#include "table.h"

namespace sb::SB_ISA {

const Kernels* kernels(int64_t D, int64_t dtype) {
  const bool plain = dtype == SB_FLOAT32 && D % GROUP == 0;
  return plain ? table<float, true>(D) : table<float, false>(D);
}

}  // namespace sb::SB_ISA

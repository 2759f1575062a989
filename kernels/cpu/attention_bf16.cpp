// The kernels of bf16 where the processor multiplies it: products of pairs, added up in fp32.
#include "products_bf16.h"
#include "table.h"

namespace sb::SB_ISA {

const Kernels* kernels(int64_t D) {
  return D % GROUP == 0 ? table<bf16, true>(D) : table<bf16, false>(D);
}

}  // namespace sb::SB_ISA

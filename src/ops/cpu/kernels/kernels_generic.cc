// Any machine: four lanes, which SSE2 and NEON have and everything else can emulate.
#define UF_SIMD_WIDTH 4
#define UF_SIMD_BF16_PAIRS 0
#include "ops/cpu/kernels/table_impl.h"

namespace ultraflash::cpu {

const Kernels* generic_kernels() {
  static constexpr Kernels kTable = make_table("generic");
  return &kTable;
}

}  // namespace ultraflash::cpu

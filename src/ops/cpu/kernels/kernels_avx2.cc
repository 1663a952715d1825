// x86-64 with AVX2 and FMA.
#define UF_SIMD_WIDTH 8
#define UF_SIMD_BF16_PAIRS 0
#include "ops/cpu/kernels/table_impl.h"

namespace ultraflash::cpu {

const Kernels* avx2_kernels() {
  static constexpr Kernels kTable = make_table("avx2");
  return &kTable;
}

}  // namespace ultraflash::cpu

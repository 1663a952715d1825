// x86-64 with AVX-512 F, BW, DQ and VL.
#define UF_SIMD_WIDTH 16
#define UF_SIMD_BF16_PAIRS 0
#include "ops/cpu/kernels/table_impl.h"

namespace ultraflash::cpu {

const Kernels* avx512_kernels() {
  static constexpr Kernels kTable = make_table("avx512");
  return &kTable;
}

}  // namespace ultraflash::cpu

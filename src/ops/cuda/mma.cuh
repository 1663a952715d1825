// The matrix instruction of a warp, sm_80 and later: PTX ISA, "mma.sync.m16n8k16".
//
// Element places, of thread 4 g + c: A rows g and g + 8 at inner columns 2 c + {0, 1} and
// 2 c + 8 + {0, 1} (a0 row g, a1 row g + 8, then a2 and a3 of the second columns), B the same inner
// rows at column g, D rows g and g + 8 at columns 2 c + {0, 1}. The order along the inner axis is
// free as long as A and B share it, so a thread may read 16 bytes of a row: 8 elements from 8 c on
// of 32 are its part of two products.
//
// Or "ldmatrix" distributes four squares of 8 rows of 16 bytes in shared memory: thread 8 i + j has
// the address of row j of square i, and thread 4 g + c gets elements 2 c + {0, 1} of row g of each,
// or, transposed, elements g of rows 2 c + {0, 1}.
#pragma once

#include <cstdint>

namespace ultraflash::cuda {

/// D += A B for A [16, 16] and B [16, 8] of bf16.
__device__ __forceinline__ void multiply_add(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                             uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// D += A B for A [16, 32] and B [32, 8] of e4m3, sm_89 and later: places as above, with four
/// elements where there are two.
__device__ __forceinline__ void multiply_add_fp8(float (&d)[4], uint32_t a0, uint32_t a1,
                                                 uint32_t a2, uint32_t a3, uint32_t b0,
                                                 uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Bf16 along an inner axis of 32, each thread holding 16 bytes of its rows of A (`low` row g,
/// `high` row g + 8) and of its column of B.
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint4& low, const uint4& high,
                                             const uint4& b) {
  multiply_add(d, low.x, high.x, low.y, high.y, b.x, b.y);
  multiply_add(d, low.z, high.z, low.w, high.w, b.z, b.w);
}

__device__ __forceinline__ void load_squares(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_squares_transposed(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}

}  // namespace ultraflash::cuda

// The instructions of sm_90a that CUDA C++ has no names for: transaction barriers, tensor copies,
// warpgroup matrix products. Semantics: PTX ISA 8.0, "mbarrier", "cp.async.bulk.tensor" and
// "Asynchronous Warpgroup Level Matrix Multiply-Accumulate".
#pragma once

#include <cuda.h>

#include <cstdint>

#include "ops/cuda/async_copy.cuh"  // shared_address

namespace ultraflash::cuda::sm90 {

__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}

/// A lane's number, asked for where it stands: what rare code computes from it is not kept in
/// registers ahead of time.
__device__ __forceinline__ uint32_t lane_now() {
  uint32_t lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

__device__ __forceinline__ uint32_t warp_now() {
  uint32_t thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread / 32;
}

/// A value that the compiler must work with from here on, and not ahead of time.
__device__ __forceinline__ uint32_t opaque(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

/// Ends a basic block, across which the assembler moves no instructions. `some`: not zero, which it
/// does not know.
__device__ __forceinline__ void end_of_block(uint32_t some) {
  while (opaque(some) == 0) asm volatile("nanosleep.u32 1;");
}

// --- barriers -----------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

/// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Arrives and lets the phase complete only after `bytes` more have been copied.
__device__ __forceinline__ void barrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// Waits for the phase of the given parity to complete.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// Whether the phase of the given parity is complete, without waiting for it.
__device__ __forceinline__ bool barrier_test(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

/// Named barriers among `threads` threads: one side waits, the other goes on.
__device__ __forceinline__ void named_sync(uint32_t name, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(uint32_t name, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// --- copies -------------------------------------------------------------------------------------

__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/// The box at (x, y, z) of a 3-D tensor map into shared memory; its bytes count on `barrier`.
__device__ __forceinline__ void copy_box(uint32_t destination, const CUtensorMap* map, int32_t x,
                                         int32_t y, int32_t z, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4}], [%5];" ::"r"(destination),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

/// The same of 2-D and 4-D maps.
__device__ __forceinline__ void copy_box(uint32_t destination, const CUtensorMap* map, int32_t x,
                                         int32_t y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];" ::"r"(destination),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void copy_box(uint32_t destination, const CUtensorMap* map, int32_t x,
                                         int32_t y, int32_t z, int32_t w, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4, %5}], [%6];" ::"r"(destination),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
      : "memory");
}

// --- registers ----------------------------------------------------------------------------------

template <uint32_t COUNT>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <uint32_t COUNT>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// --- matrix products ----------------------------------------------------------------------------

/// Lower half of the descriptor of a tile of 128-byte rows in the 128-byte swizzle; a distance
/// within the tile is added to it in units of 16 bytes. `leading`: bytes between groups of 64
/// columns, read only for an operand with the product axis outermost.
__device__ __forceinline__ uint32_t tile_start(uint32_t address, uint32_t leading) {
  return address >> 4 | leading >> 4 << 16;
}

/// The upper half is the same for all: 1024 bytes between groups of 8 rows, 128-byte swizzle.
__device__ __forceinline__ uint64_t tile_descriptor(uint32_t start) {
  return static_cast<uint64_t>(1024 >> 4 | 1U << 30) << 32 | start;
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Until at most PENDING groups are still running.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/// Keeps the compiler from moving uses of registers across a wait for the products that write them.
template <int COUNT>
__device__ __forceinline__ void pin(float (&values)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
template <int COUNT>
__device__ __forceinline__ void pin(uint32_t (&values)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(values[i])::"memory");
}

#define UF_REGISTERS_32                                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define UF_REGISTERS_64                                                                          \
  UF_REGISTERS_32                                                                                \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define UF_OUTPUTS_8(d, i)                                                                    \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define UF_OUTPUTS_32(d, i) \
  UF_OUTPUTS_8(d, i), UF_OUTPUTS_8(d, i + 8), UF_OUTPUTS_8(d, i + 16), UF_OUTPUTS_8(d, i + 24)

/// d [64, 128] = a b^T (+ d unless FIRST): both from shared memory, both with the product axis
/// innermost; 16 steps of the product axis.
template <bool FIRST>
__device__ __forceinline__ void product_64x128(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.eq.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" UF_REGISTERS_64
      "}, %64, %65, p, 1, 1, 0, 0;\n"
      "}\n"
      : UF_OUTPUTS_32(d, 0), UF_OUTPUTS_32(d, 32)
      : "l"(a), "l"(b), "n"(FIRST ? 1 : 0));
}

/// d [64, 64 or 8] = a b^T, plus d unless `add` is 0: as above.
__device__ __forceinline__ void product_64x64(float (&d)[32], uint64_t a, uint64_t b,
                                              uint32_t add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" UF_REGISTERS_32
      "}, %32, %33, p, 1, 1, 0, 0;\n"
      "}\n"
      : UF_OUTPUTS_32(d, 0)
      : "l"(a), "l"(b), "r"(add));
}
__device__ __forceinline__ void product_64x8(float (&d)[4], uint64_t a, uint64_t b, uint32_t add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %6, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, p, 1, 1, 0, "
      "0;\n"
      "}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "l"(a), "l"(b), "r"(add));
}

/// d [64, 128 or 64] += a b: a from registers, b from shared memory with the product axis
/// outermost.
__device__ __forceinline__ void product_registers(float (&d)[64], uint32_t a0, uint32_t a1,
                                                  uint32_t a2, uint32_t a3, uint64_t b) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" UF_REGISTERS_64
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n"
      "}\n"
      : UF_OUTPUTS_32(d, 0), UF_OUTPUTS_32(d, 32)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}
__device__ __forceinline__ void product_registers(float (&d)[32], uint32_t a0, uint32_t a1,
                                                  uint32_t a2, uint32_t a3, uint64_t b) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" UF_REGISTERS_32
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
      "}\n"
      : UF_OUTPUTS_32(d, 0)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}

// The same in e4m3, 32 steps of the product axis; both operands have it innermost, there is no
// other form. The accumulators are f32, but the tensor cores add with about 14 bits: long sums are
// collected in parts (tiles.cuh).

template <bool FIRST>
__device__ __forceinline__ void product8_64x128(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.eq.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" UF_REGISTERS_64
      "}, %64, %65, p, 1, 1;\n"
      "}\n"
      : UF_OUTPUTS_32(d, 0), UF_OUTPUTS_32(d, 32)
      : "l"(a), "l"(b), "n"(FIRST ? 1 : 0));
}

/// d [64, 128] = a b, plus d unless `add` is 0.
__device__ __forceinline__ void product8_registers(float (&d)[64], uint32_t a0, uint32_t a1,
                                                   uint32_t a2, uint32_t a3, uint64_t b,
                                                   uint32_t add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" UF_REGISTERS_64
      "}, {%64, %65, %66, %67}, %68, p, 1, 1;\n"
      "}\n"
      : UF_OUTPUTS_32(d, 0), UF_OUTPUTS_32(d, 32)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add));
}

#undef UF_REGISTERS_32
#undef UF_REGISTERS_64
#undef UF_OUTPUTS_8
#undef UF_OUTPUTS_32

}  // namespace ultraflash::cuda::sm90

// CTAs that run together and reach each other's shared memory, on sm_90 and later; before it
// nothing here may be called.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

namespace ultraflash::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
/// A barrier in two halves: what a thread wrote before it arrived, all see that have waited.
__device__ __forceinline__ void cluster_arrive() {
  cooperative_groups::this_cluster().barrier_arrive();
}
__device__ __forceinline__ void cluster_wait() {
  cooperative_groups::this_cluster().barrier_wait();
}
/// The same place in the shared memory of CTA `part`.
__device__ __forceinline__ float* cluster_part(float* pointer, int part) {
  return cooperative_groups::this_cluster().map_shared_rank(pointer, part);
}
#else
__device__ __forceinline__ void cluster_arrive() { __trap(); }
__device__ __forceinline__ void cluster_wait() { __trap(); }
__device__ __forceinline__ float* cluster_part(float* pointer, int) { return pointer; }
#endif

}  // namespace ultraflash::cuda

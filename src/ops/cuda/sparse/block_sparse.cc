// Which kernel block-sparse attention takes.
#include "ops/cuda/sparse/block_sparse.h"

#include "ops/cuda/sparse/plain_attention.h"
#include "ops/cuda/sparse/sm90_attention.h"

namespace ultraflash::cuda {

cudaError_t block_sparse_attention(const SparseShape& shape, const BlockSparseArgs& args,
                                   SparseKernel kernel, cudaStream_t stream) {
  int device = 0;
  int major = 0;
  int minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) return error;
  const bool hopper = major == 9 && minor == 0 && sm90::attention_supports(shape);
  if (kernel == SparseKernel::kHopper && !hopper) return cudaErrorNotSupported;
  if (args.scales != nullptr && (kernel == SparseKernel::kPlain || !hopper)) {
    return cudaErrorNotSupported;
  }
  if (kernel == SparseKernel::kPlain || !hopper) {
    return launch_plain_attention(shape, args, stream);
  }
  return sm90::launch_attention(shape, args, sm90::AttentionTuning{}, stream);
}

}  // namespace ultraflash::cuda

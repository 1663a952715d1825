// Window order, block selection and block-sparse attention of the sparse SR DiT on the GPU: device
// pointers, sizes and a stream; nothing of the executor.
//
// Layouts, as ops/types.h has them (all dense, innermost last):
//   qkv       [batch, tokens, 3 * dim], row pitch `qkv_pitch` elements
//   q         [batch, query_blocks, 128, dim]         pooled_q  [batch, query_blocks, dim]
//   k, v      [batch, capacity_blocks * spatial_blocks, window_tokens, dim] (a ring, WindowCache)
//   pooled_k  [batch, capacity_blocks * spatial_blocks, dim]
// Where `scales` is given (bf16, heads of 128, 128-token windows), q, k and v are e4m3, and v is
// [batch, capacity_blocks * spatial_blocks, dim, 128], the tokens of each 16 in the order of
// fp8_key_place (quantise.cuh).
//   mask      u8  [batch, heads, query_blocks, key_blocks]
//   indices   i32 [batch, heads, query_blocks, key_blocks], ascending, in the order of the view
//   counts    i32 [batch, heads, query_blocks]
//   out       [batch, tokens, dim]
//
// Every function queues work on `stream`, allocates nothing, reads nothing back, works in a
// captured graph and returns what the launch returned. Results do not depend on timing: two runs
// give the same bits. Pointers are 16-byte aligned; offsets may pass 2^31.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace ultraflash::cuda {

enum class SparseType : uint8_t { kF32, kBF16 };

/// Host-side sizes of one call. `cached_blocks` decides the shape of the lists, so a graph is
/// captured per value of it; what else changes from group to group is in SparsePlace.
struct SparseShape {
  SparseType type = SparseType::kBF16;
  int64_t batch = 1;
  int64_t heads = 0;
  int64_t head_dim = 0;  // a multiple of 8, at most 128
  int64_t frames = 0;    // token grid of the group
  int64_t height = 0;
  int64_t width = 0;
  int64_t window_frames = 2;
  int64_t window_height = 8;
  int64_t window_width = 8;
  int64_t cached_blocks = 0;    // temporal blocks of earlier groups in view
  int64_t capacity_blocks = 0;  // temporal blocks of the ring

  [[nodiscard]] int64_t dim() const { return heads * head_dim; }
  [[nodiscard]] int64_t tokens() const { return frames * height * width; }
  [[nodiscard]] int64_t window_tokens() const {
    return window_frames * window_height * window_width;
  }
  [[nodiscard]] int64_t query_temporal_blocks() const {
    return (frames + window_frames - 1) / window_frames;
  }
  [[nodiscard]] int64_t block_rows() const { return (height + window_height - 1) / window_height; }
  [[nodiscard]] int64_t block_columns() const { return (width + window_width - 1) / window_width; }
  [[nodiscard]] int64_t spatial_blocks() const { return block_rows() * block_columns(); }
  [[nodiscard]] int64_t query_blocks() const { return query_temporal_blocks() * spatial_blocks(); }
  [[nodiscard]] int64_t key_temporal_blocks() const {
    return cached_blocks + query_temporal_blocks();
  }
  [[nodiscard]] int64_t key_blocks() const { return key_temporal_blocks() * spatial_blocks(); }
};

/// What changes every group. Lives in device memory and is read when the kernels run, so that a
/// captured graph follows it.
struct SparsePlace {
  int64_t first_frame = 0;  // latent frame index of frame 0
  int64_t first_slot = 0;   // ring slot of the oldest cached temporal block
};

/// Which pairs select_blocks keeps: ops/types.h, BlockSelection.
struct SparseSelection {
  int64_t local_range = 9;
  int64_t top_k = 1;
  int64_t blocks_per_chunk = 1;
};

/// Entries of the rotary table: (frames + height + width) rows of head_dim / 2 float2.
[[nodiscard]] size_t rotary_table_bytes(const SparseShape& shape);

/// Cosines and sines of the group's positions, angles in f64. Once per group is enough: the table
/// depends on `place` and the grid, not on the layer.
cudaError_t fill_rotary_table(const SparseShape& shape, const SparsePlace* place, float* table,
                              cudaStream_t stream);

struct WindowScatterArgs {
  const void* qkv = nullptr;
  int64_t qkv_pitch = 0;               // elements from token to token, a multiple of 8; 0: 3 * dim
  const float* norm_q = nullptr;       // [dim]
  const float* norm_k = nullptr;       // [dim]
  const float* rotary = nullptr;       // from fill_rotary_table
  const SparsePlace* place = nullptr;  // device memory
  float eps = 1e-6F;
  void* q = nullptr;
  void* pooled_q = nullptr;
  void* k = nullptr;  // the ring; the slots of this group are written
  void* v = nullptr;
  void* pooled_k = nullptr;
  float* scales =
      nullptr;  // set: q, k and v in e4m3; receives what q k^T of a head is multiplied by
};

/// RMS norm of q and k over dim, rotary embedding, window order, block means, cache write. Padding
/// is written as zeros and counts in the means, which are means of the rounded values.
cudaError_t qkv_to_windows(const SparseShape& shape, const WindowScatterArgs& args,
                           cudaStream_t stream);

/// Lists of blocks and the order in which attention takes its tiles.
struct SparseLists {
  uint8_t* mask = nullptr;  // may be null where nobody reads it
  int32_t* indices = nullptr;
  int32_t* counts = nullptr;
  int32_t* order = nullptr;  // [batch * heads * query_blocks], long lists first
};

/// Device memory for select_blocks, 256-byte aligned.
[[nodiscard]] size_t select_blocks_scratch_bytes(const SparseShape& shape,
                                                 const SparseSelection& selection);

/// executor.h, select_blocks. bf16 rounds the scores, the scaled scores and the probabilities as
/// the reference does; f32 rounds nothing. Scratch needs no initial value.
cudaError_t select_blocks(const SparseShape& shape, const SparseSelection& selection,
                          const void* pooled_q, const void* pooled_k, const SparsePlace* place,
                          const SparseLists& lists, void* scratch, cudaStream_t stream);

/// Fills indices, counts and order from a mask made elsewhere.
cudaError_t lists_from_mask(const SparseShape& shape, const uint8_t* mask, const SparseLists& lists,
                            cudaStream_t stream);

struct BlockSparseArgs {
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  SparseLists lists;                   // mask is not read
  const SparsePlace* place = nullptr;  // device memory
  const float* scales = nullptr;       // set: q, k and v are e4m3, as qkv_to_windows makes them
  void* out = nullptr;                 // [batch, tokens, dim]
  /// Two u32 that are 0 before the first call; every call leaves them 0. Not shared by calls that
  /// may run at the same time.
  uint32_t* ticket = nullptr;
};

/// Which device code attention takes. kAuto takes kHopper on sm_90 for bf16, head_dim 64 or 128 and
/// 128-token windows, else kPlain, which takes every shape on sm_80 and later.
enum class SparseKernel : uint8_t { kAuto, kHopper, kPlain };

/// softmax(q k^T / sqrt(head_dim)) v over the listed blocks; rows without a block give 0. Padding
/// keys are attended, padding queries dropped. cudaErrorNotSupported when `kernel` cannot do it.
cudaError_t block_sparse_attention(const SparseShape& shape, const BlockSparseArgs& args,
                                   SparseKernel kernel, cudaStream_t stream);

}  // namespace ultraflash::cuda

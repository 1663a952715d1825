// Block-sparse attention of the SR DiT: tensors to the kernels of ops/cuda/sparse and back.
#include <cstddef>
#include <numeric>

#include "core/check.h"
#include "ops/cuda/cuda_error.h"
#include "ops/cuda/cuda_impl.h"
#include "ops/cuda/sparse/block_sparse.h"

namespace ultraflash::cuda {
namespace {

// The kernels read the first numbers of a place in device memory.
static_assert(offsetof(kernels::PlaceNumbers, first_frame) == offsetof(SparsePlace, first_frame) &&
              offsetof(kernels::PlaceNumbers, first_slot) == offsetof(SparsePlace, first_slot));

const SparsePlace* place_of(const GroupPlace& place) {
  UF_CHECK(place.device.defined(), "a place that update_place has not seen");
  return reinterpret_cast<const SparsePlace*>(place.device.raw());
}

SparseShape shape_of(const Tensor& q, int64_t dim, const WindowGrid& grid, int64_t heads,
                     const GroupPlace& place) {
  SparseShape shape;
  // Attention in e4m3 is bf16 around it.
  if (q.dtype() != DType::kF32 && q.dtype() != DType::kBF16 && q.dtype() != DType::kF8E4M3) {
    refuse_dtype(q.dtype());
  }
  shape.type = q.dtype() == DType::kF32 ? SparseType::kF32 : SparseType::kBF16;
  shape.batch = q.dim(0);
  shape.heads = heads;
  shape.head_dim = dim / heads;
  shape.frames = grid.grid.frames;
  shape.height = grid.grid.height;
  shape.width = grid.grid.width;
  shape.window_frames = grid.window.frames;
  shape.window_height = grid.window.height;
  shape.window_width = grid.window.width;
  shape.cached_blocks = place.cached_blocks;
  shape.capacity_blocks = place.capacity_blocks;
  UF_CHECK(shape.head_dim <= 256 && dim % 8 == 0,
           "block-sparse attention: {} heads of {}; heads of at most 256 and a width that is a "
           "multiple of 8 are needed",
           heads, shape.head_dim);
  return shape;
}

SparseLists lists_of(const BlockMask& mask) {
  SparseLists lists;
  lists.mask = reinterpret_cast<uint8_t*>(mask.mask.mutable_raw());
  lists.indices = reinterpret_cast<int32_t*>(mask.indices.mutable_raw());
  lists.counts = reinterpret_cast<int32_t*>(mask.counts.mutable_raw());
  lists.order = reinterpret_cast<int32_t*>(mask.order.mutable_raw());
  return lists;
}

}  // namespace

BlockMask CudaExecutor::empty_lists(const Shape& shape) {
  BlockMask mask;
  mask.indices = do_empty(DType::kI32, shape);
  mask.counts = do_empty(DType::kI32, {shape[0], shape[1], shape[2]});
  mask.order = do_empty(DType::kI32, {shape[0] * shape[1] * shape[2]});
  return mask;
}

WindowCache CudaExecutor::do_window_cache(DType dtype, int64_t batch, int64_t blocks,
                                          const WindowShape& window, int64_t dim, int64_t heads) {
  if (!fp8_attention_ || dtype != DType::kBF16) {
    return Executor::do_window_cache(dtype, batch, blocks, window, dim, heads);
  }
  if (dim != heads * 128 || window.tokens() != 128) {
    throw_error(StatusCode::kUnsupported,
                "attention in fp8 takes heads of 128 and windows of 128 tokens; this model has {} "
                "and {}",
                dim / heads, window.tokens());
  }
  return {do_empty(DType::kF8E4M3, {batch, blocks, window.tokens(), dim}),
          do_empty(DType::kF8E4M3, {batch, blocks, dim, window.tokens()}),
          do_empty(dtype, {batch, blocks, dim}), do_empty(DType::kF32, {heads})};
}

WindowedQueries CudaExecutor::do_qkv_to_windows(const Tensor& qkv, const Tensor& norm_q,
                                                const Tensor& norm_k, float eps,
                                                const WindowGrid& grid, int64_t heads,
                                                const GroupPlace& place, WindowCache& cache) {
  const int64_t dim = qkv.dim(2) / 3;
  const SparseShape shape = shape_of(qkv, dim, grid, heads, place);
  // The table of a group serves all its layers: their places differ in the slots alone. It lives
  // beside what repeat() works in, and is filled there, so that every replay fills it anew.
  const auto wanted = static_cast<int64_t>(rotary_table_bytes(shape));
  if (!group_rotary_.defined() || group_rotary_.numel() < wanted) {
    group_rotary_ = arena_->allocate(DType::kU8, {wanted});
    group_rotary_filled_ = false;
    ++recordings_epoch_;  // those recorded before read the old one
  }
  if (!group_rotary_filled_) {
    UF_CUDA_TRY(fill_rotary_table(shape, place_of(place),
                                  reinterpret_cast<float*>(group_rotary_.mutable_raw()), stream_));
    group_rotary_filled_ = true;
  }
  WindowedQueries queries;
  const bool fp8 = cache.k.dtype() == DType::kF8E4M3;
  queries.q = do_empty(cache.k.dtype(), {shape.batch, grid.blocks(), grid.window.tokens(), dim});
  queries.pooled = do_empty(qkv.dtype(), {shape.batch, grid.blocks(), dim});
  WindowScatterArgs args;
  args.qkv = qkv.raw();
  args.norm_q = reinterpret_cast<const float*>(norm_q.raw());
  args.norm_k = reinterpret_cast<const float*>(norm_k.raw());
  args.rotary = reinterpret_cast<const float*>(group_rotary_.raw());
  args.place = place_of(place);
  args.eps = eps;
  args.q = queries.q.mutable_raw();
  args.pooled_q = queries.pooled.mutable_raw();
  args.k = cache.k.mutable_raw();
  args.v = cache.v.mutable_raw();
  args.pooled_k = cache.pooled_k.mutable_raw();
  if (fp8) args.scales = reinterpret_cast<float*>(cache.scales.mutable_raw());
  UF_CUDA_TRY(cuda::qkv_to_windows(shape, args, stream_));
  return queries;
}

BlockMask CudaExecutor::do_select_blocks(const WindowedQueries& queries, const WindowCache& cache,
                                         const WindowGrid& grid, int64_t heads,
                                         const GroupPlace& place, const BlockSelection& selection) {
  const SparseShape shape = shape_of(queries.pooled, queries.pooled.dim(2), grid, heads, place);
  SparseSelection wanted;
  wanted.local_range = selection.local_range;
  wanted.top_k = selection.top_k;
  wanted.blocks_per_chunk = selection.blocks_per_chunk;
  const Shape lists{shape.batch, heads, shape.query_blocks(), shape.key_blocks()};
  BlockMask mask = empty_lists(lists);
  mask.mask = do_empty(DType::kU8, lists);
  const auto bytes = static_cast<int64_t>(select_blocks_scratch_bytes(shape, wanted));
  const Tensor scratch = do_empty(DType::kU8, {bytes});
  UF_CUDA_TRY(cuda::select_blocks(shape, wanted, queries.pooled.raw(), cache.pooled_k.raw(),
                                  place_of(place), lists_of(mask), scratch.mutable_raw(), stream_));
  return mask;
}

BlockMask CudaExecutor::do_block_mask_from(const Tensor& mask) {
  BlockMask result = empty_lists(mask.shape());
  result.mask = mask.device().type == DeviceType::kCpu ? upload(mask, mask.dtype()) : mask;
  // Lists depend on the number of query and key blocks alone, so any grid that has them will do.
  const int64_t spatial = std::gcd(mask.dim(2), mask.dim(3));
  SparseShape shape;
  shape.batch = mask.dim(0);
  shape.heads = mask.dim(1);
  shape.head_dim = 8;
  shape.window_frames = shape.window_height = shape.window_width = 1;
  shape.frames = spatial > 0 ? mask.dim(2) / spatial : 0;
  shape.height = 1;
  shape.width = spatial;
  shape.cached_blocks = spatial > 0 ? mask.dim(3) / spatial - shape.frames : 0;
  UF_CHECK(shape.cached_blocks >= 0, "block_mask_from: mask {}", mask.to_string());
  UF_CUDA_TRY(cuda::lists_from_mask(shape, reinterpret_cast<const uint8_t*>(result.mask.raw()),
                                    lists_of(result), stream_));
  return result;
}

Tensor CudaExecutor::do_block_sparse_attention(const WindowedQueries& queries,
                                               const WindowCache& cache, const BlockMask& mask,
                                               const WindowGrid& grid, int64_t heads,
                                               const GroupPlace& place) {
  const int64_t dim = queries.q.dim(3);
  const SparseShape shape = shape_of(queries.q, dim, grid, heads, place);
  const bool fp8 = queries.q.dtype() == DType::kF8E4M3;
  Tensor out =
      do_empty(fp8 ? DType::kBF16 : queries.q.dtype(), {shape.batch, grid.grid.tokens(), dim});
  BlockSparseArgs args;
  args.q = queries.q.raw();
  args.k = cache.k.raw();
  args.v = cache.v.raw();
  args.lists = lists_of(mask);
  args.place = place_of(place);
  if (fp8) args.scales = reinterpret_cast<const float*>(cache.scales.raw());
  args.out = out.mutable_raw();
  args.ticket = reinterpret_cast<uint32_t*>(sparse_ticket_.mutable_raw());
  const SparseKernel kernel = plain_ ? SparseKernel::kPlain : SparseKernel::kAuto;
  UF_CUDA_TRY(cuda::block_sparse_attention(shape, args, kernel, stream_));
  return out;
}

}  // namespace ultraflash::cuda

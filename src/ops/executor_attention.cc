// Attention of an executor: caches, dense, causal, to a text, block-sparse. Argument checks, and
// the composites that executors may override.
#include "core/check.h"
#include "ops/executor.h"
#include "ops/executor_checks.h"
#include "ops/op_timer.h"

namespace ultraflash {
namespace {

void check_qkv(const Tensor& qkv, const Tensor& norm_q, const Tensor& norm_k, int64_t tokens,
               int64_t heads, const char* op) {
  require_rank(qkv, 3, op, "qkv");
  require_dense(qkv, op, "qkv");
  UF_CHECK(qkv.dim(2) % 3 == 0 && qkv.dim(1) == tokens, "{}: qkv {} for a grid of {} tokens", op,
           qkv.to_string(), tokens);
  const int64_t dim = qkv.dim(2) / 3;
  require_heads(dim, heads, op);
  UF_CHECK(dim / heads % 2 == 0, "{}: head size {} is odd", op, dim / heads);
  require_vector(norm_q, dim, op, "norm_q");
  require_vector(norm_k, dim, op, "norm_k");
}

void check_window_cache(const WindowCache& cache, const WindowGrid& grid, const GroupPlace& place,
                        int64_t batch, int64_t dim, DType dtype, const char* op) {
  const Shape expected{batch, place.capacity_blocks * grid.spatial_blocks(), grid.window.tokens(),
                       dim};
  const bool own = cache.scales.defined();  // the executor's own layout
  UF_CHECK(cache.k.defined() && cache.v.defined() && cache.k.shape() == expected &&
               cache.v.dtype() == cache.k.dtype() && cache.v.numel() == expected.numel() &&
               (own || (cache.k.dtype() == dtype && cache.v.shape() == expected)),
           "{}: cache {} and {}, expected {}", op, cache.k.to_string(), cache.v.to_string(),
           expected.to_string());
  UF_CHECK(cache.pooled_k.defined() && cache.pooled_k.shape() == (Shape{batch, expected[1], dim}),
           "{}: pooled keys {}", op, cache.pooled_k.to_string());
  UF_CHECK(place.cached_blocks + grid.temporal_blocks() <= place.capacity_blocks &&
               place.cached_blocks >= 0 && place.first_slot >= 0,
           "{}: {} cached and {} new temporal blocks in a ring of {}", op, place.cached_blocks,
           grid.temporal_blocks(), place.capacity_blocks);
}

}  // namespace

KvCache Executor::kv_cache(DType dtype, int64_t batch, int64_t tokens, int64_t dim, int64_t heads) {
  UF_CHECK(batch > 0 && tokens >= 0, "kv_cache: {} tokens of {} samples", tokens, batch);
  require_heads(dim, heads, "kv_cache");
  return do_kv_cache(dtype, batch, tokens, dim, heads);
}

WindowCache Executor::window_cache(DType dtype, int64_t batch, int64_t blocks,
                                   const WindowShape& window, int64_t dim, int64_t heads) {
  UF_CHECK(batch > 0 && blocks >= 0, "window_cache: {} blocks of {} samples", blocks, batch);
  require_heads(dim, heads, "window_cache");
  return do_window_cache(dtype, batch, blocks, window, dim, heads);
}

WindowCache Executor::do_window_cache(DType dtype, int64_t batch, int64_t blocks,
                                      const WindowShape& window, int64_t dim, int64_t /*heads*/) {
  const Shape shape{batch, blocks, window.tokens(), dim};
  return {do_empty(dtype, shape), do_empty(dtype, shape), do_empty(dtype, {batch, blocks, dim})};
}

KvCache Executor::do_kv_cache(DType dtype, int64_t batch, int64_t tokens, int64_t dim,
                              int64_t /*heads*/) {
  const Shape shape{batch, tokens, dim};
  return {do_empty(dtype, shape), do_empty(dtype, shape)};
}

Tensor Executor::qkv_to_cache(const Tensor& qkv, const Tensor& norm_q, const Tensor& norm_k,
                              float eps, const TokenGrid& grid, int64_t heads,
                              const ChunkPlace& place, KvCache& cache) {
  check_qkv(qkv, norm_q, norm_k, grid.tokens(), heads, "qkv_to_cache");
  const Shape expected{qkv.dim(0), place.ring_end * grid.tokens_per_frame(), qkv.dim(2) / 3};
  const bool own = cache.scales.defined();  // the executor's own layout
  UF_CHECK(cache.k.defined() && cache.v.defined() && cache.k.shape() == expected &&
               cache.v.dtype() == cache.k.dtype() && cache.v.numel() >= expected.numel() &&
               (own || (cache.v.shape() == expected && cache.k.dtype() == qkv.dtype())),
           "qkv_to_cache: cache {} and {}, expected {}", cache.k.to_string(), cache.v.to_string(),
           expected.to_string());
  UF_CHECK(place.first_slot >= 0 && place.first_slot < place.ring_end && place.ring_begin >= 0 &&
               place.ring_begin < place.ring_end && place.slot_of(grid.frames - 1) < place.ring_end,
           "qkv_to_cache: {} frames at slot {} of a ring [{}, {})", grid.frames, place.first_slot,
           place.ring_begin, place.ring_end);
  const OpTimer timer(*this, op_log_, "qkv_to_cache", [&] { return element_cost(qkv, 2.0); });
  return do_qkv_to_cache(qkv, norm_q, norm_k, eps, grid, heads, place, cache);
}

Tensor Executor::attention_cached(const Tensor& q, const KvCache& cache, int64_t heads,
                                  int64_t tokens_per_frame, const ChunkPlace& place) {
  require_rank(q, 3, "attention_cached", "q");
  require_contiguous(q, "attention_cached", "q");
  require_heads(q.dim(2), heads, "attention_cached");
  UF_CHECK(cache.k.defined() && cache.k.dtype() == q.dtype() && cache.k.dim(0) == q.dim(0) &&
               cache.k.dim(2) == q.dim(2) && place.visible_frames > 0 &&
               place.visible_frames * tokens_per_frame <= cache.k.dim(1),
           "attention_cached: q {}, cache {}, {} visible frames of {} tokens", q.to_string(),
           cache.k.to_string(), place.visible_frames, tokens_per_frame);
  const OpTimer timer(*this, op_log_, "attention_cached", [&] {
    return attention_cost(q, place.visible_frames * tokens_per_frame, q.dim(0));
  });
  return do_attention_cached(q, cache, heads, tokens_per_frame, place);
}

Tensor Executor::attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                           const AttentionOptions& options) {
  for (const Tensor* x : {&q, &k, &v}) {
    require_rank(*x, 3, "attention", "q, k or v");
    require_compute(*x, "attention", "q, k or v");
    UF_CHECK(x->dtype() == q.dtype() && x->dim(2) == q.dim(2) && x->stride(2) == 1 &&
                 (x->dim(0) == q.dim(0) || (x != &q && x->dim(0) == 1)),
             "attention: {} beside q {}", x->to_string(), q.to_string());
  }
  UF_CHECK(k.dim(1) == v.dim(1), "attention: k {} and v {}", k.to_string(), v.to_string());
  require_heads(q.dim(2), heads, "attention");
  UF_CHECK(options.keys <= k.dim(1), "attention: {} keys of {}", options.keys, k.to_string());
  const int64_t keys = options.keys < 0 ? k.dim(1) : options.keys;
  if (options.key_lengths.defined()) {
    UF_CHECK(options.key_lengths.shape() == Shape{q.dim(0)} &&
                 options.key_lengths.dtype() == DType::kI64,
             "attention: key lengths {}", options.key_lengths.to_string());
  }
  if (options.relative_bias.defined()) {
    const Tensor& bias = options.relative_bias;
    UF_CHECK(bias.dtype() == DType::kF32 && bias.contiguous() &&
                 bias.shape() == Shape({heads, q.dim(1) + keys - 1}),
             "attention: bias {} for {} keys and {} queries", bias.to_string(), keys, q.dim(1));
  }
  const OpTimer timer(*this, op_log_, "attention",
                      [&] { return attention_cost(q, keys, k.dim(0)); });
  if (options.chunk_mask == ChunkMask::kNone) return do_attention(q, k, v, heads, options);
  const int64_t halves = options.chunk_mask == ChunkMask::kTeacherForcing ? 2 : 1;
  UF_CHECK(options.keys < 0 && !options.key_lengths.defined() && !options.relative_bias.defined() &&
               k.shape() == q.shape() && options.chunk_tokens > 0 &&
               q.dim(1) % (halves * options.chunk_tokens) == 0,
           "attention: q {} and k {} in chunks of {}", q.to_string(), k.to_string(),
           options.chunk_tokens);
  return do_attention_in_chunks(q, k, v, heads, options);
}

Tensor Executor::cross_attention(const Tensor& x, const Linear& q, const Tensor& norm_q, float eps,
                                 const CrossKeys& keys, int64_t heads, const Linear& o) {
  require_rank(x, 3, "cross_attention", "x");
  require_product_input(x, "cross_attention");
  UF_CHECK(q.prepared != nullptr && o.prepared != nullptr,
           "cross_attention: a weight was not prepared");
  UF_CHECK(x.dim(2) == q.in_features && q.out_features == o.in_features,
           "cross_attention: x {} meets weights {} -> {} and {} -> {}", x.to_string(),
           q.in_features, q.out_features, o.in_features, o.out_features);
  require_vector(norm_q, q.out_features, "cross_attention", "norm_q");
  require_heads(q.out_features, heads, "cross_attention");
  for (const Tensor* side : {&keys.k, &keys.v}) {
    require_rank(*side, 3, "cross_attention", "k or v");
    UF_CHECK(side->dim(2) == q.out_features && side->stride(2) == 1 &&
                 side->dim(1) == keys.k.dim(1) && (side->dim(0) == x.dim(0) || side->dim(0) == 1),
             "cross_attention: {} for {} columns of a batch of {}", side->to_string(),
             q.out_features, x.dim(0));
  }
  UF_CHECK(!keys.distinct.defined() ||
               (keys.distinct.shape() == Shape{1} && keys.distinct.dtype() == DType::kI64),
           "cross_attention: distinct keys {}", keys.distinct.to_string());
  const OpTimer timer(*this, op_log_, "cross_attention", [&] {
    // Of the products alone: how many keys an executor reads is its own affair.
    OpCost cost = product_cost(x, q);
    const OpCost second = product_cost(x, o);
    cost.flops += second.flops;
    cost.bytes += second.bytes;
    return cost;
  });
  return do_cross_attention(x, q, norm_q, eps, keys, heads, o);
}

Tensor Executor::do_cross_attention(const Tensor& x, const Linear& q, const Tensor& norm_q,
                                    float eps, const CrossKeys& keys, int64_t heads,
                                    const Linear& o) {
  Tensor y = do_rms_norm(do_linear(x, q, Activation::kNone), norm_q, eps);
  y = do_attention(y, keys.k, keys.v, heads, {});
  return do_linear(y, o, Activation::kNone);
}

Tensor Executor::do_attention_in_chunks(const Tensor& q, const Tensor& k, const Tensor& v,
                                        int64_t heads, const AttentionOptions& options) {
  AttentionOptions plain;
  plain.scale = options.scale;
  const int64_t chunk = options.chunk_tokens;
  const bool forced = options.chunk_mask == ChunkMask::kTeacherForcing;
  const int64_t tokens = forced ? q.dim(1) / 2 : q.dim(1);
  const Tensor out = do_empty(q.dtype(), q.shape());
  for (int64_t begin = 0; begin < q.dim(1); begin += chunk) {
    const int64_t end = begin + chunk;
    const auto keys = [&](const Tensor& x) {
      if (begin < tokens) return x.slice(1, 0, end);
      const int64_t before = begin - tokens;
      Tensor joined = do_empty(x.dtype(), x.shape().with(1, before + chunk));
      if (before > 0) do_copy(joined.slice(1, 0, before), x.slice(1, 0, before));
      do_copy(joined.slice(1, before, before + chunk), x.slice(1, begin, end));
      return joined;
    };
    do_copy(out.slice(1, begin, end),
            do_attention(q.slice(1, begin, end), keys(k), keys(v), heads, plain));
  }
  return out;
}

WindowedQueries Executor::qkv_to_windows(const Tensor& qkv, const Tensor& norm_q,
                                         const Tensor& norm_k, float eps, const WindowGrid& grid,
                                         int64_t heads, const GroupPlace& place,
                                         WindowCache& cache) {
  check_qkv(qkv, norm_q, norm_k, grid.grid.tokens(), heads, "qkv_to_windows");
  check_window_cache(cache, grid, place, qkv.dim(0), qkv.dim(2) / 3, qkv.dtype(), "qkv_to_windows");
  const OpTimer timer(*this, op_log_, "qkv_to_windows", [&] { return element_cost(qkv, 2.0); });
  return do_qkv_to_windows(qkv, norm_q, norm_k, eps, grid, heads, place, cache);
}

BlockMask Executor::select_blocks(const WindowedQueries& queries, const WindowCache& cache,
                                  const WindowGrid& grid, int64_t heads, const GroupPlace& place,
                                  const BlockSelection& selection) {
  require_rank(queries.pooled, 3, "select_blocks", "pooled queries");
  const int64_t dim = queries.pooled.dim(2);
  check_window_cache(cache, grid, place, queries.pooled.dim(0), dim, queries.pooled.dtype(),
                     "select_blocks");
  require_heads(dim, heads, "select_blocks");
  UF_CHECK(selection.top_k > 0 && selection.local_range > 0 && selection.blocks_per_chunk > 0,
           "select_blocks: top-k {}, local range {}, {} blocks per chunk", selection.top_k,
           selection.local_range, selection.blocks_per_chunk);
  const OpTimer timer(*this, op_log_, "select_blocks",
                      [&] { return element_cost(queries.pooled, 2.0); });
  return do_select_blocks(queries, cache, grid, heads, place, selection);
}

BlockMask Executor::block_mask_from(const Tensor& mask) {
  require_rank(mask, 4, "block_mask_from", "mask");
  UF_CHECK(dtype_size(mask.dtype()) == 1 && mask.contiguous(), "block_mask_from: mask {}",
           mask.to_string());
  return do_block_mask_from(mask);
}

Tensor Executor::block_sparse_attention(const WindowedQueries& queries, const WindowCache& cache,
                                        const BlockMask& mask, const WindowGrid& grid,
                                        int64_t heads, const GroupPlace& place) {
  require_rank(queries.q, 4, "block_sparse_attention", "q");
  const int64_t dim = queries.q.dim(3);
  check_window_cache(cache, grid, place, queries.q.dim(0), dim, queries.q.dtype(),
                     "block_sparse_attention");
  require_heads(dim, heads, "block_sparse_attention");
  const Shape expected{queries.q.dim(0), heads, grid.blocks(),
                       (place.cached_blocks + grid.temporal_blocks()) * grid.spatial_blocks()};
  UF_CHECK(mask.mask.defined() && mask.mask.shape() == expected,
           "block_sparse_attention: mask {}, expected {}", mask.mask.to_string(),
           expected.to_string());
  const OpTimer timer(*this, op_log_, "block_sparse_attention", [&] {
    const Tensor counts = to_host(mask.counts);
    double pairs = 0.0;
    for (const int32_t n : counts.span<int32_t>()) pairs += n;
    const auto tokens = static_cast<double>(grid.window.tokens());
    const double pair_flops = 4.0 * tokens * tokens * static_cast<double>(dim / heads);
    return OpCost{fmt::format("{} blocks, {:.1f} keys each", grid.blocks(),
                              pairs / static_cast<double>(heads * grid.blocks())),
                  pairs * pair_flops, element(queries.q) * 4.0 * count(queries.q)};
  });
  return do_block_sparse_attention(queries, cache, mask, grid, heads, place);
}

}  // namespace ultraflash

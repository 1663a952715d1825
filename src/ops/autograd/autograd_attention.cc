// Dense and block-sparse attention.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "ops/autograd/autograd_impl.h"
#include "ops/autograd/functions.h"

namespace ultraflash::autograd {
namespace {

// [batch, tokens, dim] -> [batch, heads, tokens, head_dim], a view.
at::Tensor by_heads(const at::Tensor& x, int64_t heads) {
  return x.unflatten(2, {heads, x.size(2) / heads}).transpose(1, 2);
}

at::Tensor from_heads(const at::Tensor& x) { return x.transpose(1, 2).flatten(2); }

std::optional<double> scale_of(const AttentionOptions& options) {
  if (options.scale == 0.0F) return std::nullopt;  // 1 / sqrt(head_dim)
  return static_cast<double>(options.scale);
}

// Where a tensor of a ring is overwritten: the first element of axis 1 and its count, in order.
using Segments = std::vector<std::pair<int64_t, int64_t>>;

// `slot_of(i)` for i in [0, count), joined into runs, each slot `unit` elements.
template <typename SlotOf>
Segments segments_of(int64_t count, int64_t unit, const SlotOf& slot_of) {
  Segments segments;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = slot_of(i) * unit;
    if (!segments.empty() && segments.back().first + segments.back().second == begin) {
      segments.back().second += unit;
    } else {
      segments.emplace_back(begin, unit);
    }
  }
  return segments;
}

// A new cache: `old` with `value` written along axis 1.
Tensor written(const Tensor& old, const at::Tensor& value, const Segments& segments) {
  if (segments.size() == 1 && segments[0].second == old.dim(1)) return from_torch(value);
  at::Tensor cache = to_torch(old);
  int64_t done = 0;
  for (const auto& [begin, count] : segments) {
    cache = at::slice_scatter(cache, value.narrow(1, done, count), 1, begin, begin + count);
    done += count;
  }
  return from_torch(cache);
}

// The parts of axis 1 one after the other.
at::Tensor gathered(const at::Tensor& x, const Segments& segments) {
  if (segments.size() == 1) return x.narrow(1, segments[0].first, segments[0].second);
  std::vector<at::Tensor> parts;
  for (const auto& [begin, count] : segments) parts.push_back(x.narrow(1, begin, count));
  return at::cat(parts, 1);
}

// [batch, tokens, dim] -> [batch, blocks, window_tokens, dim], padded with zeros.
at::Tensor to_windows(const at::Tensor& x, const WindowGrid& grid) {
  const TokenGrid& g = grid.grid;
  const WindowShape& w = grid.window;
  const int64_t t = grid.temporal_blocks();
  const int64_t r = grid.block_rows();
  const int64_t c = grid.block_columns();
  const int64_t dim = x.size(2);
  const at::Tensor padded = at::constant_pad_nd(
      x.view({x.size(0), g.frames, g.height, g.width, dim}),
      {0, 0, 0, c * w.width - g.width, 0, r * w.height - g.height, 0, t * w.frames - g.frames});
  return padded.view({x.size(0), t, w.frames, r, w.height, c, w.width, dim})
      .permute({0, 1, 3, 5, 2, 4, 6, 7})
      .reshape({x.size(0), t * r * c, w.tokens(), dim})
      .contiguous();
}

// Inverse of to_windows; padding is dropped.
at::Tensor from_windows(const at::Tensor& x, const WindowGrid& grid) {
  const TokenGrid& g = grid.grid;
  const WindowShape& w = grid.window;
  const int64_t t = grid.temporal_blocks();
  const int64_t r = grid.block_rows();
  const int64_t c = grid.block_columns();
  const int64_t dim = x.size(-1);
  return x.reshape({x.size(0), t, r, c, w.frames, w.height, w.width, dim})
      .permute({0, 1, 4, 2, 5, 3, 6, 7})
      .reshape({x.size(0), t * w.frames, r * w.height, c * w.width, dim})
      .narrow(1, 0, g.frames)
      .narrow(2, 0, g.height)
      .narrow(3, 0, g.width)
      .reshape({x.size(0), g.tokens(), dim});
}

at::Tensor block_means(const at::Tensor& windows) {
  return windows.mean({2}, /*keepdim=*/false, at::kFloat).to(windows.scalar_type());
}

// Softmax attention where each query block reads its own list of key blocks: q [batch, heads,
// tokens, head_dim] in windows of `window` tokens, k and v likewise, mask bool [batch, heads,
// query_blocks, key_blocks] without an empty row. Work and memory follow the longest list.
at::Tensor attend_lists(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& mask, int64_t window) {
  const int64_t longest = mask.sum(-1).max().item<int64_t>();
  const auto [chosen, blocks] = mask.to(at::kByte).topk(longest, -1);
  const int64_t lists = mask.size(0) * mask.size(1) * mask.size(2);  // of all samples and heads
  const int64_t dim = q.size(3);
  const at::Tensor first_block =
      at::arange(mask.size(0) * mask.size(1), blocks.options()).view({mask.size(0), -1, 1, 1}) *
      mask.size(3);
  const at::Tensor rows = (blocks + first_block).flatten();
  const auto gather = [&](const at::Tensor& x) {
    return x.reshape({-1, window * dim})
        .index_select(0, rows)
        .view({lists, 1, longest * window, dim});
  };
  const at::Tensor seen =
      chosen.to(at::kBool).reshape({lists, 1, 1, longest}).repeat_interleave(window, 3);
  return at::scaled_dot_product_attention(q.reshape({lists, 1, window, dim}), gather(k), gather(v),
                                          seen.expand({-1, -1, window, -1}))
      .reshape(q.sizes());
}

}  // namespace

// --- dense attention ---------------------------------------------------------------------------

const at::Tensor& AutogradExecutor::rotary(const TokenGrid& grid, int64_t head_dim,
                                           int64_t first_frame, int64_t period) {
  const std::array<int64_t, 6> key = {grid.frames, grid.height, grid.width,
                                      head_dim,    first_frame, period};
  const auto found = rotary_.find(key);
  if (found != rotary_.end()) return found->second;
  constexpr size_t kLargest =
      256;  // grids of a training run are few; a long stream has many places
  if (rotary_.size() >= kLargest && !keep_tables_) rotary_.clear();
  const int64_t spatial = 2 * (head_dim / 6);
  const int64_t widths[3] = {head_dim - 2 * spatial, spatial, spatial};
  at::Tensor factors = at::empty({grid.tokens(), 1, head_dim / 2}, at::kComplexFloat);
  auto* out = factors.data_ptr<c10::complex<float>>();
  for (int64_t token = 0; token < grid.tokens(); ++token) {
    const int64_t frame = token / grid.tokens_per_frame();
    const int64_t cell = token % grid.tokens_per_frame();
    const int64_t positions[3] = {first_frame + (period > 0 ? frame % period : frame),
                                  cell / grid.width, cell % grid.width};
    for (int axis = 0; axis < 3; ++axis) {
      for (int64_t j = 0; j < widths[axis] / 2; ++j) {
        const double angle =
            static_cast<double>(positions[axis]) *
            std::pow(10000.0, -2.0 * static_cast<double>(j) / static_cast<double>(widths[axis]));
        *out++ = {static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))};
      }
    }
  }
  return rotary_.emplace(key, factors.to(torch_device_)).first->second;
}

Tensor AutogradExecutor::do_qkv_to_cache(const Tensor& qkv, const Tensor& norm_q,
                                         const Tensor& norm_k, float eps, const TokenGrid& grid,
                                         int64_t heads, const ChunkPlace& place, KvCache& cache) {
  const int64_t dim = qkv.dim(2) / 3;
  const at::Tensor& factors = rotary(grid, dim / heads, place.first_frame, place.position_period);
  const std::vector<at::Tensor> parts = in(qkv).split(dim, 2);
  const at::Tensor q = norm_rotate(parts[0], in(norm_q), factors, static_cast<double>(eps));
  const at::Tensor k = norm_rotate(parts[1], in(norm_k), factors, static_cast<double>(eps));
  const Segments segments = segments_of(grid.frames, grid.tokens_per_frame(),
                                        [&](int64_t i) { return place.slot_of(i); });
  cache.k = written(cache.k, k, segments);
  cache.v = written(cache.v, parts[2], segments);
  return from_torch(q);
}

Tensor AutogradExecutor::do_attention_cached(const Tensor& q, const KvCache& cache, int64_t heads,
                                             int64_t tokens_per_frame, const ChunkPlace& place) {
  AttentionOptions options;
  options.keys = place.visible_frames * tokens_per_frame;
  return do_attention(q, cache.k, cache.v, heads, options);
}

Tensor AutogradExecutor::do_attention(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                                      int64_t heads, const AttentionOptions& options) {
  const int64_t batch = q_in.dim(0);
  const int64_t keys = options.keys < 0 ? k_in.dim(1) : options.keys;
  const auto key_heads = [&](const Tensor& x) {
    at::Tensor y = in(x);
    if (keys < y.size(1)) y = y.narrow(1, 0, keys);
    y = by_heads(y, heads);
    return y.size(0) == batch ? y : y.expand({batch, -1, -1, -1});
  };
  const at::Tensor q = by_heads(in(q_in), heads);
  const at::Tensor k = key_heads(k_in);
  const at::Tensor v = key_heads(v_in);
  at::Tensor seen;     // bool [batch, 1, 1, keys]
  at::Tensor nothing;  // bool [batch, 1, 1, 1]: samples without a key give 0
  if (options.key_lengths.defined()) {
    const at::Tensor lengths = in(options.key_lengths).view({batch, 1, 1, 1});
    nothing = lengths <= 0;
    seen = (at::arange(keys, lengths.options()) < lengths).logical_or(nothing);
  }
  at::Tensor y;
  if (options.relative_bias.defined()) {
    // Text alone: short, so the scores are formed, in f32 as the bias is.
    const double scale =
        scale_of(options).value_or(1.0 / std::sqrt(static_cast<double>(q.size(3))));
    at::Tensor scores = at::matmul(q.to(at::kFloat) * scale, k.to(at::kFloat).transpose(2, 3));
    // Row n of the bias is elements n + keys - 1 down to n.
    scores = scores + in(options.relative_bias).unfold(1, keys, 1).flip(2);
    if (seen.defined()) {
      scores = scores.masked_fill(seen.logical_not(), -std::numeric_limits<double>::infinity());
    }
    y = at::matmul(at::softmax(scores, -1), v.to(at::kFloat)).to(q.scalar_type());
  } else {
    y = at::scaled_dot_product_attention(
        q, k, v, seen.defined() ? std::optional(seen) : std::nullopt, /*dropout_p=*/0.0,
        /*is_causal=*/false, scale_of(options));
  }
  if (nothing.defined()) y = y.masked_fill(nothing, 0.0);
  return dense(from_heads(y));
}

Tensor AutogradExecutor::do_attention_in_chunks(const Tensor& q_in, const Tensor& k_in,
                                                const Tensor& v_in, int64_t heads,
                                                const AttentionOptions& options) {
  // One call of the unmasked kernel per chunk: it reads no key in vain, and no mask keeps it from
  // being the fast one.
  const int64_t chunk = options.chunk_tokens;
  const bool forced = options.chunk_mask == ChunkMask::kTeacherForcing;
  const int64_t tokens = forced ? q_in.dim(1) / 2 : q_in.dim(1);
  const int64_t chunks = tokens / chunk;
  std::vector<std::pair<int64_t, int64_t>> query_ranges;
  std::vector<std::pair<int64_t, int64_t>> key_ranges;
  std::vector<size_t> key_counts;  // ranges of keys per range of queries
  for (int64_t i = 0; i < chunks; ++i) {
    query_ranges.emplace_back(i * chunk, (i + 1) * chunk);
    key_ranges.emplace_back(0, (i + 1) * chunk);
    key_counts.push_back(1);
  }
  for (int64_t i = 0; forced && i < chunks; ++i) {
    query_ranges.emplace_back(tokens + i * chunk, tokens + (i + 1) * chunk);
    if (i > 0) key_ranges.emplace_back(0, i * chunk);
    key_ranges.emplace_back(query_ranges.back());
    key_counts.push_back(i > 0 ? 2 : 1);
  }
  const std::vector<at::Tensor> q = token_ranges(in(q_in), query_ranges);
  const std::vector<at::Tensor> k = token_ranges(in(k_in), key_ranges);
  const std::vector<at::Tensor> v = token_ranges(in(v_in), key_ranges);
  std::vector<at::Tensor> parts;
  size_t next = 0;
  for (size_t i = 0; i < q.size(); ++i) {
    const auto keys = [&](const std::vector<at::Tensor>& x) {
      const at::Tensor joined = key_counts[i] == 1 ? x[next] : at::cat({x[next], x[next + 1]}, 1);
      return by_heads(joined, heads);
    };
    parts.push_back(from_heads(at::scaled_dot_product_attention(
        by_heads(q[i], heads), keys(k), keys(v), std::nullopt, 0.0, false, scale_of(options))));
    next += key_counts[i];
  }
  return dense(at::cat(parts, 1));
}

// --- block-sparse attention --------------------------------------------------------------------

WindowedQueries AutogradExecutor::do_qkv_to_windows(const Tensor& qkv, const Tensor& norm_q,
                                                    const Tensor& norm_k, float eps,
                                                    const WindowGrid& grid, int64_t heads,
                                                    const GroupPlace& place, WindowCache& cache) {
  const int64_t dim = qkv.dim(2) / 3;
  const at::Tensor& factors = rotary(grid.grid, dim / heads, place.first_frame, 0);
  const std::vector<at::Tensor> parts = in(qkv).split(dim, 2);
  const auto eps64 = static_cast<double>(eps);
  const at::Tensor q = to_windows(norm_rotate(parts[0], in(norm_q), factors, eps64), grid);
  const at::Tensor k = to_windows(norm_rotate(parts[1], in(norm_k), factors, eps64), grid);
  const Segments segments =
      segments_of(grid.temporal_blocks(), grid.spatial_blocks(),
                  [&](int64_t i) { return place.slot_of(place.cached_blocks + i); });
  cache.k = written(cache.k, k, segments);
  cache.v = written(cache.v, to_windows(parts[2], grid), segments);
  cache.pooled_k = written(cache.pooled_k, block_means(k), segments);
  return {dense(q), dense(block_means(q))};
}

// Copies to a device wait for it, and a stream asks for few different tables: they are kept.
const AutogradExecutor::BlockTables& AutogradExecutor::block_tables(
    const WindowGrid& grid, const GroupPlace& place, const BlockSelection& selection) {
  const int64_t spatial = grid.spatial_blocks();
  const int64_t time = grid.temporal_blocks();
  const int64_t columns = grid.block_columns();
  const std::array<int64_t, 6> key = {time,
                                      spatial,
                                      columns,
                                      place.cached_blocks,
                                      selection.local_range,
                                      selection.blocks_per_chunk};
  const auto found = block_tables_.find(key);
  if (found != block_tables_.end()) return found->second;
  const int64_t keys = (place.cached_blocks + time) * spatial;
  at::Tensor allowed = at::zeros({time, spatial, keys}, at::kBool);
  at::Tensor diagonal = at::zeros({time, spatial, keys}, at::kBool);
  const int64_t low = -(selection.local_range / 2);
  const int64_t high = low + selection.local_range - 1;
  const int64_t chunk = selection.blocks_per_chunk;
  for (int64_t t = 0; t < time; ++t) {
    const int64_t end = ((place.cached_blocks + t) / chunk + 1) * chunk;
    for (int64_t s = 0; s < spatial; ++s) {
      const int64_t row = (t * spatial + s) * keys;
      for (int64_t i = 0; i < keys; ++i) {
        const int64_t dy = i % spatial / columns - s / columns;
        const int64_t dx = i % spatial % columns - s % columns;
        allowed.data_ptr<bool>()[row + i] =
            dy >= low && dy <= high && dx >= low && dx <= high && i / spatial < end;
      }
      if (place.cached_blocks == 0) diagonal.data_ptr<bool>()[row + t * spatial + s] = true;
    }
  }
  BlockTables tables;
  tables.first = allowed.logical_and(allowed.to(at::kInt).cumsum(-1) == 1).to(torch_device_);
  tables.allowed = allowed.to(torch_device_);
  if (place.cached_blocks == 0) tables.diagonal = diagonal.to(torch_device_);
  return block_tables_.emplace(key, std::move(tables)).first->second;
}

BlockMask AutogradExecutor::do_select_blocks(const WindowedQueries& queries,
                                             const WindowCache& cache, const WindowGrid& grid,
                                             int64_t heads, const GroupPlace& place,
                                             const BlockSelection& selection) {
  at::NoGradGuard no_graph;  // a choice has no gradient
  const int64_t batch = queries.pooled.dim(0);
  const int64_t spatial = grid.spatial_blocks();
  const int64_t time = grid.temporal_blocks();
  const int64_t key_time = place.cached_blocks + time;
  const int64_t keys = key_time * spatial;
  const Segments view = segments_of(key_time, spatial, [&](int64_t i) { return place.slot_of(i); });
  const at::Tensor q = by_heads(in(queries.pooled).to(at::kFloat), heads);
  const at::Tensor k = by_heads(gathered(in(cache.pooled_k), view).to(at::kFloat), heads);
  const BlockTables& tables = block_tables(grid, place, selection);
  const at::Tensor scores =
      (at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(q.size(3))))
          .view({batch, heads, time, spatial, keys})
          .masked_fill(tables.allowed.logical_not(), -std::numeric_limits<double>::infinity());
  const at::Tensor p = at::softmax(scores, -1);
  const int64_t kept = std::min(selection.top_k, spatial * keys - 1) + 1;
  const at::Tensor theta = std::get<0>(p.flatten(3).topk(kept, -1)).select(-1, kept - 1);
  at::Tensor mask = (p >= theta.view({batch, heads, time, 1, 1})).logical_and(tables.allowed);
  // The first allowed block of every row, for the rows that kept none.
  mask = mask.logical_or(tables.first.logical_and(mask.any(-1, /*keepdim=*/true).logical_not()));
  if (tables.diagonal.defined()) mask = mask.logical_or(tables.diagonal);
  return do_block_mask_from(
      from_torch(mask.to(at::kByte).view({batch, heads, time * spatial, keys})));
}

// The lists beside the mask are for kernels; here the mask is all that is read.
BlockMask AutogradExecutor::do_block_mask_from(const Tensor& mask) {
  BlockMask result;
  result.mask = from_torch(in(mask));
  return result;
}

Tensor AutogradExecutor::do_block_sparse_attention(const WindowedQueries& queries,
                                                   const WindowCache& cache, const BlockMask& mask,
                                                   const WindowGrid& grid, int64_t heads,
                                                   const GroupPlace& place) {
  const int64_t window = grid.window.tokens();
  const int64_t spatial = grid.spatial_blocks();
  const Segments view = segments_of(place.cached_blocks + grid.temporal_blocks(), spatial,
                                    [&](int64_t i) { return place.slot_of(i); });
  const at::Tensor q = by_heads(in(queries.q).flatten(1, 2), heads);
  const at::Tensor k = by_heads(gathered(in(cache.k), view).flatten(1, 2), heads);
  const at::Tensor v = by_heads(gathered(in(cache.v), view).flatten(1, 2), heads);
  const at::Tensor bits = in(mask.mask).to(at::kBool);  // [batch, heads, query_blocks, key_blocks]
  const at::Tensor any = bits.any(-1, /*keepdim=*/true);
  const at::Tensor filled = bits.logical_or(any.logical_not());  // an empty row reads, for nothing
  at::Tensor y;
  if (bits.numel() * window * window <= options_.largest_mask_elements) {
    const at::Tensor tokens = filled.repeat_interleave(window, 2).repeat_interleave(window, 3);
    y = at::scaled_dot_product_attention(q, k, v, tokens);
  } else {
    y = attend_lists(q, k, v, filled, window);
  }
  y = y * any.repeat_interleave(window, 2).to(y.scalar_type());
  return dense(from_windows(from_heads(y).unflatten(1, {-1, window}), grid));
}

}  // namespace ultraflash::autograd

// Window order, block selection and block-sparse attention of the sparse SR DiT.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/check.h"
#include "ops/cpu/cpu_executor.h"

namespace ultraflash::cpu {
namespace {

// Position of token `i` of window block (t, r, c) in the token grid; valid() tells padding.
struct WindowToken {
  int64_t frame, row, column;
};

WindowToken window_token(const WindowGrid& g, int64_t temporal_block, int64_t spatial_block,
                         int64_t i) {
  const int64_t in_frame = g.window.height * g.window.width;
  return {temporal_block * g.window.frames + i / in_frame,
          spatial_block / g.block_columns() * g.window.height + i % in_frame / g.window.width,
          spatial_block % g.block_columns() * g.window.width + i % g.window.width};
}

bool inside(const WindowToken& t, const TokenGrid& grid) {
  return t.frame < grid.frames && t.row < grid.height && t.column < grid.width;
}

float round_to(DType dtype, float value) {
  return dtype == DType::kBF16 ? to_float(to_bfloat16(value)) : value;
}

// Mean over all rows of a block, padding included, rounded to the storage type.
void pool_block(const Kernels& kernels, DType dtype, const std::byte* rows, int64_t count,
                int64_t dim, float* sums, std::byte* out) {
  std::fill_n(sums, dim, 0.0F);
  float* line = sums + dim;
  const auto element = static_cast<int64_t>(dtype_size(dtype));
  for (int64_t i = 0; i < count; ++i) {
    kernels.convert(dtype, rows + i * dim * element, DType::kF32, line, dim);
    kernels.add(DType::kF32, sums, line, sums, dim);
  }
  const float inverse = 1.0F / static_cast<float>(count);
  for (int64_t d = 0; d < dim; ++d) sums[d] *= inverse;
  kernels.convert(DType::kF32, sums, dtype, out, dim);
}

}  // namespace

WindowedQueries CpuExecutor::do_qkv_to_windows(const Tensor& qkv, const Tensor& norm_q,
                                               const Tensor& norm_k, float eps,
                                               const WindowGrid& grid, int64_t heads,
                                               const GroupPlace& place, WindowCache& cache) {
  const int64_t batch = qkv.dim(0);
  const int64_t dim = qkv.dim(2) / 3;
  const int64_t head_dim = dim / heads;
  const int64_t window = grid.window.tokens();
  const int64_t spatial = grid.spatial_blocks();
  const int64_t blocks = grid.blocks();
  const DType dtype = qkv.dtype();
  const auto element = static_cast<int64_t>(dtype_size(dtype));
  const int64_t line = dim * element;
  update_rotary(grid.grid, head_dim, place.first_frame);
  WindowedQueries queries;
  queries.q = arena_.allocate(dtype, {batch, blocks, window, dim});
  queries.pooled = arena_.allocate(dtype, {batch, blocks, dim});
  const int64_t scratch = 2 * std::max(head_dim, dim);
  prepare_thread_scratch(scratch);
  parallel_for(batch * blocks, 1, [&](int64_t begin, int64_t end) {
    float* memory = thread_scratch(static_cast<size_t>(omp_get_thread_num()), scratch);
    QkvTokenArgs args;
    args.dtype = dtype;
    args.dim = dim;
    args.head_dim = head_dim;
    args.eps = eps;
    args.norm_q = norm_q.data<float>();
    args.norm_k = norm_k.data<float>();
    args.cosine = memory;
    args.sine = memory + head_dim;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t sample = b / blocks;
      const int64_t temporal = b % blocks / spatial;
      const int64_t space = b % spatial;
      const int64_t slot = place.slot_of(place.cached_blocks + temporal);
      const int64_t cache_block = (sample * place.capacity_blocks + slot) * spatial + space;
      std::byte* q_rows = queries.q.mutable_raw() + b * window * line;
      std::byte* k_rows = cache.k.mutable_raw() + cache_block * window * line;
      std::byte* v_rows = cache.v.mutable_raw() + cache_block * window * line;
      for (int64_t i = 0; i < window; ++i) {
        const WindowToken token = window_token(grid, temporal, space, i);
        if (!inside(token, grid.grid)) {
          std::memset(q_rows + i * line, 0, static_cast<size_t>(line));
          std::memset(k_rows + i * line, 0, static_cast<size_t>(line));
          std::memset(v_rows + i * line, 0, static_cast<size_t>(line));
          continue;
        }
        rotary_row(token.frame, token.row, token.column, memory, memory + head_dim);
        const int64_t index =
            ((sample * grid.grid.frames + token.frame) * grid.grid.height + token.row) *
                grid.grid.width +
            token.column;
        args.qkv = qkv.raw() + index * 3 * line;
        args.q_out = q_rows + i * line;
        args.k_out = k_rows + i * line;
        args.v_out = v_rows + i * line;
        kernels_->qkv_token(args);
      }
      pool_block(*kernels_, dtype, q_rows, window, dim, memory,
                 queries.pooled.mutable_raw() + b * line);
      pool_block(*kernels_, dtype, k_rows, window, dim, memory,
                 cache.pooled_k.mutable_raw() + cache_block * line);
    }
  });
  return queries;
}

BlockMask CpuExecutor::do_select_blocks(const WindowedQueries& queries, const WindowCache& cache,
                                        const WindowGrid& grid, int64_t heads,
                                        const GroupPlace& place, const BlockSelection& selection) {
  const int64_t batch = queries.pooled.dim(0);
  const int64_t dim = queries.pooled.dim(2);
  const int64_t head_dim = dim / heads;
  const int64_t spatial = grid.spatial_blocks();
  const int64_t query_tbs = grid.temporal_blocks();
  const int64_t key_tbs = place.cached_blocks + query_tbs;
  const int64_t key_blocks = key_tbs * spatial;
  const DType dtype = queries.pooled.dtype();
  const auto element = static_cast<int64_t>(dtype_size(dtype));
  Tensor mask = arena_.allocate(DType::kU8, {batch, heads, query_tbs * spatial, key_blocks});
  uint8_t* mask_data = mask.mutable_data<uint8_t>();

  const int64_t half = selection.local_range / 2;
  const int64_t columns = grid.block_columns();
  const auto near = [&](int64_t query, int64_t key) {
    const int64_t row = key / columns - (query / columns - half);
    const int64_t column = key % columns - (query % columns - half);
    return row >= 0 && row < selection.local_range && column >= 0 && column < selection.local_range;
  };

  const int64_t packed = kernels_->packed_size(key_blocks, head_dim);
  const int64_t matrix = spatial * key_blocks;
  const int64_t scratch = key_blocks * head_dim + packed + spatial * head_dim + 2 * matrix;
  prepare_thread_scratch(scratch);
  const float inverse_root = 1.0F / std::sqrt(static_cast<float>(head_dim));
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
  for (int64_t index = 0; index < batch * heads * query_tbs; ++index) {
    const int64_t i = index % query_tbs;
    const int64_t head = index / query_tbs % heads;
    const int64_t sample = index / (query_tbs * heads);
    float* keys = thread_scratch(static_cast<size_t>(omp_get_thread_num()), scratch);
    float* packed_keys = keys + key_blocks * head_dim;
    float* rows = packed_keys + packed;
    float* p = rows + spatial * head_dim;
    float* sorted = p + matrix;
    for (int64_t j = 0; j < key_tbs; ++j) {
      const int64_t slot = place.slot_of(j);
      for (int64_t s = 0; s < spatial; ++s) {
        const int64_t block = (sample * place.capacity_blocks + slot) * spatial + s;
        kernels_->convert(dtype, cache.pooled_k.raw() + (block * dim + head * head_dim) * element,
                          DType::kF32, keys + (j * spatial + s) * head_dim, head_dim);
      }
    }
    for (int64_t s = 0; s < spatial; ++s) {
      const int64_t block = (sample * query_tbs + i) * spatial + s;
      kernels_->convert(dtype, queries.pooled.raw() + (block * dim + head * head_dim) * element,
                        DType::kF32, rows + s * head_dim, head_dim);
    }
    kernels_->pack_columns(keys, head_dim, key_blocks, head_dim, packed_keys);
    PackedGemmArgs args;
    args.x = rows;
    args.x_stride = head_dim;
    args.rows = spatial;
    args.inner = head_dim;
    args.packed = packed_keys;
    args.columns = key_blocks;
    args.y = p;
    args.y_stride = key_blocks;
    kernels_->packed_gemm(args);

    const int64_t chunk = selection.blocks_per_chunk;
    const int64_t visible_tbs = std::min(key_tbs, ((place.cached_blocks + i) / chunk + 1) * chunk);
    uint8_t* out = mask_data + ((sample * heads + head) * query_tbs + i) * spatial * key_blocks;
    for (int64_t s = 0; s < spatial; ++s) {
      float* row = p + s * key_blocks;
      uint8_t* allowed = out + s * key_blocks;
      float maximum = -std::numeric_limits<float>::infinity();
      for (int64_t key = 0; key < key_blocks; ++key) {
        allowed[key] = key / spatial < visible_tbs && near(s, key % spatial) ? 1 : 0;
        row[key] = round_to(dtype, round_to(dtype, row[key]) * inverse_root);
        if (allowed[key] != 0) maximum = std::max(maximum, row[key]);
      }
      float total = 0.0F;
      for (int64_t key = 0; key < key_blocks; ++key) {
        row[key] = allowed[key] != 0 ? std::exp(row[key] - maximum) : 0.0F;
        total += row[key];
      }
      for (int64_t key = 0; key < key_blocks; ++key) row[key] = round_to(dtype, row[key] / total);
    }
    std::copy_n(p, matrix, sorted);
    const int64_t rank = std::min(selection.top_k, matrix - 1);
    std::nth_element(sorted, sorted + rank, sorted + matrix, std::greater<>());
    const float theta = sorted[rank];
    for (int64_t s = 0; s < spatial; ++s) {
      uint8_t* row = out + s * key_blocks;
      int64_t first_allowed = -1;
      bool any = false;
      for (int64_t key = 0; key < key_blocks; ++key) {
        if (row[key] == 0) continue;
        if (first_allowed < 0) first_allowed = key;
        row[key] = p[s * key_blocks + key] >= theta ? 1 : 0;
        any = any || row[key] != 0;
      }
      if (!any && first_allowed >= 0) row[first_allowed] = 1;
      if (place.cached_blocks == 0) row[i * spatial + s] = 1;
    }
  }
  return do_block_mask_from(mask);
}

BlockMask CpuExecutor::do_block_mask_from(const Tensor& mask) {
  BlockMask result;
  result.mask = mask.exclusive() || mask.storage()->writable() ? mask : mask.copy();
  result.indices = arena_.allocate(DType::kI32, mask.shape());
  const int64_t key_blocks = mask.dim(3);
  const int64_t rows = mask.dim(0) * mask.dim(1) * mask.dim(2);
  result.counts = arena_.allocate(DType::kI32, {mask.dim(0), mask.dim(1), mask.dim(2)});
  const uint8_t* bits = mask.data<uint8_t>();
  auto* indices = result.indices.mutable_data<int32_t>();
  auto* counts = result.counts.mutable_data<int32_t>();
  parallel_for(rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      int32_t count = 0;
      for (int64_t key = 0; key < key_blocks; ++key) {
        if (bits[r * key_blocks + key] != 0) {
          indices[r * key_blocks + count++] = static_cast<int32_t>(key);
        }
      }
      counts[r] = count;
    }
  });
  return result;
}

Tensor CpuExecutor::do_block_sparse_attention(const WindowedQueries& queries,
                                              const WindowCache& cache, const BlockMask& mask,
                                              const WindowGrid& grid, int64_t heads,
                                              const GroupPlace& place) {
  const int64_t batch = queries.q.dim(0);
  const int64_t dim = queries.q.dim(3);
  const int64_t head_dim = dim / heads;
  const int64_t window = grid.window.tokens();
  const int64_t spatial = grid.spatial_blocks();
  const int64_t query_blocks = grid.blocks();
  const int64_t key_blocks = mask.mask.dim(3);
  const DType dtype = queries.q.dtype();
  const auto element = static_cast<int64_t>(dtype_size(dtype));
  const int64_t head_bytes = head_dim * element;
  Tensor out = arena_.allocate(dtype, {batch, grid.grid.tokens(), dim});

  // Window blocks larger than a key run are cut into several.
  const int64_t runs_per_block = (window + kMaxKeyRun - 1) / kMaxKeyRun;
  const int64_t max_runs = key_blocks * runs_per_block;
  const int64_t scratch = kernels_->attention_scratch(head_dim);
  const int64_t run_floats = (max_runs * static_cast<int64_t>(sizeof(KeyRun)) + 63) / 64 * 16;
  // Real queries of a block are gathered side by side, so that padding costs nothing.
  const int64_t gather_floats = (2 * kMaxTaskQueries * head_dim + 15) / 16 * 16;
  const int64_t needed = run_floats + gather_floats + scratch;
  prepare_thread_scratch(needed);
  const auto* indices = mask.indices.data<int32_t>();
  const auto* counts = mask.counts.data<int32_t>();
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
  for (int64_t index = 0; index < batch * heads * query_blocks; ++index) {
    const int64_t block = index % query_blocks;
    const int64_t head = index / query_blocks % heads;
    const int64_t sample = index / (query_blocks * heads);
    float* memory = thread_scratch(static_cast<size_t>(omp_get_thread_num()), needed);
    auto* runs = reinterpret_cast<KeyRun*>(memory);
    auto* q_rows = reinterpret_cast<std::byte*>(memory + run_floats);
    std::byte* out_rows = q_rows + kMaxTaskQueries * head_bytes;
    int64_t run_count = 0;
    for (int64_t i = 0; i < counts[index]; ++i) {
      const int64_t key = indices[index * key_blocks + i];
      const int64_t slot = place.slot_of(key / spatial);
      const int64_t first =
          ((sample * place.capacity_blocks + slot) * spatial + key % spatial) * window * dim +
          head * head_dim;
      for (int64_t token = 0; token < window; token += kMaxKeyRun) {
        runs[run_count++] = {cache.k.raw() + (first + token * dim) * element,
                             cache.v.raw() + (first + token * dim) * element,
                             std::min(kMaxKeyRun, window - token)};
      }
    }
    AttentionTask task;
    task.dtype = dtype;
    task.head_dim = head_dim;
    task.scale = 1.0F / std::sqrt(static_cast<float>(head_dim));
    task.q = q_rows;
    task.q_stride = head_dim;
    task.runs = runs;
    task.run_count = run_count;
    task.k_stride = dim;
    task.v_stride = dim;
    task.out = out_rows;
    task.out_stride = head_dim;
    task.scratch = memory + run_floats + gather_floats;

    int64_t targets[kMaxTaskQueries];
    const auto flush = [&] {
      kernels_->attention(task);
      for (int64_t i = 0; i < task.queries; ++i) {
        std::memcpy(out.mutable_raw() + (targets[i] * dim + head * head_dim) * element,
                    out_rows + i * head_bytes, static_cast<size_t>(head_bytes));
      }
      task.queries = 0;
    };
    const std::byte* q =
        queries.q.raw() +
        ((sample * query_blocks + block) * window * dim + head * head_dim) * element;
    for (int64_t i = 0; i < window; ++i) {
      const WindowToken token = window_token(grid, block / spatial, block % spatial, i);
      if (!inside(token, grid.grid)) continue;
      std::memcpy(q_rows + task.queries * head_bytes, q + i * dim * element,
                  static_cast<size_t>(head_bytes));
      targets[task.queries++] =
          ((sample * grid.grid.frames + token.frame) * grid.grid.height + token.row) *
              grid.grid.width +
          token.column;
      if (task.queries == kMaxTaskQueries) flush();
    }
    if (task.queries > 0) flush();
  }
  return out;
}

}  // namespace ultraflash::cpu

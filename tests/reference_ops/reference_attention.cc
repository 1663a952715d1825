// Attention of the reference executor: queries, keys and values, caches, windows and block masks.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "reference_ops/reference_executor.h"
#include "reference_ops/reference_math.h"

namespace ultraflash::testing {

Tensor ReferenceExecutor::do_qkv_to_cache(const Tensor& qkv, const Tensor& norm_q,
                                          const Tensor& norm_k, float eps, const TokenGrid& grid,
                                          int64_t heads, const ChunkPlace& place, KvCache& cache) {
  const int64_t dim = qkv.dim(2) / 3;
  Tensor q = make({qkv.dim(0), qkv.dim(1), dim});
  for (int64_t b = 0; b < qkv.dim(0); ++b) {
    for (int64_t n = 0; n < qkv.dim(1); ++n) {
      const int64_t frame = n / grid.tokens_per_frame();
      const int64_t cell = n % grid.tokens_per_frame();
      const float* row = &at(qkv, {b, n, 0});
      std::vector<double> query = rms(row, norm_q.data<float>(), dim, static_cast<double>(eps));
      std::vector<double> key = rms(row + dim, norm_k.data<float>(), dim, static_cast<double>(eps));
      for (std::vector<double>* x : {&query, &key}) {
        rotate(*x, dim / heads, static_cast<double>(place.position_of(frame)),
               static_cast<double>(cell / grid.width), static_cast<double>(cell % grid.width));
      }
      const int64_t slot = place.slot_of(frame) * grid.tokens_per_frame() + cell;
      for (int64_t d = 0; d < dim; ++d) {
        at(q, {b, n, d}) = static_cast<float>(query[static_cast<size_t>(d)]);
        at(cache.k, {b, slot, d}) = static_cast<float>(key[static_cast<size_t>(d)]);
        at(cache.v, {b, slot, d}) = row[2 * dim + d];
      }
    }
  }
  return q;
}

Tensor ReferenceExecutor::do_attention_cached(const Tensor& q, const KvCache& cache, int64_t heads,
                                              int64_t tokens_per_frame, const ChunkPlace& place) {
  AttentionOptions options;
  options.keys = place.visible_frames * tokens_per_frame;
  return do_attention(q, cache.k, cache.v, heads, options);
}

Tensor ReferenceExecutor::do_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                       int64_t heads, const AttentionOptions& options) {
  const int64_t head_dim = q.dim(2) / heads;
  const double scale = options.scale != 0.0F ? static_cast<double>(options.scale)
                                             : 1.0 / std::sqrt(static_cast<double>(head_dim));
  Tensor out = make(q.shape());
  for (int64_t b = 0; b < q.dim(0); ++b) {
    int64_t keys = options.keys < 0 ? k.dim(1) : options.keys;
    if (options.key_lengths.defined()) {
      keys = std::clamp<int64_t>(options.key_lengths.data<int64_t>()[b], 0, keys);
    }
    const int64_t kb = k.dim(0) == 1 ? 0 : b;
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t n = 0; n < q.dim(1); ++n) {
        std::vector<double> score(static_cast<size_t>(keys));
        double maximum = -std::numeric_limits<double>::infinity();
        for (int64_t j = 0; j < keys; ++j) {
          double sum = 0;
          for (int64_t d = 0; d < head_dim; ++d) {
            sum += get(q, {b, n, h * head_dim + d}) * get(k, {kb, j, h * head_dim + d});
          }
          sum *= scale;
          if (options.relative_bias.defined()) {
            const int64_t all_keys = options.keys < 0 ? k.dim(1) : options.keys;
            sum += get(options.relative_bias, {h, n - j + all_keys - 1});
          }
          score[static_cast<size_t>(j)] = sum;
          maximum = std::max(maximum, sum);
        }
        double total = 0;
        for (double& s : score) total += s = std::exp(s - maximum);
        for (int64_t d = 0; d < head_dim; ++d) {
          double sum = 0;
          for (int64_t j = 0; j < keys; ++j) {
            sum += score[static_cast<size_t>(j)] * get(v, {kb, j, h * head_dim + d});
          }
          at(out, {b, n, h * head_dim + d}) = static_cast<float>(keys == 0 ? 0.0 : sum / total);
        }
      }
    }
  }
  return out;
}

Tensor ReferenceExecutor::do_attention_in_chunks(const Tensor& q, const Tensor& k, const Tensor& v,
                                                 int64_t heads, const AttentionOptions& options) {
  const int64_t head_dim = q.dim(2) / heads;
  const double scale = options.scale != 0.0F ? static_cast<double>(options.scale)
                                             : 1.0 / std::sqrt(static_cast<double>(head_dim));
  const bool forced = options.chunk_mask == ChunkMask::kTeacherForcing;
  const int64_t half = forced ? q.dim(1) / 2 : q.dim(1);
  const auto sees = [&](int64_t n, int64_t j) {
    const int64_t query_chunk = n % half / options.chunk_tokens;
    const int64_t key_chunk = j % half / options.chunk_tokens;
    const bool noisy_query = n >= half;
    const bool noisy_key = j >= half;
    if (!noisy_query) return !noisy_key && key_chunk <= query_chunk;
    return noisy_key ? key_chunk == query_chunk : key_chunk < query_chunk;
  };
  Tensor out = make(q.shape());
  for (int64_t b = 0; b < q.dim(0); ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t n = 0; n < q.dim(1); ++n) {
        std::vector<double> weight(static_cast<size_t>(k.dim(1)));
        double total = 0;
        for (int64_t j = 0; j < k.dim(1); ++j) {
          if (!sees(n, j)) continue;
          double sum = 0;
          for (int64_t d = 0; d < head_dim; ++d) {
            sum += get(q, {b, n, h * head_dim + d}) * get(k, {b, j, h * head_dim + d});
          }
          total += weight[static_cast<size_t>(j)] = std::exp(sum * scale);
        }
        for (int64_t d = 0; d < head_dim; ++d) {
          double sum = 0;
          for (int64_t j = 0; j < k.dim(1); ++j) {
            sum += weight[static_cast<size_t>(j)] * get(v, {b, j, h * head_dim + d});
          }
          at(out, {b, n, h * head_dim + d}) = static_cast<float>(sum / total);
        }
      }
    }
  }
  return out;
}

WindowedQueries ReferenceExecutor::do_qkv_to_windows(const Tensor& qkv, const Tensor& norm_q,
                                                     const Tensor& norm_k, float eps,
                                                     const WindowGrid& grid, int64_t heads,
                                                     const GroupPlace& place, WindowCache& cache) {
  const int64_t dim = qkv.dim(2) / 3;
  const TokenGrid& g = grid.grid;
  const WindowShape& w = grid.window;
  WindowedQueries out;
  out.q = make({qkv.dim(0), grid.blocks(), w.tokens(), dim});
  out.pooled = make({qkv.dim(0), grid.blocks(), dim});
  for (int64_t b = 0; b < qkv.dim(0); ++b) {
    for (int64_t tb = 0; tb < grid.temporal_blocks(); ++tb) {
      for (int64_t s = 0; s < grid.spatial_blocks(); ++s) {
        const int64_t query_block = tb * grid.spatial_blocks() + s;
        const int64_t cache_block =
            place.slot_of(place.cached_blocks + tb) * grid.spatial_blocks() + s;
        std::vector<double> q_sum(static_cast<size_t>(dim));
        std::vector<double> k_sum(static_cast<size_t>(dim));
        int64_t i = 0;
        for (int64_t df = 0; df < w.frames; ++df) {
          for (int64_t dy = 0; dy < w.height; ++dy) {
            for (int64_t dx = 0; dx < w.width; ++dx, ++i) {
              const int64_t f = tb * w.frames + df;
              const int64_t y = s / grid.block_columns() * w.height + dy;
              const int64_t x = s % grid.block_columns() * w.width + dx;
              std::vector<double> query(static_cast<size_t>(dim));
              std::vector<double> key(static_cast<size_t>(dim));
              const float* row = nullptr;
              if (f < g.frames && y < g.height && x < g.width) {
                row = &at(qkv, {b, (f * g.height + y) * g.width + x, 0});
                query = rms(row, norm_q.data<float>(), dim, static_cast<double>(eps));
                key = rms(row + dim, norm_k.data<float>(), dim, static_cast<double>(eps));
                for (std::vector<double>* v : {&query, &key}) {
                  rotate(*v, dim / heads, static_cast<double>(place.first_frame + f),
                         static_cast<double>(y), static_cast<double>(x));
                }
              }
              for (int64_t d = 0; d < dim; ++d) {
                at(out.q, {b, query_block, i, d}) =
                    static_cast<float>(query[static_cast<size_t>(d)]);
                at(cache.k, {b, cache_block, i, d}) =
                    static_cast<float>(key[static_cast<size_t>(d)]);
                at(cache.v, {b, cache_block, i, d}) = row == nullptr ? 0.0F : row[2 * dim + d];
                q_sum[static_cast<size_t>(d)] += query[static_cast<size_t>(d)];
                k_sum[static_cast<size_t>(d)] += key[static_cast<size_t>(d)];
              }
            }
          }
        }
        for (int64_t d = 0; d < dim; ++d) {
          const auto count = static_cast<double>(w.tokens());
          at(out.pooled, {b, query_block, d}) =
              static_cast<float>(q_sum[static_cast<size_t>(d)] / count);
          at(cache.pooled_k, {b, cache_block, d}) =
              static_cast<float>(k_sum[static_cast<size_t>(d)] / count);
        }
      }
    }
  }
  return out;
}

BlockMask ReferenceExecutor::do_select_blocks(const WindowedQueries& queries,
                                              const WindowCache& cache, const WindowGrid& grid,
                                              int64_t heads, const GroupPlace& place,
                                              const BlockSelection& selection) {
  const int64_t head_dim = queries.pooled.dim(2) / heads;
  const int64_t spatial = grid.spatial_blocks();
  const int64_t key_tbs = place.cached_blocks + grid.temporal_blocks();
  const int64_t keys = key_tbs * spatial;
  Tensor mask = Tensor::zeros(DType::kU8, {queries.pooled.dim(0), heads, grid.blocks(), keys});
  uint8_t* bits = mask.mutable_data<uint8_t>();
  for (int64_t b = 0; b < queries.pooled.dim(0); ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t tb = 0; tb < grid.temporal_blocks(); ++tb) {
        std::vector<double> p(static_cast<size_t>(spatial * keys));
        std::vector<bool> allowed(static_cast<size_t>(spatial * keys));
        for (int64_t s = 0; s < spatial; ++s) {
          double total = 0;
          for (int64_t key = 0; key < keys; ++key) {
            const int64_t dy = key % spatial / grid.block_columns() - s / grid.block_columns();
            const int64_t dx = key % grid.block_columns() - s % grid.block_columns();
            const int64_t low = -(selection.local_range / 2);
            const int64_t high = low + selection.local_range - 1;
            const int64_t c = selection.blocks_per_chunk;
            const auto index = static_cast<size_t>(s * keys + key);
            allowed[index] = dy >= low && dy <= high && dx >= low && dx <= high &&
                             key / spatial < ((place.cached_blocks + tb) / c + 1) * c;
            if (!allowed[index]) continue;
            double sum = 0;
            const int64_t cache_block = place.slot_of(key / spatial) * spatial + key % spatial;
            for (int64_t d = 0; d < head_dim; ++d) {
              sum += get(queries.pooled, {b, tb * spatial + s, h * head_dim + d}) *
                     get(cache.pooled_k, {b, cache_block, h * head_dim + d});
            }
            p[index] = std::exp(sum / std::sqrt(static_cast<double>(head_dim)));
            total += p[index];
          }
          for (int64_t key = 0; key < keys; ++key) p[static_cast<size_t>(s * keys + key)] /= total;
        }
        std::vector<double> sorted = p;
        std::sort(sorted.begin(), sorted.end(), std::greater<>());
        const double theta =
            sorted[static_cast<size_t>(std::min<int64_t>(selection.top_k, spatial * keys - 1))];
        for (int64_t s = 0; s < spatial; ++s) {
          const int64_t row = ((b * heads + h) * grid.blocks() + tb * spatial + s) * keys;
          int64_t first = -1;
          bool any = false;
          for (int64_t key = 0; key < keys; ++key) {
            const auto index = static_cast<size_t>(s * keys + key);
            if (allowed[index] && first < 0) first = key;
            if (allowed[index] && p[index] >= theta) {
              bits[row + key] = 1;
              any = true;
            }
          }
          if (!any && first >= 0) bits[row + first] = 1;
          if (place.cached_blocks == 0) bits[row + tb * spatial + s] = 1;
        }
      }
    }
  }
  return do_block_mask_from(mask);
}

BlockMask ReferenceExecutor::do_block_mask_from(const Tensor& mask) {
  BlockMask result;
  result.mask = mask;
  return result;
}

Tensor ReferenceExecutor::do_block_sparse_attention(const WindowedQueries& queries,
                                                    const WindowCache& cache, const BlockMask& mask,
                                                    const WindowGrid& grid, int64_t heads,
                                                    const GroupPlace& place) {
  const int64_t dim = queries.q.dim(3);
  const int64_t head_dim = dim / heads;
  const int64_t spatial = grid.spatial_blocks();
  const int64_t keys = mask.mask.dim(3);
  const WindowShape& w = grid.window;
  const uint8_t* bits = mask.mask.data<uint8_t>();
  Tensor out = make({queries.q.dim(0), grid.grid.tokens(), dim});
  for (int64_t b = 0; b < out.dim(0); ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t block = 0; block < grid.blocks(); ++block) {
        const int64_t row = ((b * heads + h) * grid.blocks() + block) * keys;
        for (int64_t i = 0; i < w.tokens(); ++i) {
          const int64_t f = block / spatial * w.frames + i / (w.height * w.width);
          const int64_t y = block % spatial / grid.block_columns() * w.height +
                            i % (w.height * w.width) / w.width;
          const int64_t x = block % grid.block_columns() * w.width + i % w.width;
          if (f >= grid.grid.frames || y >= grid.grid.height || x >= grid.grid.width) continue;
          std::vector<double> score;
          std::vector<std::pair<int64_t, int64_t>> place_of;
          double maximum = -std::numeric_limits<double>::infinity();
          for (int64_t key = 0; key < keys; ++key) {
            if (bits[row + key] == 0) continue;
            const int64_t cache_block = place.slot_of(key / spatial) * spatial + key % spatial;
            for (int64_t j = 0; j < w.tokens(); ++j) {
              double sum = 0;
              for (int64_t d = 0; d < head_dim; ++d) {
                sum += get(queries.q, {b, block, i, h * head_dim + d}) *
                       get(cache.k, {b, cache_block, j, h * head_dim + d});
              }
              sum /= std::sqrt(static_cast<double>(head_dim));
              maximum = std::max(maximum, sum);
              score.push_back(sum);
              place_of.emplace_back(cache_block, j);
            }
          }
          double total = 0;
          for (double& s : score) total += s = std::exp(s - maximum);
          const int64_t token = (f * grid.grid.height + y) * grid.grid.width + x;
          for (int64_t d = 0; d < head_dim; ++d) {
            double sum = 0;
            for (size_t j = 0; j < score.size(); ++j) {
              sum += score[j] *
                     get(cache.v, {b, place_of[j].first, place_of[j].second, h * head_dim + d});
            }
            at(out, {b, token, h * head_dim + d}) =
                static_cast<float>(score.empty() ? 0.0 : sum / total);
          }
        }
      }
    }
  }
  return out;
}

}  // namespace ultraflash::testing

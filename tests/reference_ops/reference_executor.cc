#include "reference_ops/reference_executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

namespace ultraflash::testing {
namespace {

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kGeluErf:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
  }
  return x;
}

// Element of an f32 tensor, strides honoured.
float& at(const Tensor& x, std::initializer_list<int64_t> index) {
  int64_t offset = 0;
  int axis = 0;
  for (const int64_t i : index) offset += i * x.stride(axis++);
  return x.mutable_data<float>()[offset];
}
double get(const Tensor& x, std::initializer_list<int64_t> index) {
  int64_t offset = 0;
  int axis = 0;
  for (const int64_t i : index) offset += i * x.stride(axis++);
  return static_cast<double>(x.data<float>()[offset]);
}

Tensor make(const Shape& shape) { return Tensor::zeros(DType::kF32, shape); }

Tensor map(const Tensor& x, const std::function<double(double)>& f) {
  Tensor y = make(x.shape());
  for (int64_t i = 0; i < x.numel(); ++i) {
    y.mutable_data<float>()[i] = static_cast<float>(f(static_cast<double>(x.data<float>()[i])));
  }
  return y;
}

struct Prepared final : PreparedWeight {
  [[nodiscard]] size_t size_bytes() const override { return 0; }
};

// Row of gate, shift or scale for token n of batch entry b.
double modulation(const Tensor& m, int64_t b, int64_t n, int64_t tokens, int64_t d) {
  const int64_t row = n / (tokens / m.dim(1));
  return get(m, {m.dim(0) == 1 ? 0 : b, row, d});
}

std::vector<double> rms(const float* x, const float* weight, int64_t dim, double eps) {
  double sum = 0;
  for (int64_t i = 0; i < dim; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(dim) + eps);
  std::vector<double> y(static_cast<size_t>(dim));
  for (int64_t i = 0; i < dim; ++i) {
    y[static_cast<size_t>(i)] =
        static_cast<double>(x[i]) * inverse * static_cast<double>(weight[i]);
  }
  return y;
}

// 3-D rotary embedding of one token of `dim` = heads * head_dim values.
void rotate(std::vector<double>& x, int64_t head_dim, double frame, double row, double column) {
  const int64_t spatial = 2 * (head_dim / 6);
  const int64_t widths[3] = {head_dim - 2 * spatial, spatial, spatial};
  const double positions[3] = {frame, row, column};
  for (int64_t head = 0; head < static_cast<int64_t>(x.size()); head += head_dim) {
    int64_t begin = head;
    for (int axis = 0; axis < 3; ++axis) {
      for (int64_t j = 0; j < widths[axis] / 2; ++j) {
        const double angle =
            positions[axis] *
            std::pow(10000.0, -2.0 * static_cast<double>(j) / static_cast<double>(widths[axis]));
        double& a = x[static_cast<size_t>(begin + 2 * j)];
        double& b = x[static_cast<size_t>(begin + 2 * j + 1)];
        const double rotated = a * std::cos(angle) - b * std::sin(angle);
        b = a * std::sin(angle) + b * std::cos(angle);
        a = rotated;
      }
      begin += widths[axis];
    }
  }
}

}  // namespace

Tensor ReferenceExecutor::do_empty(DType dtype, const Shape& shape) {
  return Tensor::zeros(dtype, shape);
}
Tensor ReferenceExecutor::do_to_device(const Tensor& host, DType dtype) {
  return host.to(dtype).copy();
}
Tensor ReferenceExecutor::do_to_host(const Tensor& x) { return x.copy(); }
void ReferenceExecutor::do_fill_zero(const Tensor& x) {
  std::memset(x.mutable_raw(), 0, x.size_bytes());
}
void ReferenceExecutor::do_copy(const Tensor& destination, const Tensor& source) {
  destination.assign(source);
}
void ReferenceExecutor::do_prepare(Linear& linear, const PrepareOptions& /*options*/) {
  linear.prepared = std::make_shared<Prepared>();
}
void ReferenceExecutor::do_prepare(Conv& conv, const PrepareOptions& /*options*/) {
  conv.prepared = std::make_shared<Prepared>();
}

Tensor ReferenceExecutor::do_linear(const Tensor& x, const Linear& weight, Activation activation) {
  const int64_t in = weight.in_features;
  const int64_t out = weight.out_features;
  Tensor y = make(x.shape().with(-1, out));
  const int64_t rows = x.numel() / in;
  for (int64_t r = 0; r < rows; ++r) {
    int64_t column = 0;
    for (size_t part = 0; part < weight.weights.size(); ++part) {
      const Tensor w = weight.weights[part].to(DType::kF32);
      const Tensor bias = weight.biases.empty() ? Tensor() : weight.biases[part].to(DType::kF32);
      for (int64_t o = 0; o < w.dim(0); ++o, ++column) {
        double sum = bias.defined() ? get(bias, {o}) : 0.0;
        for (int64_t i = 0; i < in; ++i) {
          sum += static_cast<double>(x.data<float>()[r * in + i]) * get(w, {o, i});
        }
        y.mutable_data<float>()[r * out + column] = static_cast<float>(activated(activation, sum));
      }
    }
  }
  return y;
}

Tensor ReferenceExecutor::do_temporal_pool(const Tensor& x, const Linear& weight, int64_t frames) {
  Tensor joined = make({x.dim(0), x.dim(1) / frames, x.dim(2), x.dim(3), x.dim(4) * frames});
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t t = 0; t < x.dim(1); ++t)
      for (int64_t h = 0; h < x.dim(2); ++h)
        for (int64_t w = 0; w < x.dim(3); ++w)
          for (int64_t c = 0; c < x.dim(4); ++c)
            at(joined, {b, t / frames, h, w, (t % frames) * x.dim(4) + c}) = at(x, {b, t, h, w, c});
  return do_linear(joined, weight, Activation::kNone);
}

Tensor ReferenceExecutor::do_temporal_grow(const Tensor& x, const Linear& weight, int64_t frames) {
  const Tensor wide = do_linear(x, weight, Activation::kNone);
  const int64_t channels = weight.out_features / frames;
  Tensor y = make({x.dim(0), x.dim(1) * frames, x.dim(2), x.dim(3), channels});
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t t = 0; t < y.dim(1); ++t)
      for (int64_t h = 0; h < x.dim(2); ++h)
        for (int64_t w = 0; w < x.dim(3); ++w)
          for (int64_t c = 0; c < channels; ++c)
            at(y, {b, t, h, w, c}) = at(wide, {b, t / frames, h, w, (t % frames) * channels + c});
  return y;
}

Tensor ReferenceExecutor::do_layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                        float eps) {
  const int64_t dim = x.dim(-1);
  Tensor y = make(x.shape());
  for (int64_t r = 0; r < x.numel() / dim; ++r) {
    const float* row = x.data<float>() + r * dim;
    double mean = 0;
    for (int64_t i = 0; i < dim; ++i) mean += static_cast<double>(row[i]);
    mean /= static_cast<double>(dim);
    double variance = 0;
    for (int64_t i = 0; i < dim; ++i) {
      variance += (static_cast<double>(row[i]) - mean) * (static_cast<double>(row[i]) - mean);
    }
    variance /= static_cast<double>(dim);
    const double inverse = 1.0 / std::sqrt(variance + static_cast<double>(eps));
    for (int64_t i = 0; i < dim; ++i) {
      double value = (static_cast<double>(row[i]) - mean) * inverse;
      if (weight.defined()) value *= get(weight, {i});
      if (bias.defined()) value += get(bias, {i});
      y.mutable_data<float>()[r * dim + i] = static_cast<float>(value);
    }
  }
  return y;
}

Tensor ReferenceExecutor::do_layer_norm_modulate(const Tensor& x, const Tensor& shift,
                                                 const Tensor& scale, float eps) {
  Tensor y = do_layer_norm(x, {}, {}, eps);
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t n = 0; n < x.dim(1); ++n)
      for (int64_t d = 0; d < x.dim(2); ++d)
        at(y, {b, n, d}) =
            static_cast<float>(get(y, {b, n, d}) * (1.0 + modulation(scale, b, n, x.dim(1), d)) +
                               modulation(shift, b, n, x.dim(1), d));
  return y;
}

Tensor ReferenceExecutor::do_rms_norm(const Tensor& x, const Tensor& weight, float eps) {
  const int64_t dim = x.dim(-1);
  Tensor y = make(x.shape());
  for (int64_t r = 0; r < x.numel() / dim; ++r) {
    const std::vector<double> row =
        rms(x.data<float>() + r * dim, weight.data<float>(), dim, static_cast<double>(eps));
    for (int64_t i = 0; i < dim; ++i) {
      y.mutable_data<float>()[r * dim + i] = static_cast<float>(row[static_cast<size_t>(i)]);
    }
  }
  return y;
}

Tensor ReferenceExecutor::do_gated_residual(Tensor x, const Tensor& y, const Tensor& gate) {
  Tensor out = x.copy();
  if (!gate.defined()) {
    for (int64_t i = 0; i < x.numel(); ++i) out.mutable_data<float>()[i] += y.data<float>()[i];
    return out;
  }
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t n = 0; n < x.dim(1); ++n)
      for (int64_t d = 0; d < x.dim(2); ++d)
        at(out, {b, n, d}) = static_cast<float>(
            get(x, {b, n, d}) + get(y, {b, n, d}) * modulation(gate, b, n, x.dim(1), d));
  return out;
}

Tensor ReferenceExecutor::do_channel_norm(const Tensor& x, const Tensor& gamma, bool silu) {
  const int64_t dim = x.dim(-1);
  Tensor y = make(x.shape());
  for (int64_t r = 0; r < x.numel() / dim; ++r) {
    double sum = 0;
    for (int64_t i = 0; i < dim; ++i) {
      const auto v = static_cast<double>(x.data<float>()[r * dim + i]);
      sum += v * v;
    }
    const double factor = std::sqrt(static_cast<double>(dim)) / std::max(std::sqrt(sum), 1e-12);
    for (int64_t i = 0; i < dim; ++i) {
      double v = static_cast<double>(x.data<float>()[r * dim + i]) * factor * get(gamma, {i});
      if (silu) v = activated(Activation::kSilu, v);
      y.mutable_data<float>()[r * dim + i] = static_cast<float>(v);
    }
  }
  return y;
}

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
          if (options.bias_transposed.defined()) sum += get(options.bias_transposed, {h, j, n});
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

Tensor ReferenceExecutor::do_conv2d(const Tensor& x, const Conv& conv,
                                    const Conv2dOptions& options) {
  const Tensor weight = conv.weight.to(DType::kF32);
  const Tensor bias = conv.bias.defined() ? conv.bias.to(DType::kF32) : Tensor();
  const int64_t up = options.upsample;
  const int64_t height = x.dim(2) * up;
  const int64_t width = x.dim(3) * up;
  const int64_t channels = x.dim(4);
  const Padding& pad = options.padding;
  const int64_t out_h = (height + pad.top + pad.bottom - weight.dim(2)) / options.stride + 1;
  const int64_t out_w = (width + pad.left + pad.right - weight.dim(3)) / options.stride + 1;
  Tensor y = make({x.dim(0), x.dim(1), out_h, out_w, weight.dim(0)});
  const auto input = [&](int64_t b, int64_t t, int64_t h, int64_t w, int64_t c) -> double {
    if (h < 0 || w < 0 || h >= height || w >= width) return 0.0;
    if (c < channels) return get(x, {b, t, h / up, w / up, c});
    if (t > 0) return get(x, {b, t - 1, h / up, w / up, c - channels});
    return options.memory.defined() ? get(options.memory, {b, 0, h / up, w / up, c - channels})
                                    : 0.0;
  };
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t t = 0; t < x.dim(1); ++t)
      for (int64_t h = 0; h < out_h; ++h)
        for (int64_t w = 0; w < out_w; ++w)
          for (int64_t o = 0; o < weight.dim(0); ++o) {
            double sum = bias.defined() ? get(bias, {o}) : 0.0;
            for (int64_t c = 0; c < weight.dim(1); ++c)
              for (int64_t kh = 0; kh < weight.dim(2); ++kh)
                for (int64_t kw = 0; kw < weight.dim(3); ++kw)
                  sum +=
                      get(weight, {o, c, kh, kw}) * input(b, t, h * options.stride + kh - pad.top,
                                                          w * options.stride + kw - pad.left, c);
            if (options.residual.defined()) sum += get(options.residual, {b, t, h, w, o});
            at(y, {b, t, h, w, o}) = static_cast<float>(activated(options.activation, sum));
          }
  return y;
}

Tensor ReferenceExecutor::do_causal_conv3d(const Tensor& x, const Conv& conv,
                                           const Conv3dOptions& options) {
  const Tensor weight = conv.weight.to(DType::kF32);
  const Tensor bias = conv.bias.defined() ? conv.bias.to(DType::kF32) : Tensor();
  const int64_t past = options.past.defined() ? options.past.dim(1) : 0;
  const int64_t frames = options.zeros + past + x.dim(1);
  const Padding& pad = options.padding;
  const int64_t out_t = (frames - weight.dim(2)) / options.stride_time + 1;
  const int64_t out_h = x.dim(2) + pad.top + pad.bottom - weight.dim(3) + 1;
  const int64_t out_w = x.dim(3) + pad.left + pad.right - weight.dim(4) + 1;
  Tensor y = make({x.dim(0), out_t, out_h, out_w, weight.dim(0)});
  const auto input = [&](int64_t b, int64_t t, int64_t h, int64_t w, int64_t c) -> double {
    t -= options.zeros;
    if (t < 0 || h < 0 || w < 0 || h >= x.dim(2) || w >= x.dim(3)) return 0.0;
    return t < past ? get(options.past, {b, t, h, w, c}) : get(x, {b, t - past, h, w, c});
  };
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t t = 0; t < out_t; ++t)
      for (int64_t h = 0; h < out_h; ++h)
        for (int64_t w = 0; w < out_w; ++w)
          for (int64_t o = 0; o < weight.dim(0); ++o) {
            double sum = bias.defined() ? get(bias, {o}) : 0.0;
            for (int64_t c = 0; c < weight.dim(1); ++c)
              for (int64_t kt = 0; kt < weight.dim(2); ++kt)
                for (int64_t kh = 0; kh < weight.dim(3); ++kh)
                  for (int64_t kw = 0; kw < weight.dim(4); ++kw)
                    sum += get(weight, {o, c, kt, kh, kw}) * input(b, t * options.stride_time + kt,
                                                                   h + kh - pad.top,
                                                                   w + kw - pad.left, c);
            at(y, {b, t, h, w, o}) = static_cast<float>(sum);
          }
  return y;
}

Tensor ReferenceExecutor::do_pixel_shuffle(const Tensor& x, int64_t r, Activation activation) {
  const int64_t channels = x.dim(4) / (r * r);
  Tensor y = make({x.dim(0), x.dim(1), x.dim(2) * r, x.dim(3) * r, channels});
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t t = 0; t < x.dim(1); ++t)
      for (int64_t h = 0; h < y.dim(2); ++h)
        for (int64_t w = 0; w < y.dim(3); ++w)
          for (int64_t c = 0; c < channels; ++c)
            at(y, {b, t, h, w, c}) = static_cast<float>(
                activated(activation, get(x, {b, t, h / r, w / r, (c * r + h % r) * r + w % r})));
  return y;
}

Tensor ReferenceExecutor::do_patchify(const Tensor& a, const Tensor& b, DType dtype) {
  const int64_t ca = a.dim(4);
  const int64_t cb = b.defined() ? b.dim(4) : 0;
  const int64_t rows = a.dim(2) / 2;
  const int64_t columns = a.dim(3) / 2;
  Tensor tokens = make({a.dim(0), a.dim(1) * rows * columns, (ca + cb) * 4});
  const Tensor fa = a.to(DType::kF32);
  const Tensor fb = b.defined() ? b.to(DType::kF32) : b;
  for (int64_t s = 0; s < a.dim(0); ++s)
    for (int64_t f = 0; f < a.dim(1); ++f)
      for (int64_t h = 0; h < a.dim(2); ++h)
        for (int64_t w = 0; w < a.dim(3); ++w)
          for (int64_t c = 0; c < ca + cb; ++c)
            at(tokens, {s, (f * rows + h / 2) * columns + w / 2, c * 4 + h % 2 * 2 + w % 2}) =
                c < ca ? at(fa, {s, f, h, w, c}) : at(fb, {s, f, h, w, c - ca});
  return tokens.to(dtype);
}

Tensor ReferenceExecutor::do_unpatchify(const Tensor& tokens, const TokenGrid& grid, DType dtype) {
  const int64_t channels = tokens.dim(2) / 4;
  const Tensor in = tokens.to(DType::kF32);
  Tensor y = make({tokens.dim(0), grid.frames, grid.height * 2, grid.width * 2, channels});
  for (int64_t s = 0; s < y.dim(0); ++s)
    for (int64_t f = 0; f < grid.frames; ++f)
      for (int64_t h = 0; h < y.dim(2); ++h)
        for (int64_t w = 0; w < y.dim(3); ++w)
          for (int64_t c = 0; c < channels; ++c)
            at(y, {s, f, h, w, c}) = at(in, {s, (f * grid.height + h / 2) * grid.width + w / 2,
                                             (h % 2 * 2 + w % 2) * channels + c});
  return y.to(dtype);
}

Tensor ReferenceExecutor::do_sinusoid(std::span<const double> timesteps, int64_t dim) {
  Tensor y = make({static_cast<int64_t>(timesteps.size()), dim});
  for (size_t n = 0; n < timesteps.size(); ++n) {
    for (int64_t i = 0; i < dim / 2; ++i) {
      const double angle =
          timesteps[n] / std::pow(10000.0, static_cast<double>(i) / static_cast<double>(dim / 2));
      at(y, {static_cast<int64_t>(n), i}) = static_cast<float>(std::cos(angle));
      at(y, {static_cast<int64_t>(n), dim / 2 + i}) = static_cast<float>(std::sin(angle));
    }
  }
  return y;
}

Tensor ReferenceExecutor::do_axpby(float a, const Tensor& x, float b, const Tensor& y) {
  Tensor out = make(x.shape());
  for (int64_t i = 0; i < x.numel(); ++i) {
    out.mutable_data<float>()[i] =
        static_cast<float>(static_cast<double>(a) * static_cast<double>(x.data<float>()[i]) +
                           static_cast<double>(b) * static_cast<double>(y.data<float>()[i]));
  }
  return out;
}

Tensor ReferenceExecutor::do_flow_to_x0(const Tensor& x, const Tensor& v, double sigma) {
  Tensor out = make(x.shape());
  for (int64_t i = 0; i < x.numel(); ++i) {
    out.mutable_data<float>()[i] = static_cast<float>(
        static_cast<double>(x.data<float>()[i]) - sigma * static_cast<double>(v.data<float>()[i]));
  }
  return out;
}

Tensor ReferenceExecutor::do_normal(RandomStream stream, const Shape& shape, DType dtype) {
  Tensor out = make(shape);
  fill_normal(stream, 0, {out.mutable_data<float>(), static_cast<size_t>(out.numel())});
  return out.to(dtype);
}

Tensor ReferenceExecutor::do_cast(const Tensor& x, DType dtype) { return x.to(dtype); }

Tensor ReferenceExecutor::do_activate(const Tensor& x, Activation activation) {
  return map(x, [&](double v) { return activated(activation, v); });
}

Tensor ReferenceExecutor::do_add(const Tensor& a, const Tensor& b) {
  Tensor out = make(a.shape());
  for (int64_t i = 0; i < a.numel(); ++i) {
    int64_t rest = i;
    int64_t offset = 0;
    int64_t stride = 1;
    for (int axis = 1; axis <= a.rank(); ++axis) {
      const int64_t index = rest % a.dim(-axis);
      rest /= a.dim(-axis);
      if (axis > b.rank()) continue;
      if (b.dim(-axis) != 1) offset += index * stride;
      stride *= b.dim(-axis);
    }
    out.mutable_data<float>()[i] = a.data<float>()[i] + b.data<float>()[offset];
  }
  return out;
}

Tensor ReferenceExecutor::do_multiply(const Tensor& a, const Tensor& b) {
  Tensor out = make(a.shape());
  for (int64_t i = 0; i < a.numel(); ++i) {
    out.mutable_data<float>()[i] = a.data<float>()[i] * b.data<float>()[i];
  }
  return out;
}

Tensor ReferenceExecutor::do_soft_clamp(const Tensor& x, float limit) {
  return map(x, [&](double v) {
    return static_cast<double>(limit) * std::tanh(v / static_cast<double>(limit));
  });
}

Tensor ReferenceExecutor::do_channel_affine(const Tensor& x, const Tensor& scale,
                                            const Tensor& shift) {
  Tensor out = make(x.shape());
  const int64_t channels = x.dim(-1);
  for (int64_t i = 0; i < x.numel(); ++i) {
    out.mutable_data<float>()[i] =
        static_cast<float>(static_cast<double>(x.data<float>()[i]) * get(scale, {i % channels}) +
                           get(shift, {i % channels}));
  }
  return out;
}

Tensor ReferenceExecutor::do_embedding(const Tensor& ids, const Tensor& table, DType dtype) {
  const Tensor rows = table.to(DType::kF32);
  Tensor out = make({ids.dim(0), ids.dim(1), table.dim(1)});
  for (int64_t i = 0; i < ids.numel(); ++i) {
    for (int64_t d = 0; d < table.dim(1); ++d) {
      out.mutable_data<float>()[i * table.dim(1) + d] = at(rows, {ids.data<int64_t>()[i], d});
    }
  }
  return out.to(dtype);
}

Tensor ReferenceExecutor::do_mask_rows(Tensor x, const Tensor& lengths) {
  Tensor out = x.copy();
  for (int64_t b = 0; b < x.dim(0); ++b)
    for (int64_t n = 0; n < x.dim(1); ++n)
      for (int64_t d = 0; d < x.dim(2); ++d)
        if (n >= lengths.data<int64_t>()[b]) at(out, {b, n, d}) = 0.0F;
  return out;
}

Tensor ReferenceExecutor::do_to_rgb8(const Tensor& x, float low, float high) {
  Tensor out = Tensor::zeros(DType::kU8, x.shape());
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double unit = (static_cast<double>(x.data<float>()[i]) - static_cast<double>(low)) /
                        (static_cast<double>(high) - static_cast<double>(low));
    out.mutable_data<uint8_t>()[i] = static_cast<uint8_t>(255.0 * std::clamp(unit, 0.0, 1.0));
  }
  return out;
}

}  // namespace ultraflash::testing

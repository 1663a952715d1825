// Argument checks of the operations, and the composites that executors may override.
#include "ops/executor.h"

#include <chrono>

#include "core/check.h"
#include "ops/op_timer.h"

namespace ultraflash {
namespace {

void require_rank(const Tensor& x, int rank, const char* op, const char* name) {
  UF_CHECK(x.defined() && x.rank() == rank, "{}: {} of rank {}, got {}", op, name, rank,
           x.to_string());
}

void require_contiguous(const Tensor& x, const char* op, const char* name) {
  UF_CHECK(x.defined() && x.contiguous(), "{}: {} must be contiguous, got {}", op, name,
           x.to_string());
}

void require_compute(const Tensor& x, const char* op, const char* name) {
  UF_CHECK(x.defined() &&
               (x.dtype() == DType::kF32 || x.dtype() == DType::kBF16 || x.dtype() == DType::kF16),
           "{}: {} must be f32, bf16 or f16, got {}", op, name, x.to_string());
}

void require_dense(const Tensor& x, const char* op, const char* name) {
  require_compute(x, op, name);
  require_contiguous(x, op, name);
}

// What a product reads: a norm may have left it in an executor's own form.
void require_product_input(const Tensor& x, const char* op) {
  if (x.defined() && x.dtype() == DType::kF8E4M3) {
    require_contiguous(x, op, "x");
  } else {
    require_dense(x, op, "x");
  }
}

class ReaderScope {
 public:
  ReaderScope(const Linear*& place, const Linear* reader) : place_(place) { place_ = reader; }
  ReaderScope(const ReaderScope&) = delete;
  ReaderScope& operator=(const ReaderScope&) = delete;
  ~ReaderScope() { place_ = nullptr; }

 private:
  const Linear*& place_;
};

void require_vector(const Tensor& x, int64_t size, const char* op, const char* name) {
  UF_CHECK(x.defined() && x.dtype() == DType::kF32 && x.rank() == 1 && x.dim(0) == size &&
               x.contiguous(),
           "{}: {} must be f32 [{}], got {}", op, name, size, x.to_string());
}

void require_optional_vector(const Tensor& x, int64_t size, const char* op, const char* name) {
  if (x.defined()) require_vector(x, size, op, name);
}

// gate, scale and shift: f32 [batch or 1, rows, dim], rows dividing tokens, last axis dense.
void require_rows(const Tensor& rows, const Tensor& x, const char* op, const char* name) {
  UF_CHECK(rows.defined() && rows.dtype() == DType::kF32 && rows.rank() == 3 &&
               (rows.dim(0) == x.dim(0) || rows.dim(0) == 1) && rows.dim(1) > 0 &&
               x.dim(1) % rows.dim(1) == 0 && rows.dim(2) == x.dim(2) && rows.stride(2) == 1,
           "{}: {} must be f32 [batch or 1, rows, dim] for x {}, got {}", op, name, x.to_string(),
           rows.to_string());
}

void require_same(const Tensor& a, const Tensor& b, const char* op) {
  UF_CHECK(a.shape() == b.shape() && a.dtype() == b.dtype(), "{}: operands {} and {} must match",
           op, a.to_string(), b.to_string());
}

void require_heads(int64_t dim, int64_t heads, const char* op) {
  UF_CHECK(heads > 0 && dim % heads == 0, "{}: dim {} is not a multiple of {} heads", op, dim,
           heads);
}

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

// Of an executor that is done with an operation when the call returns.
class ClockMoment final : public Moment {
 public:
  void wait() override {}
  [[nodiscard]] bool reached() const override { return true; }
  [[nodiscard]] double seconds_since(const Moment& earlier) const override {
    const auto* other = dynamic_cast<const ClockMoment*>(&earlier);
    UF_CHECK(other != nullptr, "moments of two devices");
    return std::chrono::duration<double>(time_ - other->time_).count();
  }

 private:
  std::chrono::steady_clock::time_point time_ = std::chrono::steady_clock::now();
};

}  // namespace

std::shared_ptr<Moment> Executor::moment() {
  synchronize();
  return std::make_shared<ClockMoment>();
}

Tensor Executor::to_host_later(const Tensor& x, std::shared_ptr<Moment>& ready) {
  Tensor host = to_host(x);
  ready = std::make_shared<ClockMoment>();
  return host;
}

void Executor::repeat(std::unique_ptr<Recording>& /*recording*/, FunctionRef<void()> work) {
  work();
}

Tensor Executor::zeros(DType dtype, const Shape& shape) {
  Tensor x = do_empty(dtype, shape);
  do_fill_zero(x);
  return x;
}

void Executor::copy(const Tensor& destination, const Tensor& source) {
  UF_CHECK(destination.defined() && source.defined() && destination.shape() == source.shape() &&
               destination.dtype() == source.dtype(),
           "copy: {} to {}", source.to_string(), destination.to_string());
  const OpTimer timer(*this, op_log_, "copy", [&] { return element_cost(source, 2.0); });
  do_copy(destination, source);
}

void Executor::prepare(Linear& linear, const PrepareOptions& options) {
  UF_CHECK(!linear.weights.empty(), "prepare: a linear layer without weights");
  UF_CHECK(linear.biases.empty() || linear.biases.size() == linear.weights.size(),
           "prepare: {} biases for {} weights", linear.biases.size(), linear.weights.size());
  linear.in_features = linear.weights[0].dim(-1);
  linear.out_features = 0;
  for (size_t i = 0; i < linear.weights.size(); ++i) {
    const Tensor& weight = linear.weights[i];
    require_rank(weight, 2, "prepare", "weight");
    UF_CHECK(weight.dim(1) == linear.in_features, "prepare: parts {} and {} take different inputs",
             linear.weights[0].to_string(), weight.to_string());
    if (!linear.biases.empty()) {
      UF_CHECK(linear.biases[i].shape() == Shape{weight.dim(0)}, "prepare: bias {} of weight {}",
               linear.biases[i].to_string(), weight.to_string());
    }
    linear.out_features += weight.dim(0);
  }
  do_prepare(linear, options);
}

void Executor::prepare(Conv& conv, const PrepareOptions& options) {
  UF_CHECK(conv.weight.defined() && (conv.weight.rank() == 4 || conv.weight.rank() == 5),
           "prepare: convolution weight {}", conv.weight.to_string());
  UF_CHECK(!conv.bias.defined() || conv.bias.shape() == Shape{conv.weight.dim(0)},
           "prepare: bias {} of weight {}", conv.bias.to_string(), conv.weight.to_string());
  do_prepare(conv, options);
}

Tensor Executor::linear(const Tensor& x, const Linear& weight, Activation activation) {
  require_product_input(x, "linear");
  UF_CHECK(weight.prepared != nullptr, "linear: the weight was not prepared");
  UF_CHECK(x.rank() >= 1 && x.dim(-1) == weight.in_features,
           "linear: x {} meets a weight of {} inputs", x.to_string(), weight.in_features);
  const OpTimer timer(*this, op_log_, "linear", [&] { return product_cost(x, weight); });
  return do_linear(x, weight, activation);
}

Tensor Executor::feed_forward(const Tensor& x, const Linear& first, Activation activation,
                              const Linear& second) {
  require_product_input(x, "feed_forward");
  UF_CHECK(first.prepared != nullptr && second.prepared != nullptr,
           "feed_forward: a weight was not prepared");
  UF_CHECK(
      x.rank() >= 1 && x.dim(-1) == first.in_features && first.out_features == second.in_features,
      "feed_forward: x {} meets weights {} -> {} and {} -> {}", x.to_string(), first.in_features,
      first.out_features, second.in_features, second.out_features);
  const OpTimer timer(*this, op_log_, "feed_forward", [&] {
    // The inner rows are counted as written and read: no executor keeps them on the chip.
    OpCost cost = product_cost(x, first);
    cost.flops *= 2.0;
    cost.bytes *= 2.0;
    return cost;
  });
  return do_feed_forward(x, first, activation, second);
}

Tensor Executor::do_feed_forward(const Tensor& x, const Linear& first, Activation activation,
                                 const Linear& second) {
  return do_linear(do_linear(x, first, activation), second, Activation::kNone);
}

Tensor Executor::temporal_pool(const Tensor& x, const Linear& weight, int64_t frames) {
  require_rank(x, 5, "temporal_pool", "x");
  require_dense(x, "temporal_pool", "x");
  UF_CHECK(frames > 0 && x.dim(1) % frames == 0 && x.dim(4) * frames == weight.in_features,
           "temporal_pool: x {} pooled by {} meets a weight of {} inputs", x.to_string(), frames,
           weight.in_features);
  const OpTimer timer(*this, op_log_, "temporal_pool", [&] { return product_cost(x, weight); });
  return do_temporal_pool(x, weight, frames);
}

Tensor Executor::temporal_grow(const Tensor& x, const Linear& weight, int64_t frames) {
  require_rank(x, 5, "temporal_grow", "x");
  require_dense(x, "temporal_grow", "x");
  UF_CHECK(frames > 0 && weight.out_features % frames == 0 && x.dim(4) == weight.in_features,
           "temporal_grow: x {} grown by {} meets a weight [{}, {}]", x.to_string(), frames,
           weight.out_features, weight.in_features);
  const OpTimer timer(*this, op_log_, "temporal_grow", [&] { return product_cost(x, weight); });
  return do_temporal_grow(x, weight, frames);
}

Tensor Executor::layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps) {
  require_dense(x, "layer_norm", "x");
  require_optional_vector(weight, x.dim(-1), "layer_norm", "weight");
  require_optional_vector(bias, x.dim(-1), "layer_norm", "bias");
  const OpTimer timer(*this, op_log_, "layer_norm", [&] { return element_cost(x, 2.0); });
  return do_layer_norm(x, weight, bias, eps);
}

Tensor Executor::layer_norm_modulate(const Tensor& x, const Tensor& shift, const Tensor& scale,
                                     float eps, const Linear* reader) {
  require_rank(x, 3, "layer_norm_modulate", "x");
  require_dense(x, "layer_norm_modulate", "x");
  require_rows(shift, x, "layer_norm_modulate", "shift");
  require_rows(scale, x, "layer_norm_modulate", "scale");
  UF_CHECK(shift.dim(1) == scale.dim(1), "layer_norm_modulate: shift {} and scale {}",
           shift.to_string(), scale.to_string());
  const OpTimer timer(*this, op_log_, "layer_norm_modulate", [&] { return element_cost(x, 2.0); });
  const ReaderScope scope(reader_, reader);
  return do_layer_norm_modulate(x, shift, scale, eps);
}

Tensor Executor::rms_norm(const Tensor& x, const Tensor& weight, float eps) {
  require_dense(x, "rms_norm", "x");
  require_vector(weight, x.dim(-1), "rms_norm", "weight");
  const OpTimer timer(*this, op_log_, "rms_norm", [&] { return element_cost(x, 2.0); });
  return do_rms_norm(x, weight, eps);
}

Tensor Executor::gated_residual(Tensor x, const Tensor& y, const Tensor& gate) {
  require_dense(x, "gated_residual", "x");
  require_dense(y, "gated_residual", "y");
  require_same(x, y, "gated_residual");
  if (gate.defined()) {
    require_rank(x, 3, "gated_residual", "x");
    require_rows(gate, x, "gated_residual", "gate");
  }
  const OpTimer timer(*this, op_log_, "gated_residual", [&] { return element_cost(x, 3.0); });
  return do_gated_residual(std::move(x), y, gate);
}

ResidualNorm Executor::residual_modulate(Tensor x, const Tensor& y, const Tensor& gate,
                                         const Tensor& shift, const Tensor& scale, float eps,
                                         const Linear* reader) {
  require_rank(x, 3, "residual_modulate", "x");
  require_dense(x, "residual_modulate", "x");
  require_dense(y, "residual_modulate", "y");
  require_same(x, y, "residual_modulate");
  if (gate.defined()) require_rows(gate, x, "residual_modulate", "gate");
  require_rows(shift, x, "residual_modulate", "shift");
  require_rows(scale, x, "residual_modulate", "scale");
  UF_CHECK(shift.dim(1) == scale.dim(1) && (!gate.defined() || gate.dim(1) == shift.dim(1)),
           "residual_modulate: rows of gate {}, shift {} and scale {} differ", gate.to_string(),
           shift.to_string(), scale.to_string());
  const OpTimer timer(*this, op_log_, "residual_modulate", [&] { return element_cost(y, 4.0); });
  const ReaderScope scope(reader_, reader);
  return do_residual_modulate(std::move(x), y, gate, shift, scale, eps);
}

ResidualNorm Executor::residual_layer_norm(Tensor x, const Tensor& y, const Tensor& gate,
                                           const Tensor& weight, const Tensor& bias, float eps,
                                           const Linear* reader) {
  require_rank(x, 3, "residual_layer_norm", "x");
  require_dense(x, "residual_layer_norm", "x");
  require_dense(y, "residual_layer_norm", "y");
  require_same(x, y, "residual_layer_norm");
  if (gate.defined()) require_rows(gate, x, "residual_layer_norm", "gate");
  require_optional_vector(weight, x.dim(-1), "residual_layer_norm", "weight");
  require_optional_vector(bias, x.dim(-1), "residual_layer_norm", "bias");
  const OpTimer timer(*this, op_log_, "residual_layer_norm", [&] { return element_cost(y, 4.0); });
  const ReaderScope scope(reader_, reader);
  return do_residual_layer_norm(std::move(x), y, gate, weight, bias, eps);
}

ResidualNorm Executor::do_residual_modulate(Tensor x, const Tensor& y, const Tensor& gate,
                                            const Tensor& shift, const Tensor& scale, float eps) {
  ResidualNorm result;
  result.x = do_gated_residual(std::move(x), y, gate);
  result.normalized = do_layer_norm_modulate(result.x, shift, scale, eps);
  return result;
}

ResidualNorm Executor::do_residual_layer_norm(Tensor x, const Tensor& y, const Tensor& gate,
                                              const Tensor& weight, const Tensor& bias, float eps) {
  ResidualNorm result;
  result.x = do_gated_residual(std::move(x), y, gate);
  result.normalized = do_layer_norm(result.x, weight, bias, eps);
  return result;
}

Tensor Executor::channel_norm(const Tensor& x, const Tensor& gamma, bool silu) {
  require_dense(x, "channel_norm", "x");
  require_vector(gamma, x.dim(-1), "channel_norm", "gamma");
  return do_channel_norm(x, gamma, silu);
}

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
                                  int64_t tokens_per_frame, const ChunkPlace& place,
                                  const Linear* reader) {
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
  const ReaderScope scope(reader_, reader);
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

// By value, so that options that were moved in may hold the only handle of their residual.
Tensor Executor::conv2d(const Tensor& x, const Conv& weight, Conv2dOptions options) {
  require_rank(x, 5, "conv2d", "x");
  require_dense(x, "conv2d", "x");
  UF_CHECK(weight.prepared != nullptr, "conv2d: the weight was not prepared");
  require_rank(weight.weight, 4, "conv2d", "weight");
  const int64_t channels = x.dim(4) * (options.with_memory ? 2 : 1);
  UF_CHECK(weight.weight.dim(1) == channels, "conv2d: x {}{} meets weight {}", x.to_string(),
           options.with_memory ? " with memory" : "", weight.weight.to_string());
  UF_CHECK(options.stride > 0 && options.upsample > 0, "conv2d: stride {}, upsample {}",
           options.stride, options.upsample);
  if (options.memory.defined()) {
    UF_CHECK(options.with_memory && options.memory.shape() == x.shape().with(1, 1) &&
                 options.memory.dtype() == x.dtype() && options.memory.contiguous(),
             "conv2d: memory {} for x {}", options.memory.to_string(), x.to_string());
  }
  const OpTimer timer(*this, op_log_, "conv2d", [&] {
    const double pixels = count(x) / static_cast<double>(x.dim(4)) *
                          static_cast<double>(options.upsample * options.upsample) /
                          static_cast<double>(options.stride * options.stride);
    return convolution_cost(x, weight, pixels);
  });
  return do_conv2d(x, weight, options);
}

Tensor Executor::causal_conv3d(const Tensor& x, const Conv& weight, const Conv3dOptions& options) {
  require_rank(x, 5, "causal_conv3d", "x");
  require_dense(x, "causal_conv3d", "x");
  UF_CHECK(weight.prepared != nullptr, "causal_conv3d: the weight was not prepared");
  require_rank(weight.weight, 5, "causal_conv3d", "weight");
  UF_CHECK(weight.weight.dim(1) == x.dim(4), "causal_conv3d: x {} meets weight {}", x.to_string(),
           weight.weight.to_string());
  int64_t frames = x.dim(1) + options.zeros;
  if (options.past.defined()) {
    UF_CHECK(options.past.rank() == 5 && options.past.contiguous() &&
                 options.past.dtype() == x.dtype() &&
                 options.past.shape() == x.shape().with(1, options.past.dim(1)),
             "causal_conv3d: past {} for x {}", options.past.to_string(), x.to_string());
    frames += options.past.dim(1);
  }
  UF_CHECK(frames >= weight.weight.dim(2) && options.stride_time > 0 && options.zeros >= 0,
           "causal_conv3d: {} frames for a kernel of {}", frames, weight.weight.dim(2));
  return do_causal_conv3d(x, weight, options);
}

Tensor Executor::pixel_shuffle(const Tensor& x, int64_t factor, Activation activation) {
  require_rank(x, 5, "pixel_shuffle", "x");
  require_dense(x, "pixel_shuffle", "x");
  UF_CHECK(factor > 0 && x.dim(4) % (factor * factor) == 0, "pixel_shuffle: x {} by {}",
           x.to_string(), factor);
  const OpTimer timer(*this, op_log_, "pixel_shuffle", [&] { return element_cost(x, 2.0); });
  return do_pixel_shuffle(x, factor, activation);
}

Tensor Executor::patchify(const Tensor& a, const Tensor& b, DType dtype) {
  require_rank(a, 5, "patchify", "a");
  require_dense(a, "patchify", "a");
  UF_CHECK(a.dim(2) % 2 == 0 && a.dim(3) % 2 == 0, "patchify: latent {} has an odd side",
           a.to_string());
  if (b.defined()) {
    require_dense(b, "patchify", "b");
    UF_CHECK(b.rank() == 5 && b.shape().with(4, a.dim(4)) == a.shape() && b.dtype() == a.dtype(),
             "patchify: {} beside {}", b.to_string(), a.to_string());
  }
  const OpTimer timer(*this, op_log_, "patchify", [&] { return element_cost(a, 2.0); });
  return do_patchify(a, b, dtype);
}

Tensor Executor::unpatchify(const Tensor& tokens, const TokenGrid& grid, DType dtype) {
  require_rank(tokens, 3, "unpatchify", "tokens");
  require_dense(tokens, "unpatchify", "tokens");
  UF_CHECK(tokens.dim(1) == grid.tokens() && tokens.dim(2) % 4 == 0,
           "unpatchify: tokens {} for a grid of {}", tokens.to_string(), grid.tokens());
  const OpTimer timer(*this, op_log_, "unpatchify", [&] { return element_cost(tokens, 2.0); });
  return do_unpatchify(tokens, grid, dtype);
}

Tensor Executor::sinusoid(std::span<const double> timesteps, int64_t dim) {
  UF_CHECK(dim > 0 && dim % 2 == 0, "sinusoid: width {}", dim);
  return do_sinusoid(timesteps, dim);
}

Tensor Executor::axpby(float a, const Tensor& x, float b, const Tensor& y) {
  require_dense(x, "axpby", "x");
  require_dense(y, "axpby", "y");
  require_same(x, y, "axpby");
  const OpTimer timer(*this, op_log_, "axpby", [&] { return element_cost(x, 3.0); });
  return do_axpby(a, x, b, y);
}

Tensor Executor::flow_to_x0(const Tensor& x, const Tensor& v, double sigma) {
  require_dense(x, "flow_to_x0", "x");
  require_dense(v, "flow_to_x0", "v");
  require_same(x, v, "flow_to_x0");
  const OpTimer timer(*this, op_log_, "flow_to_x0", [&] { return element_cost(x, 3.0); });
  return do_flow_to_x0(x, v, sigma);
}

Tensor Executor::normal(RandomStream stream, const Shape& shape, DType dtype) {
  const OpTimer timer(*this, op_log_, "normal", [&] {
    return OpCost{shape.to_string(), 0.0,
                  static_cast<double>(shape.numel()) * static_cast<double>(dtype_size(dtype))};
  });
  return do_normal(stream, shape, dtype);
}

Tensor Executor::cast(const Tensor& x, DType dtype) {
  require_dense(x, "cast", "x");
  return x.dtype() == dtype ? x : do_cast(x, dtype);
}

Tensor Executor::activate(const Tensor& x, Activation activation) {
  require_dense(x, "activate", "x");
  return activation == Activation::kNone ? x : do_activate(x, activation);
}

Tensor Executor::add(const Tensor& a, const Tensor& b) {
  require_dense(a, "add", "a");
  require_dense(b, "add", "b");
  UF_CHECK(a.dtype() == b.dtype() && b.rank() <= a.rank(), "add: {} and {}", a.to_string(),
           b.to_string());
  for (int i = 1; i <= b.rank(); ++i) {
    UF_CHECK(b.dim(-i) == a.dim(-i) || b.dim(-i) == 1, "add: {} does not broadcast to {}",
             b.to_string(), a.to_string());
  }
  return do_add(a, b);
}

Tensor Executor::multiply(const Tensor& a, const Tensor& b) {
  require_dense(a, "multiply", "a");
  require_dense(b, "multiply", "b");
  require_same(a, b, "multiply");
  return do_multiply(a, b);
}

Tensor Executor::soft_clamp(const Tensor& x, float limit) {
  require_dense(x, "soft_clamp", "x");
  UF_CHECK(limit > 0.0F, "soft_clamp: limit {}", limit);
  const OpTimer timer(*this, op_log_, "soft_clamp", [&] { return element_cost(x, 2.0); });
  return do_soft_clamp(x, limit);
}

Tensor Executor::channel_affine(const Tensor& x, const Tensor& scale, const Tensor& shift) {
  require_dense(x, "channel_affine", "x");
  require_vector(scale, x.dim(-1), "channel_affine", "scale");
  require_vector(shift, x.dim(-1), "channel_affine", "shift");
  return do_channel_affine(x, scale, shift);
}

Tensor Executor::embedding(const Tensor& ids, const Tensor& table, DType dtype) {
  require_rank(ids, 2, "embedding", "ids");
  UF_CHECK(ids.dtype() == DType::kI64 && ids.contiguous(), "embedding: ids {}", ids.to_string());
  require_rank(table, 2, "embedding", "table");
  require_contiguous(table, "embedding", "table");
  for (const int64_t id : ids.span<int64_t>()) {
    if (id < 0 || id >= table.dim(0)) {
      throw_error(StatusCode::kInvalidArgument,
                  "token {} does not exist in a vocabulary of {}; the tokenizer does not belong to "
                  "this text encoder",
                  id, table.dim(0));
    }
  }
  return do_embedding(ids, table, dtype);
}

Tensor Executor::mask_rows(Tensor x, const Tensor& lengths) {
  require_rank(x, 3, "mask_rows", "x");
  require_dense(x, "mask_rows", "x");
  UF_CHECK(lengths.dtype() == DType::kI64 && lengths.shape() == Shape{x.dim(0)},
           "mask_rows: lengths {} for x {}", lengths.to_string(), x.to_string());
  return do_mask_rows(std::move(x), lengths);
}

Tensor Executor::to_rgb8(const Tensor& x, float low, float high) {
  require_dense(x, "to_rgb8", "x");
  UF_CHECK(low < high, "to_rgb8: range [{}, {}]", low, high);
  const OpTimer timer(*this, op_log_, "to_rgb8", [&] { return element_cost(x, 1.5); });
  return do_to_rgb8(x, low, high);
}

}  // namespace ultraflash

#include "models/wan_dit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "core/check.h"
#include "ops/recompute_region.h"

namespace ultraflash {

Status WanDitConfig::validate() const {
  const auto positive = [](const char* name, int64_t value, int64_t limit) -> Status {
    if (value < 1 || value > limit) {
      return make_status(StatusCode::kInvalidArgument, "transformer: {} is {}, expected 1 to {}",
                         name, value, limit);
    }
    return {};
  };
  UF_TRY(positive("dim", dim, 1 << 16));
  UF_TRY(positive("ffn_dim", ffn_dim, 1 << 18));
  UF_TRY(positive("num_layers", num_layers, 1024));
  UF_TRY(positive("num_heads", num_heads, 1024));
  UF_TRY(positive("in_dim", in_dim, 4096));
  UF_TRY(positive("out_dim", out_dim, 4096));
  UF_TRY(positive("freq_dim", freq_dim, 1 << 16));
  UF_TRY(positive("text_dim", text_dim, 1 << 16));
  UF_TRY(positive("text_len", text_len, 1 << 16));
  if (dim % num_heads != 0 || head_dim() % 2 != 0 || head_dim() < 6) {
    return make_status(StatusCode::kInvalidArgument,
                       "transformer: dim {} with {} heads; the head size must be a whole even "
                       "number of at least 6",
                       dim, num_heads);
  }
  if (freq_dim % 2 != 0) {
    return make_status(StatusCode::kInvalidArgument, "transformer: freq_dim {} is odd", freq_dim);
  }
  if (!(eps > 0.0F) || eps > 1.0F) {
    return make_status(StatusCode::kInvalidArgument, "transformer: eps is {}, expected (0, 1]",
                       eps);
  }
  return {};
}

Result<WanDitConfig> WanDitConfig::detect(const Checkpoint& checkpoint) {
  const auto shape_of = [&](std::string_view name, int rank) -> Result<Shape> {
    const TensorEntry* entry = checkpoint.find(name);
    if (entry == nullptr) {
      return make_status(StatusCode::kMalformed, "{}: no tensor {}; this is not a Wan transformer",
                         checkpoint.label(), name);
    }
    if (entry->shape.rank() != rank) {
      return make_status(StatusCode::kMalformed, "{}: {} is {}, expected {} axes",
                         checkpoint.label(), name, entry->shape.to_string(), rank);
    }
    return entry->shape;
  };
  WanDitConfig config;
  UF_ASSIGN(const Shape patch, shape_of("patch_embedding.weight", 5));
  UF_ASSIGN(const Shape text, shape_of("text_embedding.0.weight", 2));
  UF_ASSIGN(const Shape time, shape_of("time_embedding.0.weight", 2));
  UF_ASSIGN(const Shape ffn, shape_of("blocks.0.ffn.0.weight", 2));
  UF_ASSIGN(const Shape head, shape_of("head.head.weight", 2));
  config.dim = patch[0];
  config.in_dim = patch[1];
  config.text_dim = text[1];
  config.freq_dim = time[1];
  config.ffn_dim = ffn[0];
  config.out_dim = head[0] / 4;
  config.num_heads = std::max<int64_t>(config.dim / (config.dim % 128 == 0 ? 128 : 64), 1);
  config.num_layers = 0;
  while (checkpoint.find(fmt::format("blocks.{}.ffn.0.weight", config.num_layers)) != nullptr) {
    ++config.num_layers;
  }
  UF_TRY(config.validate());
  return config;
}

WanDit WanDit::bind(Loader loader, const WanDitConfig& config, DType time_compute) {
  WanDit network;
  network.config_ = config;
  network.compute_ = loader.target().compute;
  network.time_compute_ = time_compute;
  const int64_t dim = config.dim;
  Loader time_loader = loader.with_compute(time_compute).for_few_rows();
  Loader text_loader = loader.for_few_rows();
  network.patch_embedding_ = loader.patch_embedding("patch_embedding", config.in_dim, dim);
  network.text_embedding_0_ = text_loader.linear("text_embedding.0", config.text_dim, dim, true);
  network.text_embedding_2_ = text_loader.linear("text_embedding.2", dim, dim, true);
  network.time_embedding_0_ = time_loader.linear("time_embedding.0", config.freq_dim, dim, true);
  network.time_embedding_2_ = time_loader.linear("time_embedding.2", dim, dim, true);
  network.time_projection_1_ = time_loader.linear("time_projection.1", dim, 6 * dim, true, 0.5F);

  // Random weights: each of the 3 * num_layers branches adds its share, so that the residual
  // stream stays of order one to the end.
  const float branch = 1.0F / std::sqrt(3.0F * static_cast<float>(config.num_layers));
  network.blocks_.reserve(static_cast<size_t>(config.num_layers));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    Loader in_block = loader.scoped(fmt::format("blocks.{}.", i));
    WanBlock block;
    block.modulation =
        in_block.vector("modulation", {1, 6, dim}, {1, 1, 6, dim}, ParameterInit::normal(0.5F));
    block.self_attn.qkv =
        in_block.fused_linear({"self_attn.q", "self_attn.k", "self_attn.v"}, dim, dim, true);
    block.self_attn.o = in_block.linear("self_attn.o", dim, dim, true, branch);
    block.self_attn.norm_q =
        in_block.vector("self_attn.norm_q.weight", {dim}, ParameterInit::ones());
    block.self_attn.norm_k =
        in_block.vector("self_attn.norm_k.weight", {dim}, ParameterInit::ones());
    block.norm3_weight = in_block.vector("norm3.weight", {dim}, ParameterInit::ones());
    block.norm3_bias = in_block.vector("norm3.bias", {dim}, ParameterInit::zeros());
    block.cross_attn.qkv = in_block.linear("cross_attn.q", dim, dim, true);
    block.cross_attn.kv =
        in_block.for_few_rows().fused_linear({"cross_attn.k", "cross_attn.v"}, dim, dim, true);
    block.cross_attn.o = in_block.linear("cross_attn.o", dim, dim, true, branch);
    block.cross_attn.norm_q =
        in_block.vector("cross_attn.norm_q.weight", {dim}, ParameterInit::ones());
    block.cross_attn.norm_k =
        in_block.vector("cross_attn.norm_k.weight", {dim}, ParameterInit::ones());
    block.ffn_0 = in_block.linear("ffn.0", dim, config.ffn_dim, true);
    block.ffn_2 = in_block.linear("ffn.2", config.ffn_dim, dim, true, branch);
    network.blocks_.push_back(std::move(block));
  }
  network.head_ = time_loader.linear("head.head", dim, config.out_dim * 4, true);
  network.head_modulation_ =
      loader.vector("head.modulation", {1, 2, dim}, {2, dim}, ParameterInit::normal(0.1F));
  return network;
}

TimeModulation WanDit::time(Executor& ops, std::span<const double> timesteps, int64_t batch) const {
  const auto count = static_cast<int64_t>(timesteps.size());
  UF_CHECK(batch > 0 && count > 0 && count % batch == 0, "{} timesteps for a batch of {}", count,
           batch);
  const int64_t rows = count / batch;
  const int64_t dim = config_.dim;
  Tensor e = ops.cast(ops.sinusoid(timesteps, config_.freq_dim), time_compute_);   // [n, freq_dim]
  e = ops.linear(e, time_embedding_0_, Activation::kSilu);                         // [n, dim]
  e = ops.linear(e, time_embedding_2_);                                            // [n, dim]
  Tensor e0 = ops.linear(ops.activate(e, Activation::kSilu), time_projection_1_);  // [n, 6 * dim]
  e = ops.cast(e, DType::kF32);
  e0 = ops.cast(e0, DType::kF32).reshape({batch, rows, 6, dim});
  TimeModulation result;
  result.blocks.reserve(blocks_.size());
  for (const WanBlock& block : blocks_) {
    result.blocks.push_back(ops.add(e0, block.modulation));  // [batch, rows, 6, dim]
  }
  // The head adds the vector before the projection to both of its rows.
  e = e.reshape({batch, rows, dim});
  result.head_shift = ops.add(e, head_modulation_.select(0, 0));  // [batch, rows, dim]
  result.head_scale = ops.add(e, head_modulation_.select(0, 1));
  return result;
}

TextKv WanDit::text(Executor& ops, const Tensor& embeddings, int64_t tokens) const {
  UF_CHECK(embeddings.rank() == 3 && embeddings.dim(1) == config_.text_len &&
               embeddings.dim(2) == config_.text_dim,
           "text embedding {}, expected [batch, {}, {}]", embeddings.to_string(), config_.text_len,
           config_.text_dim);
  Tensor context = ops.cast(embeddings, compute_);
  context =
      ops.linear(context, text_embedding_0_, Activation::kGeluTanh);  // [batch, text_len, dim]
  context = ops.linear(context, text_embedding_2_);
  TextKv text;
  if (tokens >= 0) {
    // Every row of zeros goes through the same products and norms, and no position is added.
    const std::vector<int64_t> distinct = {std::min(tokens + 1, config_.text_len)};
    text.distinct = ops.to_device(Tensor::of<int64_t>(distinct, {1}), DType::kI64);
  }
  text.layers.reserve(blocks_.size());
  for (const WanBlock& block : blocks_) {
    const Tensor kv = ops.linear(context, block.cross_attn.kv);  // [batch, text_len, 2 * dim]
    Tensor k = ops.empty(kv.dtype(), context.shape());
    Tensor v = ops.empty(kv.dtype(), context.shape());
    ops.copy(k, kv.slice(2, 0, config_.dim));
    ops.copy(v, kv.slice(2, config_.dim, 2 * config_.dim));
    text.layers.emplace_back(ops.rms_norm(k, block.cross_attn.norm_k, config_.eps), v);
  }
  return text;
}

void keep_text(Executor& ops, TextKv text, TextKv& kept) {
  if (kept.layers.empty()) {
    kept = std::move(text);
    return;
  }
  UF_CHECK(kept.layers.size() == text.layers.size() &&
               kept.distinct.defined() == text.distinct.defined(),
           "texts of two networks");
  if (kept.distinct.defined()) ops.copy(kept.distinct, text.distinct);
  for (size_t i = 0; i < text.layers.size(); ++i) {
    ops.copy(kept.layers[i].first, text.layers[i].first);
    ops.copy(kept.layers[i].second, text.layers[i].second);
  }
}

Tensor WanDit::run(Executor& ops, const Tensor& patches, const TimeModulation& time,
                   const TextKv& text, SelfAttention attend, const ForwardProbe& probe) const {
  enum : int { kShift1, kScale1, kGate1, kShift2, kScale2, kGate2 };
  UF_CHECK(time.blocks.size() == blocks_.size() && text.layers.size() == blocks_.size(),
           "{} modulated and {} text layers for {} blocks", time.blocks.size(), text.layers.size(),
           blocks_.size());
  const auto report = [&](std::string_view name, size_t block, const Tensor& value) {
    if (probe) probe(fmt::format("blocks.{}.{}", block, name), value);
  };
  const float eps = config_.eps;
  const Tensor* m = time.blocks.data();
  Tensor x = ops.linear(patches, patch_embedding_);  // [batch, tokens, dim]
  if (probe) probe("patch_embedding", x);
  Tensor n = ops.layer_norm_modulate(x, m[0].select(2, kShift1), m[0].select(2, kScale1), eps,
                                     &blocks_[0].self_attn.qkv);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const WanBlock& block = blocks_[i];
    RecomputeRegion region(ops);
    // Self-attention
    Tensor qkv = ops.linear(n, block.self_attn.qkv);
    n = Tensor();
    Tensor y = attend(static_cast<int64_t>(i), block.self_attn,
                      std::move(qkv));  // [batch, tokens, dim]
    if (!y.defined()) return {};
    y = ops.linear(y, block.self_attn.o);
    ResidualNorm r =
        ops.residual_layer_norm(std::move(x), y, m[i].select(2, kGate1), block.norm3_weight,
                                block.norm3_bias, eps, &block.cross_attn.qkv);
    report("self_attn", i, r.x);
    // Cross-attention: no gate, no mask; padding rows of the text are attended
    const CrossKeys keys{text.layers[i].first, text.layers[i].second, text.distinct};
    y = ops.cross_attention(r.normalized, block.cross_attn.qkv, block.cross_attn.norm_q, eps, keys,
                            config_.num_heads, block.cross_attn.o);
    r = ops.residual_modulate(std::move(r.x), y, {}, m[i].select(2, kShift2),
                              m[i].select(2, kScale2), eps, &block.ffn_0);
    report("cross_attn", i, r.x);
    // Feed-forward, then the norm of whatever comes next
    y = ops.feed_forward(r.normalized, block.ffn_0, Activation::kGeluTanh, block.ffn_2);
    const bool last = i + 1 == blocks_.size();
    const Tensor shift = last ? time.head_shift : m[i + 1].select(2, kShift1);
    const Tensor scale = last ? time.head_scale : m[i + 1].select(2, kScale1);
    const Linear* next =
        last ? nullptr : &blocks_[i + 1].self_attn.qkv;  // the head's is cast first
    r = ops.residual_modulate(std::move(r.x), y, m[i].select(2, kGate2), shift, scale, eps, next);
    report("ffn", i, r.x);
    x = std::move(r.x);
    n = std::move(r.normalized);
    region.end({x, n});
  }
  return ops.linear(ops.cast(n, time_compute_), head_);  // [batch, tokens, out_dim * 4]
}

KvState make_kv_state(Executor& ops, const WanDit& network, int64_t batch, int64_t frames,
                      int64_t tokens_per_frame) {
  KvState state;
  const WanDitConfig& config = network.config();
  for (int64_t i = 0; i < config.num_layers; ++i) {
    state.layers.push_back(ops.kv_cache(network.compute(), batch, frames * tokens_per_frame,
                                        config.dim, config.num_heads));
  }
  return state;
}

Tensor run_causal(Executor& ops, const WanDit& network, const Tensor& latent, KvState& state,
                  const CausalPass& pass) {
  const WanDitConfig& config = network.config();
  UF_CHECK(latent.rank() == 5 && latent.dim(4) == config.in_dim, "latent {} for {} channels",
           latent.to_string(), config.in_dim);
  const TokenGrid grid{latent.dim(1), latent.dim(2) / 2, latent.dim(3) / 2};
  const int64_t last = config.num_layers - 1;
  const Tensor patches = ops.patchify(latent, {}, network.compute());
  const Tensor head = network.run(
      ops, patches, *pass.time, *pass.text,
      [&](int64_t layer, const WanAttention& weights, Tensor qkv) -> Tensor {
        KvCache& cache = state.layers[static_cast<size_t>(layer)];
        const Tensor q = ops.qkv_to_cache(qkv, weights.norm_q, weights.norm_k, config.eps, grid,
                                          config.num_heads, pass.place, cache);
        qkv = Tensor();
        if (pass.cache_only && layer == last) return {};
        return ops.attention_cached(q, cache, config.num_heads, grid.tokens_per_frame(),
                                    pass.place);
      },
      pass.probe);
  return head.defined() ? ops.unpatchify(head, grid, latent.dtype()) : Tensor();
}

Tensor run_bidirectional(Executor& ops, const WanDit& network, const Tensor& latent,
                         const TimeModulation& time, const TextKv& text,
                         const ForwardProbe& probe) {
  const int64_t frames = latent.dim(1);
  const int64_t tokens_per_frame = latent.dim(2) / 2 * (latent.dim(3) / 2);
  KvState state;
  // One cache serves every layer: nothing is read again once a layer is done.
  const KvCache shared = ops.kv_cache(network.compute(), latent.dim(0), frames * tokens_per_frame,
                                      network.config().dim, network.config().num_heads);
  state.layers.assign(static_cast<size_t>(network.config().num_layers), shared);
  CausalPass pass;
  pass.time = &time;
  pass.text = &text;
  pass.place.ring_end = frames;
  pass.place.visible_frames = frames;
  pass.probe = probe;
  ops.update_place(pass.place);
  return run_causal(ops, network, latent, state, pass);
}

}  // namespace ultraflash

// Replays of the diffusion transformers. How each is driven: docs/formats.md.
#include <fmt/format.h>

#include <algorithm>

#include "core/check.h"
#include "models/sparse_sr_dit.h"
#include "models/wan_dit.h"
#include "stream/cache_policy.h"
#include "verify/golden_file.h"

namespace ultraflash {
namespace {

WanDitConfig transformer_config(const GoldenFile& golden) {
  WanDitConfig config;
  config.dim = golden.integer("dim");
  config.ffn_dim = golden.integer("ffn_dim");
  config.num_layers = golden.integer("num_layers");
  config.num_heads = golden.integer("num_heads");
  config.in_dim = golden.integer("in_dim");
  config.out_dim = golden.integer("out_dim");
  config.freq_dim = golden.integer("freq_dim");
  config.text_dim = golden.integer("text_dim");
  config.text_len = golden.integer("text_len");
  config.eps = static_cast<float>(golden.number_or("eps", 1e-6));
  if (!golden.flag_or("qk_norm", true) || !golden.flag_or("cross_attn_norm", true)) {
    throw_error(StatusCode::kUnsupported,
                "{}: a transformer without query/key norm or cross-attention norm", golden.label());
  }
  if (const Status status = config.validate(); !status.ok()) throw Error(status);
  return config;
}

// Recorded text embeddings, padded with zero rows to text_len.
Tensor padded_text(const Replay& r, const WanDitConfig& config) {
  const Tensor stored = r.golden.tensor("in.context").to(DType::kF32);
  if (stored.rank() != 3 || stored.dim(1) > config.text_len || stored.dim(2) != config.text_dim) {
    throw_error(StatusCode::kMalformed, "{}: in.context is {}, expected [1, up to {}, {}]",
                r.golden.label(), stored.to_string(), config.text_len, config.text_dim);
  }
  Tensor padded = Tensor::zeros(DType::kF32, {stored.dim(0), config.text_len, config.text_dim});
  padded.slice(1, 0, stored.dim(1)).assign(stored);
  return r.ops.to_device(padded, r.options.dtype);
}

template <typename Network, typename Config, typename... Args>
Network bind_all(const Replay& r, const Config& config, Args... args) {
  CheckpointSource source(r.golden.weights());
  Binder binder(source, r.golden.label());
  Network network = Network::bind(r.loader(binder), config, args...);
  if (const Status status = binder.finish(); !status.ok()) throw Error(status);
  return network;
}

}  // namespace

void replay_causal_wan(const Replay& r) {
  const WanDitConfig config = transformer_config(r.golden);
  const auto network = bind_all<WanDit>(r, config, r.options.dtype);
  const int64_t chunk = r.golden.integer("frames_per_chunk");
  const std::vector<int64_t> latent = r.golden.integers("latent");
  if (latent.size() != 2)
    throw_error(StatusCode::kMalformed, "{}: 'latent' needs two sizes", r.golden.label());
  const int64_t tokens_per_frame = latent[0] / 2 * (latent[1] / 2);
  CachePolicy policy;
  const int64_t window = r.golden.integer("local_attn_size");
  policy.kind = window < 0 ? CacheKind::kGrow : CacheKind::kWindow;
  policy.capacity_frames = r.golden.integer("kv_cache_tokens") / tokens_per_frame;
  policy.sink_frames = r.golden.integer("sink_size");
  if (const Status status = policy.validate(chunk); !status.ok()) throw Error(status);
  CacheRing ring(policy);
  KvState state = make_kv_state(r.ops, network, 1, policy.capacity_frames, tokens_per_frame);
  for (KvCache& cache : state.layers) {
    r.ops.copy(cache.k, r.ops.zeros(cache.k.dtype(), cache.k.shape()));
  }
  const TextKv text = network.text(r.ops, padded_text(r, config));
  const Tensor timesteps = r.golden.tensor("in.timesteps").to(DType::kF32);
  for (int64_t c = 0; c < r.golden.integer("num_chunks"); ++c) {
    Result<ChunkPlace> place = ring.append(chunk, c * chunk);
    if (!place.ok()) throw Error(place.status());
    r.ops.update_place(*place);
    for (int64_t s = 0; s < timesteps.numel(); ++s) {
      const double t = static_cast<double>(timesteps.data<float>()[s]);
      const TimeModulation time = network.time(r.ops, {&t, 1});
      CausalPass pass;
      pass.time = &time;
      pass.text = &text;
      pass.place = *place;
      const Tensor flow =
          run_causal(r.ops, network, r.latent(fmt::format("in.x.{}.{}", c, s)), state, pass);
      r.compare(fmt::format("out.flow.{}.{}", c, s), r.channels_first(flow));
    }
    r.compare_count(fmt::format("out.local_end.{}", c), place->visible_frames * tokens_per_frame);
  }
  // The reference keeps its cache in time order; read the ring in that order.
  const Tensor keys = r.ops.to_host(r.ops.cast(state.layers[0].k, DType::kF32));
  Tensor ordered = Tensor::zeros(DType::kF32, keys.shape());
  int64_t at = 0;
  for (const int64_t slot : ring.slots()) {
    ordered.slice(1, at, at + tokens_per_frame)
        .assign(keys.slice(1, slot * tokens_per_frame, (slot + 1) * tokens_per_frame));
    at += tokens_per_frame;
  }
  r.compare("out.cache_k.0", ordered);
}

void replay_wan_bidirectional(const Replay& r) {
  const WanDitConfig config = transformer_config(r.golden);
  const auto network = bind_all<WanDit>(r, config, r.options.dtype);
  const TextKv text = network.text(r.ops, padded_text(r, config));
  const Tensor t = r.golden.tensor("in.t").to(DType::kF64);
  const TimeModulation time = network.time(r.ops, t.span<double>());
  const Tensor flow = run_bidirectional(r.ops, network, r.latent("in.x"), time, text);
  r.compare("out.flow", r.channels_first(flow));
}

void replay_sparse_sr_dit(const Replay& r) {
  SparseSrDitConfig config;
  config.transformer = transformer_config(r.golden);
  const std::vector<int64_t> window = r.golden.integers("sparse_block_size");
  if (window.size() != 3)
    throw_error(StatusCode::kMalformed, "{}: 'sparse_block_size' needs three sizes",
                r.golden.label());
  config.window = {window[0], window[1], window[2]};
  config.local_range = r.golden.integer("sparse_local_range");
  config.top_k_ratio = r.golden.number_or("sparse_top_k_ratio", 1.0);
  config.ref_spatial_tokens = r.golden.integer("sparse_ref_spatial_tokens");
  config.stream_chunk_size = r.golden.integer("stream_chunk_size");
  if (const Status status = config.validate(); !status.ok()) throw Error(status);
  const auto network = bind_all<SparseSrDit>(r, config);
  const std::vector<int64_t> groups = r.golden.integers("groups");
  const std::vector<int64_t> latent = r.golden.integers("latent");
  const int64_t kv_len = r.golden.integer("kv_len");
  if (groups.empty() || latent.size() != 2)
    throw_error(StatusCode::kMalformed, "{}: 'groups' and 'latent'", r.golden.label());
  const int64_t longest = *std::max_element(groups.begin(), groups.end());
  SparseSrState state = network.make_state(r.ops, 1, latent[0] / 2, latent[1] / 2, longest, kv_len);
  const TextKv text = network.transformer().text(r.ops, padded_text(r, config.transformer));
  const Tensor t = r.golden.tensor("in.t").to(DType::kF64);
  const TimeModulation time = network.transformer().time(r.ops, t.span<double>());
  const auto layers = static_cast<size_t>(config.transformer.num_layers);
  for (size_t g = 0; g < groups.size(); ++g) {
    std::vector<Tensor> recorded;
    std::vector<Tensor> chosen;
    for (size_t layer = 0; layer < layers; ++layer) {
      const Tensor mask = r.golden.tensor(fmt::format("out.mask.{}.layer{}", g, layer));
      if (mask.rank() != 3)
        throw_error(StatusCode::kMalformed, "{}: a mask {}", r.golden.label(), mask.to_string());
      recorded.push_back(mask.reshape({1, mask.dim(0), mask.dim(1), mask.dim(2)}));
    }
    SparseSrPass pass;
    pass.time = &time;
    pass.text = &text;
    pass.kv_len = kv_len;
    pass.injected_masks = r.options.inject_masks ? &recorded : nullptr;
    pass.chosen_masks = r.options.inject_masks ? nullptr : &chosen;
    const Tensor flow = network.run(r.ops, r.latent(fmt::format("in.x.{}", g)),
                                    r.latent(fmt::format("in.y.{}", g)), state, pass);
    for (size_t layer = 0; layer < chosen.size(); ++layer) {
      r.compare_mask(fmt::format("out.mask.{}.layer{}", g, layer), chosen[layer]);
    }
    r.compare(fmt::format("out.flow.{}", g), r.channels_first(flow));
    const WindowGrid grid = network.windows({groups[g], latent[0] / 2, latent[1] / 2});
    r.compare_count(fmt::format("out.cache_blocks.{}", g),
                    state.cached_blocks * grid.spatial_blocks());
  }
}

}  // namespace ultraflash

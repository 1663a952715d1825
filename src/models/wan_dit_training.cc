#include "models/wan_dit_training.h"

#include "core/check.h"

namespace ultraflash {
namespace {

// All frames of `latent` in one pass. With `forced` its first half is the clean clip and its second
// the noisy one, both at the positions 0, 1, ...
Tensor run_masked(Executor& ops, const WanDit& network, const Tensor& latent, int64_t chunk_frames,
                  bool forced, const TimeModulation& time, const TextKv& text,
                  const ForwardProbe& probe) {
  const WanDitConfig& config = network.config();
  const TokenGrid grid{latent.dim(1), latent.dim(2) / 2, latent.dim(3) / 2};
  AttentionOptions options;
  options.chunk_mask = forced ? ChunkMask::kTeacherForcing : ChunkMask::kChunkCausal;
  options.chunk_tokens = chunk_frames * grid.tokens_per_frame();
  ChunkPlace place;
  place.ring_end = grid.frames;
  place.visible_frames = grid.frames;
  place.position_period = forced ? grid.frames / 2 : 0;
  ops.update_place(place);
  const Shape shape{latent.dim(0), grid.tokens(), config.dim};
  const KvCache empty{ops.empty(network.compute(), shape), ops.empty(network.compute(), shape)};
  const Tensor patches = ops.patchify(latent, {}, network.compute());
  const Tensor head = network.run(
      ops, patches, time, text,
      [&](int64_t /*layer*/, const WanAttention& weights, const Tensor& qkv) -> Tensor {
        KvCache cache = empty;  // nothing is read again once a layer is done
        const Tensor q = ops.qkv_to_cache(qkv, weights.norm_q, weights.norm_k, config.eps, grid,
                                          config.num_heads, place, cache);
        return ops.attention(q, cache.k, cache.v, config.num_heads, options);
      },
      probe);
  return ops.unpatchify(head, grid, latent.dtype());
}

void check_latent(const WanDit& network, const Tensor& latent, int64_t chunk_frames) {
  UF_CHECK(latent.rank() == 5 && latent.dim(4) == network.config().in_dim,
           "latent {} for {} channels", latent.to_string(), network.config().in_dim);
  UF_CHECK(chunk_frames > 0 && latent.dim(1) % chunk_frames == 0, "{} frames in chunks of {}",
           latent.dim(1), chunk_frames);
}

}  // namespace

Tensor run_chunk_causal(Executor& ops, const WanDit& network, const Tensor& latent,
                        int64_t chunk_frames, const TimeModulation& time, const TextKv& text,
                        const ForwardProbe& probe) {
  check_latent(network, latent, chunk_frames);
  return run_masked(ops, network, latent, chunk_frames, /*forced=*/false, time, text, probe);
}

Tensor run_teacher_forcing(Executor& ops, const WanDit& network, const Tensor& clean,
                           const Tensor& noisy, int64_t chunk_frames, const TimeModulation& time,
                           const TextKv& text, const ForwardProbe& probe) {
  check_latent(network, noisy, chunk_frames);
  UF_CHECK(clean.shape() == noisy.shape() && clean.dtype() == noisy.dtype(),
           "clean latent {} beside {}", clean.to_string(), noisy.to_string());
  const int64_t frames = noisy.dim(1);
  const Tensor both = ops.empty(noisy.dtype(), noisy.shape().with(1, 2 * frames));
  ops.copy(both.slice(1, 0, frames), clean);
  ops.copy(both.slice(1, frames, 2 * frames), noisy);
  const Tensor flow =
      run_masked(ops, network, both, chunk_frames, /*forced=*/true, time, text, probe);
  const Tensor result = ops.empty(flow.dtype(), flow.shape().with(1, frames));
  ops.copy(result, flow.slice(1, frames, 2 * frames));
  return result;
}

}  // namespace ultraflash

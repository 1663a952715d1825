#include "models/sparse_sr_dit.h"

#include <algorithm>

#include "core/check.h"

namespace ultraflash {

Status SparseSrDitConfig::validate() const {
  UF_TRY(transformer.validate());
  const auto within = [](int64_t value, int64_t high) { return value >= 1 && value <= high; };
  if (!within(window.frames, 64) || !within(window.height, 256) || !within(window.width, 256)) {
    return make_status(StatusCode::kInvalidArgument,
                       "SR transformer: window {} x {} x {}, each side must be positive and at "
                       "most 64 frames and 256 patches",
                       window.frames, window.height, window.width);
  }
  if (!within(local_range, 1 << 20) || !within(ref_spatial_tokens, 1 << 30) ||
      !within(stream_chunk_size, 1 << 20)) {
    return make_status(StatusCode::kInvalidArgument,
                       "SR transformer: local range {}, reference size {} and chunk size {} must "
                       "be positive",
                       local_range, ref_spatial_tokens, stream_chunk_size);
  }
  if (!(top_k_ratio > 0.0) || top_k_ratio > 1e6) {
    return make_status(StatusCode::kInvalidArgument,
                       "SR transformer: top-k ratio {} must be positive", top_k_ratio);
  }
  return {};
}

int64_t SparseSrDitConfig::top_k(const WindowGrid& grid, double factor) const {
  const int64_t pairs = grid.spatial_blocks() * grid.spatial_blocks();
  const double ratio = factor * top_k_ratio * static_cast<double>(ref_spatial_tokens) /
                       static_cast<double>(std::max<int64_t>(grid.grid.tokens_per_frame(), 1));
  const int64_t largest = std::max<int64_t>(pairs * grid.temporal_blocks() - 1, 1);
  const auto wanted = static_cast<int64_t>(
      std::min(static_cast<double>(pairs) * ratio, static_cast<double>(largest)));
  return std::min(std::max<int64_t>(wanted, 1), largest);
}

void SparseSrState::reset() {
  cached_blocks = 0;
  first_slot = 0;
  frames_seen = 0;
}

SparseSrDit SparseSrDit::bind(Loader loader, const SparseSrDitConfig& config) {
  SparseSrDit network;
  network.config_ = config;
  // The time MLP, modulation and head are f32 islands whatever the activations are.
  network.transformer_ = WanDit::bind(std::move(loader), config.transformer, DType::kF32);
  return network;
}

SparseSrState SparseSrDit::make_state(Executor& ops, int64_t batch, int64_t height, int64_t width,
                                      int64_t group_frames, int64_t kv_len, bool one_ring) const {
  SparseSrState state;
  state.frame = {1, height, width};
  const WindowGrid grid = windows({group_frames, height, width});
  state.kv_len = std::max<int64_t>(kv_len, 1);
  state.group_blocks = grid.temporal_blocks();
  const auto layers = static_cast<size_t>(config_.transformer.num_layers);
  state.places.resize(layers);
  state.caches.resize(one_ring ? 1 : layers);
  const int64_t blocks = state.capacity_blocks() * grid.spatial_blocks();
  const int64_t dim = config_.transformer.dim;
  const DType dtype = transformer_.compute();
  for (WindowCache& cache : state.caches) {
    cache =
        ops.window_cache(dtype, batch, blocks, config_.window, dim, config_.transformer.num_heads);
  }
  return state;
}

void SparseSrDit::begin(Executor& ops, int64_t frames, SparseSrState& state) const {
  const int64_t blocks = windows({frames, state.frame.height, state.frame.width}).temporal_blocks();
  UF_CHECK(state.cached_blocks + blocks <= state.kv_len + state.group_blocks,
           "{} cached and {} new temporal blocks in a cache for {} and {}", state.cached_blocks,
           blocks, state.kv_len, state.group_blocks);
  const int64_t capacity = state.capacity_blocks();
  int64_t slot = state.first_slot;
  for (GroupPlace& place : state.places) {
    place.first_frame = state.frames_seen;
    place.first_slot = slot;
    place.cached_blocks = state.cached_blocks;
    place.capacity_blocks = capacity;
    ops.update_place(place);
    if (state.one_ring()) slot = (slot + capacity - state.kv_len) % capacity;
  }
}

Tensor SparseSrDit::forward(Executor& ops, const Tensor& noise, const Tensor& condition,
                            SparseSrState& state, const SparseSrPass& pass) const {
  const WanDitConfig& transformer = config_.transformer;
  UF_CHECK(noise.rank() == 5 && condition.shape() == noise.shape() &&
               2 * noise.dim(4) == transformer.in_dim,
           "noise {} and condition {} for {} channels", noise.to_string(), condition.to_string(),
           transformer.in_dim);
  const TokenGrid grid{noise.dim(1), noise.dim(2) / 2, noise.dim(3) / 2};
  UF_CHECK(grid.height == state.frame.height && grid.width == state.frame.width,
           "a group of {} x {} patches in a stream of {} x {}", grid.height, grid.width,
           state.frame.height, state.frame.width);
  const WindowGrid window_grid = windows(grid);
  BlockSelection selection;
  selection.local_range = config_.local_range;
  selection.top_k = config_.top_k(window_grid, pass.ratio_factor);
  selection.blocks_per_chunk =
      std::max<int64_t>(config_.stream_chunk_size / config_.window.frames, 1);

  const Tensor patches = ops.patchify(noise, condition, transformer_.compute());
  const Tensor head = transformer_.run(
      ops, patches, *pass.time, *pass.text,
      [&](int64_t layer, const WanAttention& weights, Tensor qkv) -> Tensor {
        const auto index = static_cast<size_t>(layer);
        const GroupPlace& place = state.places[index];
        WindowCache& cache = state.caches[state.one_ring() ? 0 : index];
        const WindowedQueries queries =
            ops.qkv_to_windows(qkv, weights.norm_q, weights.norm_k, transformer.eps, window_grid,
                               transformer.num_heads, place, cache);
        qkv = Tensor();
        const BlockMask mask = pass.injected_masks != nullptr
                                   ? ops.block_mask_from((*pass.injected_masks)[index])
                                   : ops.select_blocks(queries, cache, window_grid,
                                                       transformer.num_heads, place, selection);
        if (pass.chosen_masks != nullptr) pass.chosen_masks->push_back(ops.to_host(mask.mask));
        return ops.block_sparse_attention(queries, cache, mask, window_grid, transformer.num_heads,
                                          place);
      },
      pass.probe);
  return ops.unpatchify(head, grid, noise.dtype());
}

void SparseSrDit::commit(int64_t frames, int64_t kv_len, SparseSrState& state) const {
  const int64_t visible =
      state.cached_blocks +
      windows({frames, state.frame.height, state.frame.width}).temporal_blocks();
  // More would reach into the blocks of the next layer.
  const int64_t kept = std::min({visible, std::max<int64_t>(kv_len, 1), state.kv_len});
  state.first_slot = (state.first_slot + visible - kept) % state.capacity_blocks();
  state.cached_blocks = kept;
  state.frames_seen += frames;
}

Tensor SparseSrDit::run(Executor& ops, const Tensor& noise, const Tensor& condition,
                        SparseSrState& state, const SparseSrPass& pass) const {
  begin(ops, noise.dim(1), state);
  Tensor flow = forward(ops, noise, condition, state, pass);
  commit(noise.dim(1), pass.kv_len, state);
  return flow;
}

}  // namespace ultraflash

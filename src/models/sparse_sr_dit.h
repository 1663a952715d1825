// The sparse causal super-resolution transformer of Ultra Flash: Wan2.1 with 32 input channels
// (noise and condition), window-ordered block-sparse self-attention and a ring of cached temporal
// blocks. One denoising step. Follows UltraFlash sr/dit_sparse/models.py and sr/stream_forward.py.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "models/wan_dit.h"
#include "ops/executor.h"
#include "ultraflash/status.h"

namespace ultraflash {

struct SparseSrDitConfig {
  WanDitConfig transformer;           // in_dim 32
  WindowShape window;                 // tokens of one window block: 2 latent frames x 8 x 8
  int64_t local_range = 9;            // spatial blocks a query may look across
  double top_k_ratio = 1.0;           // share of all block pairs kept at the reference size
  int64_t ref_spatial_tokens = 1560;  // the reference size: tokens of a latent frame
  int64_t stream_chunk_size = 2;      // latent frames that see each other whatever their order

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("transformer", transformer);
    visit("window_frames", window.frames);
    visit("window_height", window.height);
    visit("window_width", window.width);
    visit("local_range", local_range);
    visit("top_k_ratio", top_k_ratio);
    visit("ref_spatial_tokens", ref_spatial_tokens);
    visit("stream_chunk_size", stream_chunk_size);
  }

  /// kInvalidArgument naming the field.
  [[nodiscard]] Status validate() const;
  /// Pairs kept per head and query temporal block for a group on `grid`; at least one more is.
  /// `factor` multiplies top_k_ratio.
  [[nodiscard]] int64_t top_k(const WindowGrid& grid, double factor = 1.0) const;
};

/// The window cache of all layers and how far the stream is.
///
/// On request one ring serves every layer. Layer i keeps its cached temporal blocks `kv_len` slots
/// below those of layer i - 1 and writes the new ones right after them: into slots that layer i -
/// 1, which is done by then, has just let go of. So the ring needs room for one group beside what
/// is kept, not for one group a layer, and nothing is ever copied.
struct SparseSrState {
  std::vector<WindowCache> caches;  // one a layer, or the one ring
  std::vector<GroupPlace> places;   // of the group that begin() saw last, one a layer
  TokenGrid frame;                  // one latent frame
  int64_t kv_len = 0;               // most cached temporal blocks of a layer
  int64_t group_blocks = 0;         // most temporal blocks of a group
  int64_t cached_blocks = 0;        // visible blocks of earlier groups
  int64_t first_slot = 0;           // slot of the oldest of them in layer 0
  int64_t frames_seen = 0;          // latent frames super-resolved, the rotary offset

  [[nodiscard]] bool one_ring() const { return caches.size() < places.size(); }
  /// Slots of a cache.
  [[nodiscard]] int64_t capacity_blocks() const {
    return (one_ring() ? static_cast<int64_t>(places.size()) : 1) * kv_len + group_blocks;
  }
  /// A new stream; the memory stays.
  void reset();
};

struct SparseSrPass {
  const TimeModulation* time = nullptr;
  const TextKv* text = nullptr;
  int64_t kv_len = 3;         // temporal blocks that the next group may see
  double ratio_factor = 1.0;  // on top_k_ratio, for training at several budgets
  /// Replaces the chosen masks, one per layer: u8 [batch, heads, query_blocks, key_blocks].
  const std::vector<Tensor>* injected_masks = nullptr;
  /// Receives the mask of every layer when not null.
  std::vector<Tensor>* chosen_masks = nullptr;
  ForwardProbe probe;
};

class SparseSrDit {
 public:
  static SparseSrDit bind(Loader loader, const SparseSrDitConfig& config);

  [[nodiscard]] const SparseSrDitConfig& config() const { return config_; }
  [[nodiscard]] const WanDit& transformer() const { return transformer_; }
  [[nodiscard]] WindowGrid windows(const TokenGrid& grid) const { return {grid, config_.window}; }

  /// Cache memory for groups of at most `group_frames` latent frames with patch grid
  /// height x width, and at most `kv_len` cached temporal blocks. One ring for all layers takes
  /// least; an executor that differentiates, and so copies what it writes into, wants a cache a
  /// layer.
  [[nodiscard]] SparseSrState make_state(Executor& ops, int64_t batch, int64_t height,
                                         int64_t width, int64_t group_frames, int64_t kv_len,
                                         bool one_ring = true) const;

  /// One group: noise and condition [batch, f, h, w, 16] each -> flow prediction of that shape and
  /// dtype. Advances the state: begin(), forward() and commit() in one.
  Tensor run(Executor& ops, const Tensor& noise, const Tensor& condition, SparseSrState& state,
             const SparseSrPass& pass) const;

  /// The three parts of run(). What forward() queues depends on the shapes and on
  /// state.cached_blocks alone, so that it can be recorded and repeated (Executor::repeat).
  void begin(Executor& ops, int64_t frames, SparseSrState& state) const;
  Tensor forward(Executor& ops, const Tensor& noise, const Tensor& condition, SparseSrState& state,
                 const SparseSrPass& pass) const;
  void commit(int64_t frames, int64_t kv_len, SparseSrState& state) const;

 private:
  SparseSrDitConfig config_;
  WanDit transformer_;
};

}  // namespace ultraflash

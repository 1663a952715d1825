// What operations take besides tensors: weights, caches, grids and options.
//
// Shapes are written outermost first. `batch` is the number of independent streams, `tokens` the
// number of latent patches, `dim` the model width = heads * head_dim.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/tensor.h"

namespace ultraflash {

enum class Activation : uint8_t { kNone, kRelu, kSilu, kGeluTanh, kGeluErf };

/// An executor's own copy of a weight in the layout its kernels want. Opaque to everyone else.
class PreparedWeight {
 public:
  PreparedWeight() = default;
  PreparedWeight(const PreparedWeight&) = delete;
  PreparedWeight& operator=(const PreparedWeight&) = delete;
  virtual ~PreparedWeight() = default;
  /// Memory held besides the tensors it was made from.
  [[nodiscard]] virtual size_t size_bytes() const = 0;
};

/// A matrix product y = x W^T + b. Several products of one input (query, key and value) are one
/// Linear of several parts, whose outputs stand next to each other.
struct Linear {
  std::vector<Tensor> weights;  // part i: [out_i, in]
  std::vector<Tensor> biases;   // part i: [out_i]; empty without bias
  int64_t in_features = 0;
  int64_t out_features = 0;  // sum over the parts
  std::shared_ptr<const PreparedWeight> prepared;
};

/// A convolution with zero padding: weight [out, in, height, width], or [out, in, time, height,
/// width] for one that also reaches back in time.
struct Conv {
  Tensor weight;
  Tensor bias;  // [out]; undefined without bias
  std::shared_ptr<const PreparedWeight> prepared;
};

/// How a weight is prepared.
struct PrepareOptions {
  DType compute = DType::kF32;  // type of the activations it will meet
  /// Keep the weight as it lies in the (mapped) file and convert panel by panel at each use: slow
  /// per call, but a network larger than memory runs.
  bool streamed = false;
  /// Meets few rows, such as those of the text or of timesteps: no faster in fewer bits, and what
  /// it rounds every token depends on.
  bool few_rows = false;
};

/// Token grid of a chunk: tokens = frames * height * width, width fastest.
struct TokenGrid {
  int64_t frames = 0;
  int64_t height = 0;
  int64_t width = 0;
  [[nodiscard]] int64_t tokens_per_frame() const { return height * width; }
  [[nodiscard]] int64_t tokens() const { return frames * height * width; }
};

/// Where a chunk stands in time and where its keys and values go in a KvCache.
///
/// The cache is a row of frame slots. Frame i of the chunk is written to slot `first_slot + i`,
/// wrapping from `ring_end` back to `ring_begin`: slots below ring_begin are the sink, the rest is
/// the window. The order of slots does not matter to attention, since keys carry their rotary
/// position. Slots [0, visible_frames) are attended.
///
/// These numbers change every chunk. An executor that replays captured graphs keeps its own copy
/// in device memory (Executor::update_place).
struct ChunkPlace {
  int64_t first_frame = 0;  // latent frame index of frame 0, for the rotary embedding
  int64_t first_slot = 0;
  int64_t ring_begin = 0;
  int64_t ring_end = 0;  // capacity of the cache in frames
  int64_t visible_frames = 0;
  /// Positive: rotary positions start again after so many frames, for several clips of one time
  /// side by side (teacher forcing).
  int64_t position_period = 0;
  Tensor device;  // executor's copy; undefined where the host numbers are used directly

  /// Rotary position of frame `frame` of the chunk.
  [[nodiscard]] int64_t position_of(int64_t frame) const {
    return first_frame + (position_period > 0 ? frame % position_period : frame);
  }
  [[nodiscard]] int64_t slot_of(int64_t frame) const {
    const int64_t slot = first_slot + frame;
    return slot < ring_end ? slot : ring_begin + (slot - ring_end);
  }
};

/// Self-attention keys (after norm and rotary embedding) and values of one layer:
/// [batch, capacity_frames * tokens_per_frame, dim] each. An executor that differentiates replaces
/// the tensors instead of writing into them, and one may keep its own layout
/// (Executor::kv_cache).
struct KvCache {
  Tensor k;
  Tensor v;
  Tensor scales{};  // of an executor's own layout
};

/// Tokens of a window block: 2 latent frames x 8 x 8 patches.
struct WindowShape {
  int64_t frames = 2;
  int64_t height = 8;
  int64_t width = 8;
  [[nodiscard]] int64_t tokens() const { return frames * height * width; }
  friend bool operator==(const WindowShape&, const WindowShape&) = default;
};

/// A token grid cut into window blocks; each axis is padded at its end to a multiple of the window.
struct WindowGrid {
  TokenGrid grid;
  WindowShape window;
  [[nodiscard]] int64_t temporal_blocks() const {
    return (grid.frames + window.frames - 1) / window.frames;
  }
  [[nodiscard]] int64_t block_rows() const {
    return (grid.height + window.height - 1) / window.height;
  }
  [[nodiscard]] int64_t block_columns() const {
    return (grid.width + window.width - 1) / window.width;
  }
  [[nodiscard]] int64_t spatial_blocks() const { return block_rows() * block_columns(); }
  [[nodiscard]] int64_t blocks() const { return temporal_blocks() * spatial_blocks(); }
};

/// Where a group stands in time and in a WindowCache. The cache is a ring of temporal-block slots:
/// temporal block j of the view (0 is the oldest cached one, `cached_blocks` the first of this
/// group) lies in slot (first_slot + j) % capacity_blocks.
struct GroupPlace {
  int64_t first_frame = 0;    // latent frame index of frame 0, for the rotary embedding
  int64_t first_slot = 0;     // slot of the oldest cached temporal block
  int64_t cached_blocks = 0;  // temporal blocks of earlier groups that are visible
  int64_t capacity_blocks = 0;
  Tensor device;

  [[nodiscard]] int64_t slot_of(int64_t block) const {
    return (first_slot + block) % capacity_blocks;
  }
};

/// Keys, values and pooled keys of one layer of the sparse SR DiT, in window order:
/// k, v: [batch, capacity_blocks * spatial_blocks, window_tokens, dim], padding included (zeros);
/// pooled_k: [batch, capacity_blocks * spatial_blocks, dim], mean over all window tokens.
struct WindowCache {
  Tensor k;
  Tensor v;
  Tensor pooled_k;
  Tensor scales{};  // of an executor's own layout
};

/// Queries of a group in window order, as the block-sparse attention wants them.
struct WindowedQueries {
  Tensor q;       // [batch, blocks, window_tokens, dim], padding included (zeros)
  Tensor pooled;  // [batch, blocks, dim]
};

/// Which key blocks each query block may see and how many pairs are kept.
struct BlockSelection {
  int64_t local_range = 9;       // window of spatial blocks, see Executor::select_blocks
  int64_t top_k = 1;             // pairs kept per (head, query temporal block): at least top_k + 1
  int64_t blocks_per_chunk = 1;  // temporal blocks that see each other whatever their order
};

/// A block-sparse mask: 1 where a query block reads a key block. Key blocks are in the order of the
/// view (oldest temporal block first), whatever their slots.
struct BlockMask {
  Tensor mask;     // u8 [batch, heads, query_blocks, key_blocks]
  Tensor indices;  // i32 [batch, heads, query_blocks, key_blocks]: the selected blocks, ascending
  Tensor counts;   // i32 [batch, heads, query_blocks]
  Tensor order;    // an executor's own: in which order it takes the lists; may be undefined
};

/// Which keys a query sees when chunks are trained side by side. Chunk i is tokens
/// [i * chunk_tokens, (i + 1) * chunk_tokens).
enum class ChunkMask : uint8_t {
  kNone,
  kChunkCausal,     // chunk i sees chunks 0 to i
  kTeacherForcing,  // first half clean, second noisy: clean chunk i sees clean chunks 0 to i, noisy
                    // chunk i sees clean chunks 0 to i - 1 and itself
};

/// Dense attention beyond softmax(q k^T * scale) v.
struct AttentionOptions {
  float scale = 0.0F;  // 0: 1/sqrt(head_dim)
  int64_t keys = -1;   // only the first `keys` keys are attended; -1: all
  Tensor key_lengths;  // i64 [batch]: per-sample number of keys; undefined: `keys`
  /// f32 [heads, queries + keys - 1], added to the scaled scores: query n and key j take element
  /// n - j + keys - 1. T5's relative positions.
  Tensor relative_bias;
  ChunkMask chunk_mask = ChunkMask::kNone;  // takes q, k and v of one length and no other option
  int64_t chunk_tokens = 0;                 // beside `scale`
};

/// Keys and values that queries of another kind attend to, such as those of a text.
struct CrossKeys {
  Tensor k;  // [batch or 1, keys, dim]
  Tensor v;
  /// i64 [1] in the executor's memory: rows of k, and of v, from distinct[0] - 1 on are all equal,
  /// as those of padding are. An executor may take them as one that counts as often as it is
  /// there. Undefined: nothing is known.
  Tensor distinct{};
};

/// Zero padding of a 2-D convolution, in input pixels.
struct Padding {
  int64_t top = 1;
  int64_t bottom = 1;
  int64_t left = 1;
  int64_t right = 1;
};

struct Conv2dOptions {
  Padding padding;  // default keeps the size with a 3x3 kernel
  int64_t stride = 1;
  int64_t upsample = 1;  // the input is enlarged by pixel repetition first
  Activation activation = Activation::kNone;
  Tensor residual;  // added to the result before the activation; shape of the result
  Tensor memory;    // frame before the first one: see Executor::conv2d
  bool with_memory = false;
};

struct Conv3dOptions {
  Padding padding;
  int64_t stride_time = 1;
  Tensor past;        // the last frames of earlier calls: [batch, p, height, width, in]
  int64_t zeros = 0;  // zero frames put before `past`
};

/// A gated residual together with the norm that follows it.
struct ResidualNorm {
  Tensor x;           // the residual stream after the update
  Tensor normalized;  // its norm, input of the next product
};

}  // namespace ultraflash

// Executor: the narrow waist. Every network is written in these operations, and every device
// implements all of them: ops/cpu (vector code and oneDNN), later ops/cuda and ops/autograd.
//
// Each public method checks its arguments (a violation is a defect of a network, Error kInternal)
// and calls the protected virtual of the same name; tests/reference_ops holds a plain scalar
// definition of each. Results live in the executor's arena, so the steady state allocates nothing;
// an argument passed by value and moved in may be reused for the result. Operations are queued in
// order; only to_host() and synchronize() wait.
//
// Unless an operation says otherwise, tensors are contiguous except that leading axes may be
// strided where noted, x and the result share the dtype of x (f32 or bf16), statistics, softmax and
// accumulation are f32, and each result is rounded once.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/arena.h"
#include "core/function_ref.h"
#include "core/rng.h"
#include "core/tensor.h"
#include "ops/op_log.h"
#include "ops/types.h"

namespace ultraflash {

struct DeviceMemoryInfo {
  uint64_t free_bytes = 0;
  uint64_t total_bytes = 0;
};

/// A point in an executor's queue: everything that was queued before it.
class Moment {
 public:
  Moment() = default;
  Moment(const Moment&) = delete;
  Moment& operator=(const Moment&) = delete;
  virtual ~Moment() = default;
  /// Returns when the queue has come to it. Throws Error(kDevice) when the device failed.
  virtual void wait() = 0;
  /// Whether it has; a failure of the device counts as reached, and wait() says what it was.
  [[nodiscard]] virtual bool reached() const = 0;
  /// Time from `earlier`, a moment of the same device. Both must have been reached.
  [[nodiscard]] virtual double seconds_since(const Moment& earlier) const = 0;
};

/// What an executor keeps of work that is repeated: see Executor::repeat.
class Recording {
 public:
  Recording() = default;
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  virtual ~Recording() = default;
};

class Executor {
 public:
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;
  virtual ~Executor() = default;

  // --- memory ---------------------------------------------------------------------------------

  [[nodiscard]] virtual Device device() const = 0;
  /// "cpu (avx512_bf16, oneDNN 2.6.3, 2 threads)": for logs and doctor.
  [[nodiscard]] virtual std::string description() const = 0;
  [[nodiscard]] virtual Arena::Stats memory() const = 0;
  /// Memory of the whole device, other programs' included; zeros where that is the host's.
  [[nodiscard]] virtual DeviceMemoryInfo device_memory() const { return {}; }
  /// Uninitialised memory of the executor. Throws Error(kOutOfMemory).
  [[nodiscard]] Tensor empty(DType dtype, const Shape& shape) { return do_empty(dtype, shape); }
  [[nodiscard]] Tensor zeros(DType dtype, const Shape& shape);
  /// Copy of a host tensor in executor memory, converted to `dtype`.
  [[nodiscard]] Tensor to_device(const Tensor& host, DType dtype) {
    return do_to_device(host, dtype);
  }
  /// The elements in host memory, contiguous; waits for the operations that make them. Where the
  /// executor works in host memory this is the same handle.
  [[nodiscard]] Tensor to_host(const Tensor& x) { return do_to_host(x); }
  /// Element-wise copy between tensors of this executor; shapes equal, either may be strided.
  void copy(const Tensor& destination, const Tensor& source);
  virtual void synchronize() = 0;

  // --- order in time --------------------------------------------------------------------------

  /// Whether operations run beside the calling thread, which then waits for moments alone.
  [[nodiscard]] virtual bool queues() const { return false; }
  /// Where the queue is now.
  [[nodiscard]] virtual std::shared_ptr<Moment> moment();
  /// What is queued from now on runs after `other`, which may be another executor's.
  virtual void wait_for(const std::shared_ptr<Moment>& other) { other->wait(); }
  /// As to_host(), but returns at once: the elements are there when `ready` has been waited for,
  /// and x must live until then.
  [[nodiscard]] virtual Tensor to_host_later(const Tensor& x, std::shared_ptr<Moment>& ready);
  /// Calls work(), or repeats what the calls before it queued without calling it. The operations of
  /// `work`, their shapes and every tensor that it reads or writes besides its own must be the same
  /// each time a recording is used; numbers that change go through update_place or into tensors.
  /// work() must not wait, and results go out through tensors that were made before.
  virtual void repeat(std::unique_ptr<Recording>& recording, FunctionRef<void()> work);
  /// Every operation from now on is timed into `log`, which costs a few per cent and takes the
  /// place of recordings; null ends it.
  void log_operations(OpLog* log) { op_log_ = log; }
  [[nodiscard]] bool logs_operations() const { return op_log_ != nullptr; }

  /// Makes the numbers of a place visible to the operations queued after this call.
  virtual void update_place(ChunkPlace& place) = 0;
  virtual void update_place(GroupPlace& place) = 0;

  /// Bounds of a stretch of operations, such as a layer. An executor that differentiates may keep
  /// what went in instead of what was made on the way, and run the stretch again in the backward
  /// pass; others do nothing. Used through RecomputeRegion. `results` and the caches written inside
  /// are all that is used after the end; weights and places outlive the backward pass.
  virtual void begin_region() {}
  virtual void end_region(std::span<const Tensor> /*results*/) {}
  /// Ends a region that was left early, without gradients.
  virtual void drop_region() {}

  // --- weights --------------------------------------------------------------------------------

  /// Builds `linear.prepared`. The bound tensors may then be dropped unless the executor
  /// differentiates or the weight is streamed. Throws Error(kOutOfMemory).
  void prepare(Linear& linear, const PrepareOptions& options);
  void prepare(Conv& conv, const PrepareOptions& options);

  // --- products -------------------------------------------------------------------------------

  /// x [..., in] -> activation(x W^T + b) [..., out].
  Tensor linear(const Tensor& x, const Linear& weight, Activation activation = Activation::kNone);
  /// linear(linear(x, first, activation), second). An executor may take the rows in parts, so that
  /// the wide rows in between never exist at once.
  Tensor feed_forward(const Tensor& x, const Linear& first, Activation activation,
                      const Linear& second);
  /// As linear() on the concatenation over channels of `frames` consecutive frames:
  /// x [batch, frames * t, h, w, c] -> [batch, t, h, w, out]. TAEHV's TPool.
  Tensor temporal_pool(const Tensor& x, const Linear& weight, int64_t frames);
  /// x [batch, t, h, w, c] -> [batch, frames * t, h, w, out / frames]: output channel group g of
  /// frame t becomes frame t * frames + g. TAEHV's TGrow.
  Tensor temporal_grow(const Tensor& x, const Linear& weight, int64_t frames);

  // --- normalisation, modulation, residuals -----------------------------------------------------

  /// (x - mean) / sqrt(var + eps) * weight + bias over the last axis; weight and bias [dim], f32,
  /// or undefined.
  Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps);
  /// layer_norm(x) * (1 + scale) + shift. x [batch, tokens, dim]; shift, scale f32
  /// [batch or 1, rows, dim] (may be strided): token n uses row n / (tokens / rows).
  /// Here and below `reader` may name the one weight whose product reads the normalized rows, as
  /// the first argument of linear(), feed_forward() or cross_attention(): an executor may leave
  /// them in a form of its own (f8_e4m3, scales out of sight), which nothing else takes.
  Tensor layer_norm_modulate(const Tensor& x, const Tensor& shift, const Tensor& scale, float eps,
                             const Linear* reader = nullptr);
  /// x / sqrt(mean(x^2) + eps) * weight over the last axis; weight [dim] f32.
  Tensor rms_norm(const Tensor& x, const Tensor& weight, float eps);
  /// x + y * gate; gate f32 [batch or 1, rows, dim] as in layer_norm_modulate, or undefined for 1.
  Tensor gated_residual(Tensor x, const Tensor& y, const Tensor& gate);
  /// gated_residual followed by layer_norm_modulate of the result.
  ResidualNorm residual_modulate(Tensor x, const Tensor& y, const Tensor& gate, const Tensor& shift,
                                 const Tensor& scale, float eps, const Linear* reader = nullptr);
  /// gated_residual followed by layer_norm of the result.
  ResidualNorm residual_layer_norm(Tensor x, const Tensor& y, const Tensor& gate,
                                   const Tensor& weight, const Tensor& bias, float eps,
                                   const Linear* reader = nullptr);
  /// x / max(|x|_2, 1e-12) * sqrt(channels) * gamma over the last axis, then SiLU if asked.
  /// gamma [channels] f32. The Wan VAE's norm.
  Tensor channel_norm(const Tensor& x, const Tensor& gamma, bool silu);

  // --- dense attention --------------------------------------------------------------------------

  /// A cache of `dtype` as KvCache describes it, its contents undefined. An executor that was asked
  /// for attention in another type makes it its own way: k and v of that type, v in a layout of its
  /// own, and qkv_to_cache() returns q of that type, for attention_cached() alone.
  [[nodiscard]] KvCache kv_cache(DType dtype, int64_t batch, int64_t tokens, int64_t dim,
                                 int64_t heads);
  /// From qkv [batch, tokens, 3 * dim] (q, k, v side by side; may be strided over tokens): RMS norm
  /// of q and k over dim with norm_q, norm_k [dim] f32, 3-D rotary embedding of both, k and v
  /// written into the cache at `place`. Returns q [batch, tokens, dim].
  /// Rotary: head_dim/2 interleaved pairs; of head_dim, 2*(head_dim/6) go to height and to width,
  /// the rest to time; angle = position * 10000^(-2j/D) in f64. Wan2.1 model.py, rope_apply.
  Tensor qkv_to_cache(const Tensor& qkv, const Tensor& norm_q, const Tensor& norm_k, float eps,
                      const TokenGrid& grid, int64_t heads, const ChunkPlace& place,
                      KvCache& cache);
  /// softmax(q k^T / sqrt(head_dim)) v over the visible slots of the cache.
  Tensor attention_cached(const Tensor& q, const KvCache& cache, int64_t heads,
                          int64_t tokens_per_frame, const ChunkPlace& place);
  /// q [batch, queries, dim], k and v [batch or 1, keys, dim] (each may be strided over tokens) ->
  /// [batch, queries, dim].
  Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                   const AttentionOptions& options = {});

  /// linear(attention(rms_norm(linear(x, q), norm_q), keys), o): x [batch, queries, in] ->
  /// [batch, queries, o.out_features]. Cross-attention of a transformer block.
  Tensor cross_attention(const Tensor& x, const Linear& q, const Tensor& norm_q, float eps,
                         const CrossKeys& keys, int64_t heads, const Linear& o);

  // --- block-sparse attention -------------------------------------------------------------------

  /// As kv_cache(); `blocks` window blocks.
  [[nodiscard]] WindowCache window_cache(DType dtype, int64_t batch, int64_t blocks,
                                         const WindowShape& window, int64_t dim, int64_t heads);
  /// As qkv_to_cache for the sparse SR DiT: q in window order with its block means, k, v and block
  /// means of k written into the slots of this group. Padding tokens are zero, count in the means,
  /// and are attended.
  WindowedQueries qkv_to_windows(const Tensor& qkv, const Tensor& norm_q, const Tensor& norm_k,
                                 float eps, const WindowGrid& grid, int64_t heads,
                                 const GroupPlace& place, WindowCache& cache);
  /// The block mask of the Ultra Flash SR DiT (UltraFlash dit_sparse/attention.py,
  /// generate_draft_block_mask). Per head and query temporal block i:
  /// allowed = |row|, |column| distance within local_range (half = range/2 below, range-1-half
  /// above) and key temporal block j < (floor((cached + i)/C) + 1) C, C = blocks_per_chunk;
  /// P = softmax over keys of pooled_q . pooled_k / sqrt(head_dim) where allowed;
  /// theta = (top_k + 1)-th largest P of the (spatial x key) matrix, duplicates counted;
  /// mask = P >= theta and allowed; an empty row takes its first allowed block; without cached
  /// blocks the diagonal is set.
  BlockMask select_blocks(const WindowedQueries& queries, const WindowCache& cache,
                          const WindowGrid& grid, int64_t heads, const GroupPlace& place,
                          const BlockSelection& selection);
  /// The lists of a mask that was made elsewhere (u8 [batch, heads, query_blocks, key_blocks]).
  BlockMask block_mask_from(const Tensor& mask);
  /// Exact softmax attention over the union of the selected blocks; rows without a block give 0.
  /// Returns [batch, tokens, dim] in token order, padding dropped.
  Tensor block_sparse_attention(const WindowedQueries& queries, const WindowCache& cache,
                                const BlockMask& mask, const WindowGrid& grid, int64_t heads,
                                const GroupPlace& place);

  // --- convolutions: [batch, frames, height, width, channels] ------------------------------------

  /// 2-D convolution of every frame. With `with_memory` the input channels are (x_t, x_{t-1}): the
  /// weight takes 2c channels, and the frame before the first one is `memory`
  /// [batch, 1, h, w, c] (undefined: zeros). TAEHV's MemBlock. Options that are moved in hand over
  /// their residual.
  Tensor conv2d(const Tensor& x, const Conv& weight, Conv2dOptions options);
  /// 3-D convolution over the frames (zeros, past, x), valid in time:
  /// output frames = (zeros + p + t - kernel_time) / stride_time + 1.
  Tensor causal_conv3d(const Tensor& x, const Conv& weight, const Conv3dOptions& options);
  /// [b, t, h, w, c * r * r] -> [b, t, h * r, w * r, c], then the activation:
  /// out[y * r + i][x * r + j][ch] = in[y][x][(ch * r + i) * r + j].
  Tensor pixel_shuffle(const Tensor& x, int64_t factor, Activation activation = Activation::kNone);

  // --- latents, time and noise
  // --------------------------------------------------------------------

  /// Latents a [batch, f, h, w, ca] and optionally b [batch, f, h, w, cb] (any floating dtype) ->
  /// tokens [batch, f * h/2 * w/2, (ca + cb) * 4] of `dtype`, features ordered
  /// [channel][row][column].
  Tensor patchify(const Tensor& a, const Tensor& b, DType dtype);
  /// Tokens [batch, tokens, 4 * c], features ordered [row][column][channel], any floating dtype ->
  /// latent [batch, f, h, w, c] of `dtype`; grid is that of the tokens.
  Tensor unpatchify(const Tensor& tokens, const TokenGrid& grid, DType dtype);
  /// [cos(t w_0..), sin(t w_0..)], w_i = 10000^(-i / (dim/2)), in f64, result f32 [n, dim].
  Tensor sinusoid(std::span<const double> timesteps, int64_t dim);
  /// a * x + b * y in f32, for x and y of one shape and dtype.
  Tensor axpby(float a, const Tensor& x, float b, const Tensor& y);
  /// x - sigma * v in f64, rounded once.
  Tensor flow_to_x0(const Tensor& x, const Tensor& v, double sigma);
  /// Standard normal numbers: element i of the stream at place i of the tensor.
  Tensor normal(RandomStream stream, const Shape& shape, DType dtype);
  Tensor cast(const Tensor& x, DType dtype);
  /// activation(x).
  Tensor activate(const Tensor& x, Activation activation);
  /// a + b, b broadcast: b.shape is a suffix of a.shape, or differs from a suffix in size-1 axes.
  Tensor add(const Tensor& a, const Tensor& b);
  Tensor multiply(const Tensor& a, const Tensor& b);
  /// limit * tanh(x / limit): TAEHV's input clamp with limit 3.
  Tensor soft_clamp(const Tensor& x, float limit);
  /// x * scale + shift per channel (last axis), scale and shift f32 [channels].
  Tensor channel_affine(const Tensor& x, const Tensor& scale, const Tensor& shift);

  // --- text
  // ---------------------------------------------------------------------------------------

  /// Rows of table [vocabulary, dim] (any floating dtype) for ids i64 [batch, length] in host
  /// memory -> [batch, length, dim] of `dtype`. An id outside the table is Error(kInvalidArgument).
  Tensor embedding(const Tensor& ids, const Tensor& table, DType dtype);
  /// Sets rows n >= lengths[b] of x [batch, rows, dim] to zero; lengths i64 [batch] in host memory.
  Tensor mask_rows(Tensor x, const Tensor& lengths);

  // --- pictures
  // -----------------------------------------------------------------------------------

  /// Channels-last pictures with values in [low, high] -> u8: trunc(255 *
  /// clamp((x-low)/(high-low))).
  Tensor to_rgb8(const Tensor& x, float low, float high);

 protected:
  Executor() = default;

  /// Of the norm that is being queued.
  [[nodiscard]] const Linear* reader() const { return reader_; }

  virtual Tensor do_empty(DType dtype, const Shape& shape) = 0;
  virtual Tensor do_to_device(const Tensor& host, DType dtype) = 0;
  virtual Tensor do_to_host(const Tensor& x) = 0;
  virtual void do_fill_zero(const Tensor& x) = 0;
  virtual void do_copy(const Tensor& destination, const Tensor& source) = 0;
  virtual void do_prepare(Linear& linear, const PrepareOptions& options) = 0;
  virtual void do_prepare(Conv& conv, const PrepareOptions& options) = 0;
  virtual Tensor do_linear(const Tensor& x, const Linear& weight, Activation activation) = 0;
  /// Composite by default.
  virtual Tensor do_feed_forward(const Tensor& x, const Linear& first, Activation activation,
                                 const Linear& second);
  virtual Tensor do_temporal_pool(const Tensor& x, const Linear& weight, int64_t frames) = 0;
  virtual Tensor do_temporal_grow(const Tensor& x, const Linear& weight, int64_t frames) = 0;
  virtual Tensor do_layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias,
                               float eps) = 0;
  virtual Tensor do_layer_norm_modulate(const Tensor& x, const Tensor& shift, const Tensor& scale,
                                        float eps) = 0;
  virtual Tensor do_rms_norm(const Tensor& x, const Tensor& weight, float eps) = 0;
  virtual Tensor do_gated_residual(Tensor x, const Tensor& y, const Tensor& gate) = 0;
  /// Composite by default; an executor overrides them where one pass over memory pays.
  virtual ResidualNorm do_residual_modulate(Tensor x, const Tensor& y, const Tensor& gate,
                                            const Tensor& shift, const Tensor& scale, float eps);
  virtual ResidualNorm do_residual_layer_norm(Tensor x, const Tensor& y, const Tensor& gate,
                                              const Tensor& weight, const Tensor& bias, float eps);
  virtual Tensor do_channel_norm(const Tensor& x, const Tensor& gamma, bool silu) = 0;
  virtual KvCache do_kv_cache(DType dtype, int64_t batch, int64_t tokens, int64_t dim,
                              int64_t heads);
  virtual Tensor do_qkv_to_cache(const Tensor& qkv, const Tensor& norm_q, const Tensor& norm_k,
                                 float eps, const TokenGrid& grid, int64_t heads,
                                 const ChunkPlace& place, KvCache& cache) = 0;
  virtual Tensor do_attention_cached(const Tensor& q, const KvCache& cache, int64_t heads,
                                     int64_t tokens_per_frame, const ChunkPlace& place) = 0;
  virtual Tensor do_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                              const AttentionOptions& options) = 0;
  /// Composite by default, over all keys.
  virtual Tensor do_cross_attention(const Tensor& x, const Linear& q, const Tensor& norm_q,
                                    float eps, const CrossKeys& keys, int64_t heads,
                                    const Linear& o);
  /// Attention under options.chunk_mask. By default one attention per chunk.
  virtual Tensor do_attention_in_chunks(const Tensor& q, const Tensor& k, const Tensor& v,
                                        int64_t heads, const AttentionOptions& options);
  virtual WindowCache do_window_cache(DType dtype, int64_t batch, int64_t blocks,
                                      const WindowShape& window, int64_t dim, int64_t heads);
  virtual WindowedQueries do_qkv_to_windows(const Tensor& qkv, const Tensor& norm_q,
                                            const Tensor& norm_k, float eps, const WindowGrid& grid,
                                            int64_t heads, const GroupPlace& place,
                                            WindowCache& cache) = 0;
  virtual BlockMask do_select_blocks(const WindowedQueries& queries, const WindowCache& cache,
                                     const WindowGrid& grid, int64_t heads, const GroupPlace& place,
                                     const BlockSelection& selection) = 0;
  virtual BlockMask do_block_mask_from(const Tensor& mask) = 0;
  virtual Tensor do_block_sparse_attention(const WindowedQueries& queries, const WindowCache& cache,
                                           const BlockMask& mask, const WindowGrid& grid,
                                           int64_t heads, const GroupPlace& place) = 0;
  virtual Tensor do_conv2d(const Tensor& x, const Conv& weight, const Conv2dOptions& options) = 0;
  virtual Tensor do_causal_conv3d(const Tensor& x, const Conv& weight,
                                  const Conv3dOptions& options) = 0;
  virtual Tensor do_pixel_shuffle(const Tensor& x, int64_t factor, Activation activation) = 0;
  virtual Tensor do_patchify(const Tensor& a, const Tensor& b, DType dtype) = 0;
  virtual Tensor do_unpatchify(const Tensor& tokens, const TokenGrid& grid, DType dtype) = 0;
  virtual Tensor do_sinusoid(std::span<const double> timesteps, int64_t dim) = 0;
  virtual Tensor do_axpby(float a, const Tensor& x, float b, const Tensor& y) = 0;
  virtual Tensor do_flow_to_x0(const Tensor& x, const Tensor& v, double sigma) = 0;
  virtual Tensor do_normal(RandomStream stream, const Shape& shape, DType dtype) = 0;
  virtual Tensor do_cast(const Tensor& x, DType dtype) = 0;
  virtual Tensor do_activate(const Tensor& x, Activation activation) = 0;
  virtual Tensor do_add(const Tensor& a, const Tensor& b) = 0;
  virtual Tensor do_multiply(const Tensor& a, const Tensor& b) = 0;
  virtual Tensor do_soft_clamp(const Tensor& x, float limit) = 0;
  virtual Tensor do_channel_affine(const Tensor& x, const Tensor& scale, const Tensor& shift) = 0;
  virtual Tensor do_embedding(const Tensor& ids, const Tensor& table, DType dtype) = 0;
  virtual Tensor do_mask_rows(Tensor x, const Tensor& lengths) = 0;
  virtual Tensor do_to_rgb8(const Tensor& x, float low, float high) = 0;

 private:
  OpLog* op_log_ = nullptr;
  const Linear* reader_ = nullptr;
};

}  // namespace ultraflash

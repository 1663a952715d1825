// Host entries of the own kernels. Each queues on `stream`, allocates nothing, returns at once and
// does nothing for empty input; pointers are device memory. dtype is kF32 or kBF16 unless a line
// says otherwise; arithmetic is f32, each result is rounded once.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>

#include "core/dtype.h"
#include "core/rng.h"
#include "ops/types.h"

namespace ultraflash::cuda::kernels {

// --- elements (elements.cu) ----------------------------------------------------------------------

/// f32, bf16, f16 and f8_e4m3 among one another.
void convert(DType from, const void* x, DType to, void* y, int64_t count, cudaStream_t stream);
void activate(DType dtype, Activation activation, const void* x, void* y, int64_t count,
              cudaStream_t stream);
void axpby(DType dtype, float a, const void* x, float b, const void* y, void* out, int64_t count,
           cudaStream_t stream);
/// x - sigma * v in f64.
void flow_to_x0(DType dtype, const void* x, const void* v, double sigma, void* out, int64_t count,
                cudaStream_t stream);
void multiply(DType dtype, const void* x, const void* y, void* out, int64_t count,
              cudaStream_t stream);
void soft_clamp(DType dtype, float limit, const void* x, void* y, int64_t count,
                cudaStream_t stream);
void channel_affine(DType dtype, const void* x, const float* scale, const float* shift,
                    int64_t channels, void* y, int64_t count, cudaStream_t stream);
void to_rgb8(DType dtype, const void* x, float low, float high, uint8_t* y, int64_t count,
             cudaStream_t stream);
/// Elements [0, count) of the stream of standard normals, the bits of core/rng.h.
void normal(RandomStream random, DType dtype, void* out, int64_t count, cudaStream_t stream);

/// Sizes and strides (in elements) of up to eight axes, outermost first.
struct Strided {
  int rank = 0;
  std::array<int64_t, 8> size{};
  std::array<int64_t, 8> a{};  // strides of the first operand
  std::array<int64_t, 8> b{};  // strides of the second
};
/// out[a] = in[b], elements of `element_bytes` (1, 2, 4 or 8).
void copy_strided(const Strided& shape, int element_bytes, void* out, const void* in,
                  cudaStream_t stream);
/// out (dense) = x (dense) + y[b].
void add_strided(DType dtype, const Strided& shape, const void* x, const void* y, void* out,
                 cudaStream_t stream);

/// Rows of table (f32, bf16, f16) for i64 ids -> dtype.
void gather_rows(DType from, const void* table, const int64_t* ids, int64_t rows, int64_t dim,
                 DType to, void* out, cudaStream_t stream);

// --- latents and frames (frames.cu) --------------------------------------------------------------

struct PatchifyArgs {
  const void* a = nullptr;
  const void* b = nullptr;  // or null
  DType from = DType::kF32;
  DType to = DType::kF32;
  int64_t frames = 0;  // batch included
  int64_t rows = 0, columns = 0;
  int64_t channels_a = 0, channels_b = 0;
};
void patchify(const PatchifyArgs& args, void* tokens, cudaStream_t stream);
/// Tokens [frames * rows * columns, 4 * channels] -> [frames, 2 rows, 2 columns, channels].
void unpatchify(DType from, const void* tokens, int64_t frames, int64_t rows, int64_t columns,
                int64_t channels, DType to, void* latent, cudaStream_t stream);
/// See Executor::pixel_shuffle; images = batch * frames.
void pixel_shuffle(DType dtype, const void* x, int64_t images, int64_t rows, int64_t columns,
                   int64_t channels_out, int64_t factor, Activation activation, void* y,
                   cudaStream_t stream);
/// Swaps axes: [outer, rows, columns, run] -> [outer, columns, rows, run], runs of `run_bytes`.
void swap_axes(const void* x, int64_t outer, int64_t rows, int64_t columns, int64_t run_bytes,
               void* y, cudaStream_t stream);

/// The input of a convolution, gathered: output frame n of sample s has, one after the other along
/// the channels, the frames n * stride_time + k for k in [0, taps) of (zeros, past, x), and every
/// pixel `upsample` times in both directions. `reversed` puts the last one first (x_t, x_{t-1}).
struct GatherArgs {
  const void* x = nullptr;     // [samples, frames, height, width, channels]
  const void* past = nullptr;  // [samples, past_frames, height, width, channels]
  int64_t samples = 0, frames = 0, past_frames = 0, zero_frames = 0;
  int64_t height = 0, width = 0, channels = 0;
  int64_t out_frames = 0, taps = 1, stride_time = 1, upsample = 1;
  bool reversed = false;
  int element_bytes = 4;
};
void gather_frames(const GatherArgs& args, void* out, cudaStream_t stream);
/// The first `channels` of each pixel of `stored`.
void crop_channels(const void* x, int64_t pixels, int64_t stored, int64_t channels,
                   int element_bytes, void* y, cudaStream_t stream);

// --- products and convolutions without a library (conv.cu) ---------------------------------------

/// y[n, p, q, k] = activation(sum over taps and channels of x * w + bias + residual). A matrix
/// product is a convolution with a 1x1 kernel over one row of pixels.
struct ConvArgs {
  DType dtype = DType::kF32;
  const void* x = nullptr;         // [images, height, width, channels]
  const void* w = nullptr;         // [out_channels, kernel_h, kernel_w, channels]
  const float* bias = nullptr;     // [out_channels] or null
  const void* residual = nullptr;  // as y, or null; may be y
  void* y = nullptr;               // [images, out_h, out_w, out_channels]
  int64_t images = 1, height = 1, width = 1, channels = 0;
  int64_t out_h = 1, out_w = 1, out_channels = 0;
  int64_t kernel_h = 1, kernel_w = 1, stride = 1, pad_top = 0, pad_left = 0;
  Activation activation = Activation::kNone;
};
void convolve(const ConvArgs& args, cudaStream_t stream);

// --- products in fp8 (quantise.cu) ---------------------------------------------------------------

/// Whether quantise_rows takes rows of this length.
bool quantises(int64_t dim);
/// bf16 rows -> e4m3 rows and f32 scales [rows]: a row is about y * scale, its largest element 448.
struct QuantiseArgs {
  const void* x = nullptr;
  int64_t rows = 0, dim = 0;
  void* y = nullptr;
  float* scales = nullptr;
};
void quantise_rows(const QuantiseArgs& args, cudaStream_t stream);
/// y = activation(y + bias) in place, y bf16 [rows, dim], bias f32 [dim] or null.
void finish_product(void* y, const float* bias, int64_t rows, int64_t dim, Activation activation,
                    cudaStream_t stream);

// --- norms and residuals (norm.cu) ---------------------------------------------------------------

/// A vector for all rows, or f32 rows with strides: token n of sample b uses
/// data + b * batch_stride + (n / tokens_per_row) * row_stride.
struct RowVectors {
  const float* data = nullptr;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;
};
struct ResidualNormArgs {
  DType dtype = DType::kF32;
  int64_t rows = 0, dim = 0, tokens = 1, tokens_per_row = 1;
  const void* x = nullptr;
  const void* y = nullptr;  // null: no residual
  void* x_out = nullptr;    // x + y * gate; may be x
  void* n_out = nullptr;    // null: no norm
  // Set: n_out is e4m3 and these are scales [rows], as quantise_rows makes them of bf16 ones. Where
  // norm_quantises() says so.
  float* n_scales = nullptr;
  RowVectors gate, scale, shift;
  bool one_plus_scale = false;
  float eps = 0.0F;
};
bool norm_quantises(const ResidualNormArgs& args);
void residual_norm(const ResidualNormArgs& args, cudaStream_t stream);
void rms_norm(DType dtype, const void* x, const float* weight, float eps, int64_t rows, int64_t dim,
              void* y, cudaStream_t stream);
void channel_norm(DType dtype, const void* x, const float* gamma, bool silu, int64_t rows,
                  int64_t channels, void* y, cudaStream_t stream);

// --- query and key preparation (qkv.cu) ----------------------------------------------------------

/// The numbers of a place in device memory, so that a captured graph reads new ones at each replay.
struct PlaceNumbers {
  int64_t first_frame = 0;
  int64_t first_slot = 0;
  int64_t ring_begin = 0;
  int64_t ring_end = 0;
  int64_t visible_frames = 0;
  int64_t position_period = 0;
  int64_t cached_blocks = 0;
  int64_t capacity_blocks = 0;
};
void store_place(const PlaceNumbers& numbers, void* device, cudaStream_t stream);

/// Rotary factors of one token grid: cosine and sine of each pair of the height and width axes, and
/// the frequencies of the time axis, whose positions have no bound.
struct RotaryTable {
  const float* height = nullptr;      // [rows][pairs_space][2]
  const float* width = nullptr;       // [columns][pairs_space][2]
  const double* frequency = nullptr;  // [pairs_time]
  int pairs_time = 0;
  int pairs_space = 0;
};
struct QkvArgs {
  DType dtype = DType::kF32;
  const void* qkv = nullptr;  // [batch, tokens, 3 * dim]
  const float* norm_q = nullptr;
  const float* norm_k = nullptr;
  float eps = 0.0F;
  int64_t batch = 0, dim = 0;
  int heads = 0, head_dim = 0;
  TokenGrid grid;
  RotaryTable rotary;
  const void* place = nullptr;  // PlaceNumbers in device memory
  void* q = nullptr;
  void* k = nullptr;  // the cache: [batch, ring_end * tokens_per_frame, dim]
  void* v = nullptr;
  // Set: q, k and v in e4m3 for attention in it (dense_sm90.h), v as [batch, ceil(tokens / 128),
  // dim, 128], and scales [heads] of q k^T. bf16 qkv, heads of 128.
  float* scales = nullptr;
};
void qkv_to_cache(const QkvArgs& args, int64_t cache_tokens, cudaStream_t stream);

// --- attention without a library (attention.cu) --------------------------------------------------

struct AttentionArgs {
  DType dtype = DType::kF32;
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  void* out = nullptr;
  int64_t batch = 0, queries = 0, keys = 0;
  int heads = 0, head_dim = 0;
  float scale = 0.0F;
  // Strides in elements; heads lie next to each other.
  int64_t q_batch = 0, q_row = 0, k_batch = 0, k_row = 0, v_batch = 0, v_row = 0;
  int64_t out_batch = 0, out_row = 0;
  const int64_t* key_lengths = nullptr;  // [batch], or null
  const float* bias = nullptr;           // [heads, queries + keys - 1], or null
  int64_t bias_head = 0;                 // stride between its heads
  const void* place = nullptr;           // if set, keys = visible_frames * tokens_per_frame of it
  int64_t tokens_per_frame = 0;
};
void attention(const AttentionArgs& args, cudaStream_t stream);

// --- attention to a text (text_attention.cu) -----------------------------------------------------

/// softmax(rms_norm(q) k^T scale) v in bf16, heads of 128.
struct TextAttentionArgs {
  const void* q = nullptr;  // [batch, queries, dim], before its norm
  const float* norm_q = nullptr;
  float eps = 0.0F;
  const void* k = nullptr;  // [keys, dim] with these strides in elements
  const void* v = nullptr;
  int64_t k_batch = 0, k_row = 0, v_batch = 0, v_row = 0;
  int64_t batch = 0, queries = 0, keys = 0;
  int heads = 0;
  float scale = 0.0F;
  // In device memory or null: rows of k, and of v, from *distinct - 1 on are equal.
  const int64_t* distinct = nullptr;
  void* out = nullptr;          // bf16 [batch, queries, dim], or e4m3 with
  float* out_scales = nullptr;  // [batch, queries], as quantise_rows makes them
};
/// Whether heads, strides, alignment and the shared memory of the device fit.
bool text_attention_takes(const TextAttentionArgs& args);
void text_attention(const TextAttentionArgs& args, cudaStream_t stream);

// --- guard zones (elements.cu) -------------------------------------------------------------------

/// Whether all bytes are `value`; waits for the stream.
bool all_bytes_are(const void* data, int64_t count, uint8_t value, uint32_t* scratch,
                   cudaStream_t stream);

}  // namespace ultraflash::cuda::kernels

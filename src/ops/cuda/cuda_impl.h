// The CUDA executor's class. Files of ops/cuda alone include this.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ops/cuda/blas.h"
#include "ops/cuda/cuda_executor.h"
#include "ops/cuda/cuda_memory.h"
#include "ops/cuda/cudnn.h"
#include "ops/cuda/kernels.h"
#include "ops/executor.h"

namespace ultraflash::cuda {

/// A weight of a Linear: [out, in] in the compute type, as cuBLASLt reads it.
class CudaLinear final : public PreparedWeight {
 public:
  [[nodiscard]] size_t size_bytes() const override;

  DType compute = DType::kF32;
  Tensor weight;
  Tensor bias;                   // in the compute type, or undefined
  Tensor bias_f32;               // for own kernels
  Tensor weight8;                // e4m3 [out, in] beside the other, for products of many rows
  Tensor scales8;                // f32 [out]
  std::vector<Tensor> streamed;  // parts as bound, in host memory; `weight` is undefined then
};

/// A convolution: [stored_out, height, width, time * channels] in the compute type. For bf16 the
/// outputs are padded with zeros to a multiple of 8, which cuDNN's tensor-core kernels want.
class CudaConv final : public PreparedWeight {
 public:
  [[nodiscard]] size_t size_bytes() const override;

  DType compute = DType::kF32;
  Tensor weight;
  Tensor enlarged;  // for frames that are enlarged first, where conv_sm90.h takes them
  Tensor bias;
  Tensor bias_f32;
  int64_t out = 0;
  int64_t stored_out = 0;
};

/// Events that are used again; shared with the moments that hold them.
class EventPool {
 public:
  EventPool() = default;
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;
  ~EventPool();
  [[nodiscard]] cudaEvent_t take();
  void give_back(cudaEvent_t event) noexcept;

 private:
  std::mutex mutex_;
  std::vector<cudaEvent_t> free_;
};

class CudaExecutor final : public Executor {
 public:
  CudaExecutor(const CudaOptions& options, std::unique_ptr<Blas> blas, std::unique_ptr<Cudnn> cudnn,
               std::string name);
  ~CudaExecutor() override;

  [[nodiscard]] Device device() const override { return {DeviceType::kCuda, device_}; }
  [[nodiscard]] std::string description() const override { return name_; }
  [[nodiscard]] Arena::Stats memory() const override;
  [[nodiscard]] DeviceMemoryInfo device_memory() const override;
  void synchronize() override;
  [[nodiscard]] bool queues() const override { return true; }
  [[nodiscard]] std::shared_ptr<Moment> moment() override;
  void wait_for(const std::shared_ptr<Moment>& other) override;
  [[nodiscard]] Tensor to_host_later(const Tensor& x, std::shared_ptr<Moment>& ready) override;
  void repeat(std::unique_ptr<Recording>& recording, FunctionRef<void()> work) override;
  void update_place(ChunkPlace& place) override;
  void update_place(GroupPlace& place) override;

 protected:
  Tensor do_empty(DType dtype, const Shape& shape) override;
  Tensor do_to_device(const Tensor& host, DType dtype) override;
  Tensor do_to_host(const Tensor& x) override;
  void do_fill_zero(const Tensor& x) override;
  void do_copy(const Tensor& destination, const Tensor& source) override;
  void do_prepare(Linear& linear, const PrepareOptions& options) override;
  void do_prepare(Conv& conv, const PrepareOptions& options) override;
  Tensor do_linear(const Tensor& x, const Linear& weight, Activation activation) override;
  Tensor do_feed_forward(const Tensor& x, const Linear& first, Activation activation,
                         const Linear& second) override;
  Tensor do_temporal_pool(const Tensor& x, const Linear& weight, int64_t frames) override;
  Tensor do_temporal_grow(const Tensor& x, const Linear& weight, int64_t frames) override;
  Tensor do_layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias,
                       float eps) override;
  Tensor do_layer_norm_modulate(const Tensor& x, const Tensor& shift, const Tensor& scale,
                                float eps) override;
  Tensor do_rms_norm(const Tensor& x, const Tensor& weight, float eps) override;
  Tensor do_gated_residual(Tensor x, const Tensor& y, const Tensor& gate) override;
  ResidualNorm do_residual_modulate(Tensor x, const Tensor& y, const Tensor& gate,
                                    const Tensor& shift, const Tensor& scale, float eps) override;
  ResidualNorm do_residual_layer_norm(Tensor x, const Tensor& y, const Tensor& gate,
                                      const Tensor& weight, const Tensor& bias, float eps) override;
  Tensor do_channel_norm(const Tensor& x, const Tensor& gamma, bool silu) override;
  KvCache do_kv_cache(DType dtype, int64_t batch, int64_t tokens, int64_t dim,
                      int64_t heads) override;
  Tensor do_qkv_to_cache(const Tensor& qkv, const Tensor& norm_q, const Tensor& norm_k, float eps,
                         const TokenGrid& grid, int64_t heads, const ChunkPlace& place,
                         KvCache& cache) override;
  Tensor do_attention_cached(const Tensor& q, const KvCache& cache, int64_t heads,
                             int64_t tokens_per_frame, const ChunkPlace& place) override;
  Tensor do_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                      const AttentionOptions& options) override;
  Tensor do_cross_attention(const Tensor& x, const Linear& q, const Tensor& norm_q, float eps,
                            const CrossKeys& keys, int64_t heads, const Linear& o) override;
  WindowCache do_window_cache(DType dtype, int64_t batch, int64_t blocks, const WindowShape& window,
                              int64_t dim, int64_t heads) override;
  WindowedQueries do_qkv_to_windows(const Tensor& qkv, const Tensor& norm_q, const Tensor& norm_k,
                                    float eps, const WindowGrid& grid, int64_t heads,
                                    const GroupPlace& place, WindowCache& cache) override;
  BlockMask do_select_blocks(const WindowedQueries& queries, const WindowCache& cache,
                             const WindowGrid& grid, int64_t heads, const GroupPlace& place,
                             const BlockSelection& selection) override;
  BlockMask do_block_mask_from(const Tensor& mask) override;
  Tensor do_block_sparse_attention(const WindowedQueries& queries, const WindowCache& cache,
                                   const BlockMask& mask, const WindowGrid& grid, int64_t heads,
                                   const GroupPlace& place) override;
  Tensor do_conv2d(const Tensor& x, const Conv& weight, const Conv2dOptions& options) override;
  Tensor do_causal_conv3d(const Tensor& x, const Conv& weight,
                          const Conv3dOptions& options) override;
  Tensor do_pixel_shuffle(const Tensor& x, int64_t factor, Activation activation) override;
  Tensor do_patchify(const Tensor& a, const Tensor& b, DType dtype) override;
  Tensor do_unpatchify(const Tensor& tokens, const TokenGrid& grid, DType dtype) override;
  Tensor do_sinusoid(std::span<const double> timesteps, int64_t dim) override;
  Tensor do_axpby(float a, const Tensor& x, float b, const Tensor& y) override;
  Tensor do_flow_to_x0(const Tensor& x, const Tensor& v, double sigma) override;
  Tensor do_normal(RandomStream stream, const Shape& shape, DType dtype) override;
  Tensor do_cast(const Tensor& x, DType dtype) override;
  Tensor do_activate(const Tensor& x, Activation activation) override;
  Tensor do_add(const Tensor& a, const Tensor& b) override;
  Tensor do_multiply(const Tensor& a, const Tensor& b) override;
  Tensor do_soft_clamp(const Tensor& x, float limit) override;
  Tensor do_channel_affine(const Tensor& x, const Tensor& scale, const Tensor& shift) override;
  Tensor do_embedding(const Tensor& ids, const Tensor& table, DType dtype) override;
  Tensor do_mask_rows(Tensor x, const Tensor& lengths) override;
  Tensor do_to_rgb8(const Tensor& x, float low, float high) override;

 private:
  // cuda_executor.cc
  Tensor upload(const Tensor& host, DType dtype);
  void use_device() const;

  // cuda_queue.cc
  [[nodiscard]] std::shared_ptr<Moment> moment_of(cudaStream_t stream);
  void record_graph(cudaGraphExec_t& graph, FunctionRef<void()> work);

  // cuda_products.cc
  Tensor joined_parts(const std::vector<Tensor>& parts, DType dtype);
  /// Rows in e4m3 with a scale each.
  struct Fp8Rows {
    Tensor values;  // [rows, dim]; the scales live in the same memory
    const float* scales;
  };
  /// A tensor of such rows, f32 scales behind the values: what products in e4m3 read, and what
  /// norms and attention leave for a product that will be one.
  Tensor empty_fp8(const Shape& shape);
  static float* scales_of(const Tensor& x);
  /// x as it is, if empty_fp8() made it, else quantised.
  Fp8Rows fp8_rows(const Tensor& x, int64_t rows, int64_t dim);
  void product_in_fp8(const Fp8Rows& x, const CudaLinear& weight, Activation activation,
                      const Tensor& y);
  void product(const Tensor& x, int64_t rows, const CudaLinear& weight, int64_t in, int64_t out,
               Activation activation, const Tensor& y);
  /// By the kernels of conv_sm90.h, where they take it.
  bool convolution_sm90(const Tensor& x, const Conv& conv, const Conv2dOptions& options, Tensor& y);
  Tensor convolution(const Tensor& x, const CudaConv& weight, int64_t kernel_h, int64_t kernel_w,
                     const Padding& padding, int64_t stride, Activation activation,
                     const Tensor& residual);

  // cuda_attention.cc
  struct Rotary {
    int64_t rows = 0, columns = 0;
    int head_dim = 0;
    Tensor height, width, frequency;
  };
  kernels::RotaryTable rotary(const TokenGrid& grid, int64_t head_dim);
  kernels::QkvArgs qkv_args(const Tensor& qkv, const Tensor& norm_q, const Tensor& norm_k,
                            float eps, const TokenGrid& grid, int64_t heads);
  void run_attention(const kernels::AttentionArgs& args);
  Tensor attention_fp8(const Tensor& q, const KvCache& cache, int64_t heads, int64_t keys);

  // cuda_sparse.cc
  BlockMask empty_lists(const Shape& shape);

  ResidualNorm residual_norm(Tensor x, const Tensor* y, const Tensor& gate, bool norm,
                             const Tensor& scale, const Tensor& shift, bool one_plus_scale,
                             float eps);

  int device_;
  bool plain_;  // own plain kernels alone
  bool fp8_;    // products of transformers in e4m3
  bool fp8_fast_sums_;
  bool fp8_attention_;
  bool hopper_ = false;
  int multiprocessors_ = 0;
  std::string name_;
  bool graphs_;                   // repeat() records
  int64_t recordings_epoch_ = 0;  // graphs of an older one are void
  cudaStream_t stream_ = nullptr;
  cudaStream_t copy_stream_ = nullptr;
  std::shared_ptr<EventPool> events_;
  std::unique_ptr<Blas> blas_;
  std::unique_ptr<Cudnn> cudnn_;
  std::unique_ptr<Uploader> uploader_;
  std::unique_ptr<Arena> arena_;
  // What repeat() works in. Recorded graphs hold its addresses, so nothing else may live there.
  std::unique_ptr<Arena> pass_arena_;
  Arena* current_arena_ = nullptr;     // one of the two
  std::unique_ptr<Arena> host_arena_;  // page-locked, for results
  Tensor workspace_;
  std::vector<Rotary> rotary_;
  Tensor group_rotary_;  // of the group that update_place saw last
  bool group_rotary_filled_ = false;
  Tensor sparse_ticket_;  // what CTAs of block-sparse attention draw their tiles from
};

}  // namespace ultraflash::cuda

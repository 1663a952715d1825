// The class behind make_autograd_executor().
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ops/autograd/autograd_executor.h"
#include "ops/autograd/torch_tensor.h"

namespace ultraflash::autograd {

/// A weight of a Linear or Conv: the bound tensors, and their last conversion.
class TorchWeight final : public PreparedWeight {
 public:
  TorchWeight(std::vector<Tensor> weights, std::vector<Tensor> biases, DType compute,
              at::Device device);
  [[nodiscard]] size_t size_bytes() const override;
  [[nodiscard]] DType compute() const { return compute_; }
  /// The parts one below the other in the compute type (a convolution's in the memory format of
  /// channels-last kernels). In the graph of the leaves wherever they take gradients, even when
  /// grad mode is off, so that one conversion serves both kinds of use.
  const at::Tensor& weight() const { return resolve(weight_); }
  /// Undefined without bias.
  const at::Tensor& bias() const { return resolve(bias_); }
  /// Forgets the last conversion if the parts take gradients, or whatever they are.
  void drop(bool frozen) const;

 private:
  struct Joined {
    std::vector<Tensor> parts;
    std::vector<std::pair<int64_t, bool>> key;  // version and requires_grad of every part
    at::Tensor value;
  };
  const at::Tensor& resolve(Joined& joined) const;

  DType compute_;
  at::Device device_;
  mutable Joined weight_;
  mutable Joined bias_;
};

class AutogradExecutor : public Executor {
 public:
  explicit AutogradExecutor(const AutogradOptions& options);

  [[nodiscard]] Device device() const override { return options_.device; }
  [[nodiscard]] std::string description() const override;
  [[nodiscard]] Arena::Stats memory() const override;
  void synchronize() override;
  void update_place(ChunkPlace& /*place*/) override {}
  void update_place(GroupPlace& /*place*/) override {}
  void drop_conversions(bool frozen);
  void keep_tables() { keep_tables_ = true; }
  void set_device_timesteps(const at::Tensor& timesteps) { device_timesteps_ = timesteps; }

 protected:
  Tensor do_empty(DType dtype, const Shape& shape) override;
  Tensor do_to_device(const Tensor& host, DType dtype) override;
  Tensor do_to_host(const Tensor& x) override;
  void do_fill_zero(const Tensor& x) override;
  void do_copy(const Tensor& destination, const Tensor& source) override;
  void do_prepare(Linear& linear, const PrepareOptions& options) override;
  void do_prepare(Conv& conv, const PrepareOptions& options) override;
  Tensor do_linear(const Tensor& x, const Linear& weight, Activation activation) override;
  Tensor do_temporal_pool(const Tensor& x, const Linear& weight, int64_t frames) override;
  Tensor do_temporal_grow(const Tensor& x, const Linear& weight, int64_t frames) override;
  Tensor do_layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias,
                       float eps) override;
  Tensor do_layer_norm_modulate(const Tensor& x, const Tensor& shift, const Tensor& scale,
                                float eps) override;
  Tensor do_rms_norm(const Tensor& x, const Tensor& weight, float eps) override;
  Tensor do_gated_residual(Tensor x, const Tensor& y, const Tensor& gate) override;
  Tensor do_channel_norm(const Tensor& x, const Tensor& gamma, bool silu) override;
  Tensor do_qkv_to_cache(const Tensor& qkv, const Tensor& norm_q, const Tensor& norm_k, float eps,
                         const TokenGrid& grid, int64_t heads, const ChunkPlace& place,
                         KvCache& cache) override;
  Tensor do_attention_cached(const Tensor& q, const KvCache& cache, int64_t heads,
                             int64_t tokens_per_frame, const ChunkPlace& place) override;
  Tensor do_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                      const AttentionOptions& options) override;
  Tensor do_attention_in_chunks(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                                const AttentionOptions& options) override;
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
  /// The tensor behind a handle, on this executor's device.
  [[nodiscard]] at::Tensor in(const Tensor& x) const { return to_torch(x, torch_device_); }
  /// Rotary factors cos + i sin of a grid: complex [tokens, 1, head_dim / 2].
  /// frames count from first_frame, and again after `period` frames if that is positive.
  const at::Tensor& rotary(const TokenGrid& grid, int64_t head_dim, int64_t first_frame,
                           int64_t period);

  /// What a group's blocks may see: bool [time, spatial, keys] on this executor's device.
  struct BlockTables {
    at::Tensor allowed;
    at::Tensor first;     // the first allowed block of every row
    at::Tensor diagonal;  // always seen; undefined after earlier groups
  };
  const BlockTables& block_tables(const WindowGrid& grid, const GroupPlace& place,
                                  const BlockSelection& selection);

  AutogradOptions options_;
  at::Device torch_device_;
  std::vector<std::weak_ptr<const TorchWeight>> weights_;  // all that were prepared
  std::map<std::array<int64_t, 6>, at::Tensor> rotary_;
  std::map<std::array<int64_t, 6>, BlockTables> block_tables_;
  bool keep_tables_ = false;
  std::map<int64_t, at::Tensor> wavelengths_;  // of sinusoid(), by dim: f64 [dim / 2]
  at::Tensor device_timesteps_;                // see DeviceTimesteps
};

/// A handle on a contiguous tensor, as results are: where axes of size 1 allow it, libtorch's
/// reshape() returns a strided view.
inline Tensor dense(const at::Tensor& x) { return from_torch(x.contiguous()); }

/// x through an activation.
at::Tensor activated(at::Tensor x, Activation activation);

}  // namespace ultraflash::autograd

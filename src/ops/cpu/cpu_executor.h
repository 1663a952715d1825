// The CPU executor: vector code for everything, oneDNN for products and convolutions where it is
// built in and has optimised code for this processor.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/cpu/kernels/kernels.h"
#include "ops/cpu/onednn.h"
#include "ops/executor.h"

namespace ultraflash::cpu {

struct CpuOptions {
  int threads = 0;  // 0: as many as OpenMP would take
  std::string
      kernels;  // "generic", "avx2", "avx512", "avx512_bf16"; empty: the best this machine runs
  bool use_onednn = true;  // false: own code only
  size_t memory_limit_bytes = 0;
  size_t guard_bytes = 0;  // guard zones around every tensor, for tests
};

/// Throws Error(kUnsupported) when the named kernels cannot run here.
std::unique_ptr<Executor> make_cpu_executor(const CpuOptions& options);

/// A weight of a Linear on this executor. Exactly one of the forms is present.
class CpuLinear final : public PreparedWeight {
 public:
  [[nodiscard]] size_t size_bytes() const override;

  DType compute = DType::kF32;
  Tensor bias;                           // f32 [out] or undefined
  std::shared_ptr<OneDnnWeight> onednn;  // oneDNN's layout
  Tensor packed;                         // own layout, f32
  std::vector<Tensor> streamed;          // parts as bound
};

class CpuConv final : public PreparedWeight {
 public:
  [[nodiscard]] size_t size_bytes() const override;

  DType compute = DType::kF32;
  Tensor bias;
  std::shared_ptr<OneDnnWeight> onednn;
  Tensor packed;  // own layout, f32, inner order (time, row, column, channel)
};

class CpuExecutor final : public Executor {
 public:
  explicit CpuExecutor(const CpuOptions& options);

  [[nodiscard]] Device device() const override { return {DeviceType::kCpu, 0}; }
  [[nodiscard]] std::string description() const override;
  [[nodiscard]] Arena::Stats memory() const override { return arena_.stats(); }
  void synchronize() override {}
  void update_place(ChunkPlace& /*place*/) override {}
  void update_place(GroupPlace& /*place*/) override {}

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
  ResidualNorm do_residual_modulate(Tensor x, const Tensor& y, const Tensor& gate,
                                    const Tensor& shift, const Tensor& scale, float eps) override;
  ResidualNorm do_residual_layer_norm(Tensor x, const Tensor& y, const Tensor& gate,
                                      const Tensor& weight, const Tensor& bias, float eps) override;
  Tensor do_channel_norm(const Tensor& x, const Tensor& gamma, bool silu) override;
  Tensor do_qkv_to_cache(const Tensor& qkv, const Tensor& norm_q, const Tensor& norm_k, float eps,
                         const TokenGrid& grid, int64_t heads, const ChunkPlace& place,
                         KvCache& cache) override;
  Tensor do_attention_cached(const Tensor& q, const KvCache& cache, int64_t heads,
                             int64_t tokens_per_frame, const ChunkPlace& place) override;
  Tensor do_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
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
  /// Calls body(begin, end) for parts of [0, count), each about `grain` long or longer, in
  /// parallel.
  template <typename Body>
  void parallel_for(int64_t count, int64_t grain, const Body& body) const;
  /// Scratch memory of the calling thread of a parallel region, at least `count` floats.
  float* thread_scratch(size_t thread, int64_t count);
  void prepare_thread_scratch(int64_t count);

  void linear_into(const void* x, int64_t rows, const CpuLinear& weight, int64_t in, int64_t out,
                   Activation activation, void* y);
  void streamed_linear(const void* x, int64_t rows, const CpuLinear& weight, int64_t in,
                       int64_t out, Activation activation, void* y);
  void own_gemm(const void* x, int64_t rows, const float* packed, const float* bias, int64_t in,
                int64_t out, DType dtype, Activation activation, void* y, int64_t y_stride);
  void join_memory(const Tensor& x, const Tensor& memory, std::byte* joined) const;
  void enlarge(const Tensor& x, int64_t factor, std::byte* large) const;
  Tensor conv_own(const Tensor& x, const Conv& weight, const Conv2dOptions& options);
  Tensor conv3d_own(const Tensor& x, const Conv& weight, const Conv3dOptions& options);
  ResidualNorm residual_norm(Tensor x, const Tensor* y, const Tensor& gate, bool norm,
                             const Tensor& scale, const Tensor& shift, bool one_plus_scale,
                             float eps);
  void update_rotary(const TokenGrid& grid, int64_t head_dim, int64_t first_frame);
  void rotary_row(int64_t frame, int64_t row, int64_t column, float* cosine, float* sine) const;

  const Kernels* kernels_;
  int threads_;
  std::unique_ptr<OneDnn> onednn_;  // null: own code
  Arena arena_;

  struct Scratch {
    Tensor memory;
  };
  std::vector<Scratch> scratch_;  // one per thread

  // Rotary factors of the last grid, each value for a pair twice and sines signed (-, +).
  struct RotaryAxis {
    int64_t first = -1;
    int64_t count = 0;
    int64_t width = 0;
    std::vector<float> cosine;  // [count][width]
    std::vector<float> sine;
  };
  static void fill_axis(RotaryAxis& axis, int64_t first, int64_t count, int64_t width);
  RotaryAxis rotary_time_;
  RotaryAxis rotary_height_;
  RotaryAxis rotary_width_;
};

template <typename Body>
void CpuExecutor::parallel_for(int64_t count, int64_t grain, const Body& body) const {
  if (count <= 0) return;
  const int64_t parts = std::min<int64_t>(threads_, (count + grain - 1) / grain);
  if (parts <= 1) {
    body(int64_t{0}, count);
    return;
  }
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int64_t part = 0; part < parts; ++part) {
    body(count * part / parts, count * (part + 1) / parts);
  }
}

}  // namespace ultraflash::cpu

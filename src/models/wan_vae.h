// The Wan2.1 video autoencoder: causal 3-D convolutions, 4x in time and 8x in space, streaming.
// Follows Wan2.1 wan/modules/vae.py. Pictures are in [-1, 1], channels last.
// The reference runs one latent frame at a time with a list of caches; this runs the first frame
// alone (it has rules of its own) and the rest together, which gives the same numbers.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "models/loader.h"
#include "ops/executor.h"
#include "ultraflash/status.h"
#include "weights/checkpoint.h"

namespace ultraflash {

struct WanVaeConfig {
  int64_t dim = 96;                                      // width of the first level
  int64_t z_dim = 16;                                    // latent channels
  std::vector<int64_t> dim_mult = {1, 2, 4, 4};          // widths of the levels
  int64_t num_res_blocks = 2;                            // per level (one more in the decoder)
  std::vector<int64_t> temporal_downsample = {0, 1, 1};  // 1 where a level halves the frame rate
  std::vector<float> mean;                               // of the latent channels; empty: Wan2.1's
  std::vector<float> deviation;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("dim", dim);
    visit("z_dim", z_dim);
    visit("dim_mult", dim_mult);
    visit("num_res_blocks", num_res_blocks);
    visit("temporal_downsample", temporal_downsample);
    visit("mean", mean);
    visit("deviation", deviation);
  }

  /// Pictures per latent frame after the first: 2 per temporal factor, 4 as published.
  [[nodiscard]] int64_t frames_per_latent() const;
  [[nodiscard]] Status validate() const;
  /// Widths and depth from names and shapes; kMalformed naming the tensor that is missing.
  static Result<WanVaeConfig> detect(const Checkpoint& checkpoint);
};

/// Last inputs of every causal convolution of one direction; default: the beginning of a video.
struct VaeState {
  std::vector<Tensor> slots;
  bool started = false;
  void reset() { started = false; }
};

class WanVae {
 public:
  /// Which halves to bind; the other half's tensors are then left unused without complaint.
  struct Parts {
    bool encoder = true;
    bool decoder = true;
  };
  static WanVae bind(Loader loader, const WanVaeConfig& config, const Parts& parts);

  [[nodiscard]] const WanVaeConfig& config() const { return config_; }

  /// Normalised latents [batch, f, h, w, z_dim] -> pictures [batch, n, 8h, 8w, 3]; the first latent
  /// frame of a video gives 1 picture, every later one frames_per_latent(). Not clamped.
  Tensor decode(Executor& ops, const Tensor& latent, VaeState& state) const;
  /// Pictures -> normalised latent means. The first call of a video takes 1 + n *
  /// frames_per_latent() pictures, later ones n * frames_per_latent(); anything else is
  /// Error(kInvalidArgument).
  Tensor encode(Executor& ops, const Tensor& pictures, VaeState& state) const;

 private:
  struct CausalConv {
    Conv weight;
    size_t slot = 0;
    bool pointwise = false;  // 1x1x1: no history
  };
  struct ResidualBlock {
    Tensor norm_0;
    CausalConv conv_2;
    Tensor norm_3;
    CausalConv conv_6;
    std::optional<Conv> shortcut;
  };
  struct AttentionBlock {
    Tensor norm;
    Linear to_qkv;
    Linear proj;
  };
  struct Resample {
    bool up = false;
    Conv spatial;                        // resample.1
    std::optional<CausalConv> temporal;  // time_conv
  };
  struct Stage {
    std::vector<ResidualBlock> blocks;
    std::optional<Resample> resample;
  };
  struct Half {
    CausalConv conv_1;
    ResidualBlock middle_0;
    AttentionBlock middle_1;
    ResidualBlock middle_2;
    std::vector<Stage> stages;
    Tensor head_norm;
    CausalConv head_conv;
    size_t slots = 0;
  };

  static CausalConv bind_causal(Loader& loader, std::string_view name, int64_t in, int64_t out,
                                const Shape& kernel, size_t& slots);
  static ResidualBlock bind_residual(Loader loader, int64_t in, int64_t out, size_t& slots);
  static AttentionBlock bind_attention(Loader loader, int64_t channels);
  static void bind_middle(Half& half, Loader loader, int64_t channels);

  static Tensor run_causal(Executor& ops, const CausalConv& conv, const Tensor& x, VaeState& state,
                           int64_t stride_time = 1);
  static Tensor run_residual(Executor& ops, const ResidualBlock& block, const Tensor& x,
                             VaeState& state);
  static Tensor run_attention(Executor& ops, const AttentionBlock& block, const Tensor& x);
  static Tensor run_resample(Executor& ops, const Resample& resample, Tensor x, VaeState& state,
                             bool first);
  static Tensor run_half(Executor& ops, const Half& half, Tensor x, VaeState& state, bool decoder,
                         bool first);
  Tensor decode_part(Executor& ops, const Tensor& latent, VaeState& state, bool first) const;
  Tensor encode_part(Executor& ops, const Tensor& pictures, VaeState& state, bool first) const;

  WanVaeConfig config_;
  DType compute_ = DType::kF32;
  std::optional<Half> encoder_;
  std::optional<Half> decoder_;
  Linear conv1_;                              // after the encoder: 2 z -> 2 z
  Linear conv2_;                              // before the decoder: z -> z
  Tensor to_raw_scale_, to_raw_shift_;        // decode: z * deviation + mean
  Tensor to_normal_scale_, to_normal_shift_;  // encode: (mu - mean) / deviation
};

}  // namespace ultraflash

// The tiny autoencoder (TAEHV layout for Wan2.1 latents) and the ultra decoder of Ultra Flash.
// Follows UltraFlash sr/tiny_decoder.py and sr/ultra_decoder.py, which follow madebyollin/taehv.
// Three layouts:
//   kTiny   decoder.N with nearest upsampling; memory starts from zeros
//   kUltra  the repository's UltraDecoder class: decoder.N.up.0, pixel shuffle, replicated memory
//   kNet    the released Ultra Decoder V3: net.N, the v3 upsampler built as 16 -> 3 channels,
//           8x in space and 4x in time; its output is already in [-1, 1]
// Latents go in as the diffusion model makes them; the Wan VAE's mean and deviation do not apply.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "models/latent_upsampler.h"
#include "models/memory_net.h"
#include "ultraflash/status.h"
#include "weights/checkpoint.h"

namespace ultraflash {

enum class DecoderLayout : uint8_t { kTiny, kUltra, kNet };

struct TinyDecoderConfig {
  DecoderLayout layout = DecoderLayout::kTiny;
  int64_t latent_channels = 16;
  std::vector<int64_t> widths = {256, 128, 64, 64};  // of the stages; kNet uses the first three
  std::vector<int64_t> time_upscale = {2, 2};        // of stages 2 and 3; kNet: always 2, 2
  MemoryInit memory_init = MemoryInit::kZero;        // kUltra and kNet: replicate

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("layout", layout);
    visit("latent_channels", latent_channels);
    visit("widths", widths);
    visit("time_upscale", time_upscale);
    visit("memory_init", memory_init);
  }

  /// Pixel frames per latent frame.
  [[nodiscard]] int64_t frames_per_latent() const;
  /// Pixels per latent cell along each side.
  [[nodiscard]] int64_t pixels_per_latent() const { return 8; }
  /// First frames of a stream that hold no picture yet: frames_per_latent() - 1.
  [[nodiscard]] int64_t frames_to_trim() const { return frames_per_latent() - 1; }
  /// Range of the output, [low, 1].
  [[nodiscard]] float output_low() const { return layout == DecoderLayout::kNet ? -1.0F : 0.0F; }
  [[nodiscard]] Status validate() const;
  static Result<TinyDecoderConfig> detect(const Checkpoint& checkpoint);
};

struct DecoderState {
  MemoryState net;
  void reset() { net.reset(); }
};

class TinyDecoder {
 public:
  static TinyDecoder bind(Loader loader, const TinyDecoderConfig& config);

  [[nodiscard]] const TinyDecoderConfig& config() const { return config_; }
  /// [batch, f, h, w, latent_channels] -> pictures [batch, f * frames_per_latent, 8h, 8w, 3] in
  /// [output_low(), 1] (not clamped). Nothing is trimmed here: the first frames_to_trim() frames of
  /// a stream are the caller's to drop. Advances the state.
  Tensor run(Executor& ops, const Tensor& latent, DecoderState& state) const;

 private:
  TinyDecoderConfig config_;
  MemoryNet net_;
  std::optional<LatentUpsampler> v3_;
};

struct TinyEncoderConfig {
  int64_t latent_channels = 16;
  int64_t width = 64;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("latent_channels", latent_channels);
    visit("width", width);
  }
  [[nodiscard]] Status validate() const;
  static Result<TinyEncoderConfig> detect(const Checkpoint& checkpoint);
};

class TinyEncoder {
 public:
  static TinyEncoder bind(Loader loader, const TinyEncoderConfig& config, MemoryInit init);

  [[nodiscard]] const TinyEncoderConfig& config() const { return config_; }
  /// Pictures [batch, f, h, w, 3] in [0, 1] -> latents [batch, f / 4, h / 8, w / 8,
  /// latent_channels]. Frames that do not fill a latent frame wait in the state.
  Tensor run(Executor& ops, const Tensor& pictures, MemoryState& state) const;

 private:
  TinyEncoderConfig config_;
  MemoryNet net_;
};

}  // namespace ultraflash

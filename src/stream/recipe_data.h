// The struct that recipes fill: plain data, no devices, no file formats.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/latent_upsampler.h"
#include "models/sparse_sr_dit.h"
#include "models/tiny_decoder.h"
#include "models/umt5.h"
#include "models/wan_dit.h"
#include "models/wan_vae.h"
#include "stream/cache_policy.h"
#include "ultraflash/status.h"

namespace ultraflash {

/// Where a network's weights are looked for, below the weights folder.
struct CheckpointSpec {
  std::vector<std::string> files;  // candidates, the first that exists is taken
  std::string wrapper;             // key of the outermost dictionary; empty: the usual order
  bool prefer_ema = true;
  std::vector<std::string> lora_files;  // adapters to merge: candidates, the first that exists
  double lora_scale = 1.0;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("files", files);
    visit("wrapper", wrapper);
    visit("prefer_ema", prefer_ema);
    visit("lora_files", lora_files);
    visit("lora_scale", lora_scale);
  }
};

struct TextSpec {
  Umt5Config encoder;
  CheckpointSpec checkpoint;
  std::vector<std::string> tokenizer_files;  // candidates below the weights folder
  int64_t extra_ids = 0;                     // sentinels after the pieces (UMT5: 300)

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("encoder", encoder);
    visit("checkpoint", checkpoint);
    visit("tokenizer_files", tokenizer_files);
    visit("extra_ids", extra_ids);
  }
};

struct GeneratorSpec {
  WanDitConfig network;
  CheckpointSpec checkpoint;
  int64_t latent_height = 60;  // latent cells, 8 pixels each
  int64_t latent_width = 104;
  int64_t frames_per_chunk = 3;          // latent frames
  bool independent_first_frame = false;  // the first chunk is one frame
  std::vector<int64_t> denoising_steps = {1000, 750, 500, 250};
  double timestep_shift = 5.0;
  double context_timestep = 0.0;  // of the context pass
  CacheKind cache_kind = CacheKind::kGrow;
  int64_t cache_frames = 21;  // sink included
  int64_t sink_frames = 0;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("network", network);
    visit("checkpoint", checkpoint);
    visit("latent_height", latent_height);
    visit("latent_width", latent_width);
    visit("frames_per_chunk", frames_per_chunk);
    visit("independent_first_frame", independent_first_frame);
    visit("denoising_steps", denoising_steps);
    visit("timestep_shift", timestep_shift);
    visit("context_timestep", context_timestep);
    visit("cache_kind", cache_kind);
    visit("cache_frames", cache_frames);
    visit("sink_frames", sink_frames);
  }
};

struct UpsamplerSpec {
  LatentUpsamplerConfig network;
  CheckpointSpec checkpoint;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("network", network);
    visit("checkpoint", checkpoint);
  }
};

struct RefinerSpec {
  SparseSrDitConfig network;
  CheckpointSpec checkpoint;
  double timestep = 1000.0;
  int64_t kv_len = 3;        // temporal blocks
  int64_t group_chunks = 2;  // generator chunks per forward
  double condition_noise_scale = 0.0;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("network", network);
    visit("checkpoint", checkpoint);
    visit("timestep", timestep);
    visit("kv_len", kv_len);
    visit("group_chunks", group_chunks);
    visit("condition_noise_scale", condition_noise_scale);
  }
};

enum class DecoderKind : uint8_t { kTiny, kWanVae };

struct DecoderSpec {
  DecoderKind kind = DecoderKind::kTiny;
  TinyDecoderConfig tiny;
  std::optional<TinyEncoderConfig> tiny_encoder;  // in the same file; streams do not need it
  WanVaeConfig vae;
  CheckpointSpec checkpoint;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("kind", kind);
    visit("tiny", tiny);
    visit("tiny_encoder", tiny_encoder);
    visit("vae", vae);
    visit("checkpoint", checkpoint);
  }
};

/// What happens to the generator's latents at one scale. Scale 1 has only a decoder.
struct CascadeSpec {
  int64_t scale = 1;
  std::optional<UpsamplerSpec> upsampler;
  std::optional<RefinerSpec> refiner;
  DecoderSpec decoder;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("scale", scale);
    visit("upsampler", upsampler);
    visit("refiner", refiner);
    visit("decoder", decoder);
  }
};

struct RecipeData {
  std::string name;
  std::string summary;
  int64_t frames_per_second = 16;
  int64_t default_scale = 1;
  /// Shipped without trained weights: drawn at random unless a weights folder is given.
  bool random_weights = false;
  /// Folder of shipped models to look in when no weights folder is given; empty: none.
  std::string shipped_models;
  TextSpec text;
  GeneratorSpec generator;
  std::vector<CascadeSpec> cascades;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("name", name);
    visit("summary", summary);
    visit("frames_per_second", frames_per_second);
    visit("default_scale", default_scale);
    visit("random_weights", random_weights);
    visit("shipped_models", shipped_models);
    visit("text", text);
    visit("generator", generator);
    visit("cascades", cascades);
  }

  [[nodiscard]] CachePolicy cache_policy() const {
    return {generator.cache_kind, generator.cache_frames, generator.sink_frames};
  }
  /// The cascade of a scale, or null.
  [[nodiscard]] const CascadeSpec* cascade(int64_t scale) const;
  /// kInvalidArgument naming the field that cannot be.
  [[nodiscard]] Status validate() const;
};

}  // namespace ultraflash

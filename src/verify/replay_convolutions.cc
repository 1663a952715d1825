// Replays of the convolutional networks. How each is driven: docs/formats.md.
#include <fmt/format.h>

#include <optional>
#include <vector>

#include "core/check.h"
#include "models/latent_upsampler.h"
#include "models/tiny_decoder.h"
#include "models/wan_vae.h"
#include "verify/golden_file.h"

namespace ultraflash {
namespace {

MemoryInit memory_init(const GoldenFile& golden, MemoryInit fallback) {
  const std::string name = golden.text_or("memory_init", "");
  if (name.empty()) return fallback;
  if (name == "zero") return MemoryInit::kZero;
  if (name == "replicate") return MemoryInit::kReplicate;
  throw_error(StatusCode::kMalformed, "{}: memory_init is '{}', expected zero or replicate",
              golden.label(), name.substr(0, 40));
}

Activation activation(const GoldenFile& golden) {
  const std::string name = golden.text_or("activation", "relu");
  if (name == "relu") return Activation::kRelu;
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGeluErf;
  throw_error(StatusCode::kMalformed, "{}: activation is '{}', expected relu, silu or gelu",
              golden.label(), name.substr(0, 40));
}

void require_ok(const Status& status) {
  if (!status.ok()) throw Error(status);
}

// Pictures or latents stored [1, T, C, H, W] -> [1, T, H, W, C] of the compute type.
Tensor frames_first(const Replay& r, const std::string& name) {
  const Tensor x = r.golden.tensor(name);
  if (x.rank() != 5) {
    throw_error(StatusCode::kMalformed, "{}: {} is {}, expected [1, T, C, H, W]", r.golden.label(),
                name, x.to_string());
  }
  return r.ops.to_device(x.permute({0, 1, 3, 4, 2}).copy(), r.options.dtype);
}

// The inverse, from frame `first` on.
Tensor to_frames_first(const Replay& r, const std::vector<Tensor>& parts, int64_t first) {
  int64_t frames = 0;
  for (const Tensor& part : parts) frames += part.dim(1);
  Tensor whole = Tensor::allocate(DType::kF32, parts.at(0).shape().with(1, frames));
  int64_t at = 0;
  for (const Tensor& part : parts) {
    whole.slice(1, at, at + part.dim(1)).assign(r.ops.to_host(r.ops.cast(part, DType::kF32)));
    at += part.dim(1);
  }
  return whole.slice(1, first, frames).permute({0, 1, 4, 2, 3}).copy();
}

Tensor one_frame(const Replay& r, const Tensor& x, int64_t frame) {
  return r.ops.to_device(r.ops.to_host(x).slice(1, frame, frame + 1).copy(), x.dtype());
}

}  // namespace

void replay_latent_upsampler(const Replay& r) {
  const GoldenFile& g = r.golden;
  LatentUpsamplerConfig config;
  config.in_channels = g.integer_or("in_channels", 16);
  config.out_channels = g.integer_or("out_channels", config.in_channels);
  config.activation = activation(g);
  config.residual = g.flag_or("residual", false);
  config.residual_scale = g.number_or("residual_scale", 1.0);
  config.memory_init = memory_init(g, MemoryInit::kReplicate);
  if (g.module() == "latent_upsampler_v1") {
    config.mid_channels = g.integer("mid_channels");
    config.num_blocks = g.integer("num_blocks");
    config.scale = g.integer("upsample_scale");
  } else {
    config.version = 3;
    config.scale = g.integer("spatial_scale");
    config.temporal_scale = g.integer("temporal_scale");
    config.stage_channels = g.integers("stage_channels");
    config.blocks_per_stage = g.integers("blocks_per_stage");
  }
  require_ok(config.validate());
  CheckpointSource source(g.weights());
  Binder binder(source, g.label());
  const LatentUpsampler network = LatentUpsampler::bind(r.loader(binder), config);
  require_ok(binder.finish());
  UpsamplerState state;
  for (int64_t i = 0; g.has(fmt::format("in.x.{}", i)); ++i) {
    const Tensor y = network.run(r.ops, r.latent(fmt::format("in.x.{}", i)), state);
    r.compare(fmt::format("out.y.{}", i), r.channels_first(y));
  }
}

void replay_decoder(const Replay& r) {
  const GoldenFile& g = r.golden;
  Result<TinyDecoderConfig> detected = TinyDecoderConfig::detect(g.weights());
  require_ok(detected.status());
  TinyDecoderConfig config = *detected;
  config.memory_init = memory_init(g, config.memory_init);
  CheckpointSource source(g.weights());
  Binder binder(source, g.label());
  const TinyDecoder decoder = TinyDecoder::bind(r.loader(binder), config);
  std::optional<TinyEncoder> encoder;
  if (g.has("in.video")) {
    Result<TinyEncoderConfig> encoder_config = TinyEncoderConfig::detect(g.weights());
    require_ok(encoder_config.status());
    encoder = TinyEncoder::bind(r.loader(binder), *encoder_config, config.memory_init);
  }
  require_ok(binder.finish());

  const Tensor latent = frames_first(r, "in.latent");
  const int64_t trim = config.frames_to_trim();
  if (g.has("out.frames_parallel")) {
    DecoderState state;
    r.compare("out.frames_parallel", to_frames_first(r, {decoder.run(r.ops, latent, state)}, trim));
  }
  if (g.has("out.frames_streaming")) {
    DecoderState state;
    std::vector<Tensor> parts;
    for (int64_t t = 0; t < latent.dim(1); ++t) {
      parts.push_back(decoder.run(r.ops, one_frame(r, latent, t), state));
    }
    r.compare("out.frames_streaming", to_frames_first(r, parts, trim));
  }
  if (!encoder) return;
  const Tensor video = frames_first(r, "in.video");
  MemoryState whole;
  r.compare("out.encoded", to_frames_first(r, {encoder->run(r.ops, video, whole)}, 0));
  if (!g.has("out.encoded_streaming")) return;
  MemoryState streaming;
  std::vector<Tensor> parts;
  for (int64_t t = 0; t < video.dim(1); ++t) {
    parts.push_back(encoder->run(r.ops, one_frame(r, video, t), streaming));
  }
  r.compare("out.encoded_streaming", to_frames_first(r, parts, 0));
}

void replay_wan_vae(const Replay& r) {
  const GoldenFile& g = r.golden;
  WanVaeConfig config;
  config.dim = g.integer("dim");
  config.z_dim = g.integer("z_dim");
  config.dim_mult = g.integers("dim_mult");
  config.num_res_blocks = g.integer("num_res_blocks");
  config.temporal_downsample = g.integers("temperal_downsample");  // spelled so by the reference
  const Tensor mean = g.tensor("in.mean").to(DType::kF32);
  const Tensor deviation = g.tensor("in.std").to(DType::kF32);
  config.mean.assign(mean.span<float>().begin(), mean.span<float>().end());
  config.deviation.assign(deviation.span<float>().begin(), deviation.span<float>().end());
  require_ok(config.validate());
  CheckpointSource source(g.weights());
  Binder binder(source, g.label());
  const WanVae vae = WanVae::bind(r.loader(binder), config, {});
  require_ok(binder.finish());

  VaeState encoder_state;
  r.compare("out.encoded",
            r.channels_first(vae.encode(r.ops, r.latent("in.video"), encoder_state)));
  const Tensor latent = r.latent("in.latent");
  VaeState whole;
  r.compare("out.decoded", r.channels_first(vae.decode(r.ops, latent, whole)));
  // The same latent in two calls with the caches kept; the first latent frame gives one picture.
  if (!g.has("out.stream.0")) return;
  const int64_t first = (g.tensor("out.stream.0").dim(2) - 1) / config.frames_per_latent() + 1;
  const Tensor host = r.ops.to_host(latent);
  VaeState streaming;
  const auto part = [&](int64_t begin, int64_t end) {
    return r.ops.to_device(host.slice(1, begin, end).copy(), latent.dtype());
  };
  r.compare("out.stream.0", r.channels_first(vae.decode(r.ops, part(0, first), streaming)));
  r.compare("out.stream.1",
            r.channels_first(vae.decode(r.ops, part(first, latent.dim(1)), streaming)));
}

}  // namespace ultraflash

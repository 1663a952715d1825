#include "models/tiny_decoder.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/check.h"

namespace ultraflash {
namespace {

constexpr float kClampLimit = 3.0F;

Status check_widths(const std::vector<int64_t>& widths, size_t count) {
  if (widths.size() != count || !std::all_of(widths.begin(), widths.end(),
                                             [](int64_t w) { return w >= 1 && w <= 1 << 14; })) {
    return make_status(StatusCode::kInvalidArgument,
                       "decoder: {} stage widths, expected {} positive ones", widths.size(), count);
  }
  return {};
}

LatentUpsamplerConfig net_config(const TinyDecoderConfig& config) {
  LatentUpsamplerConfig net;
  net.version = 3;
  net.in_channels = config.latent_channels;
  net.out_channels = 3;
  net.scale = 8;
  net.temporal_scale = 4;
  net.stage_channels = {config.widths[0], config.widths[1], config.widths[2]};
  net.memory_init = config.memory_init;
  return net;
}

}  // namespace

int64_t TinyDecoderConfig::frames_per_latent() const {
  if (layout == DecoderLayout::kNet) return 4;
  return time_upscale[0] * time_upscale[1];
}

Status TinyDecoderConfig::validate() const {
  UF_TRY(check_widths(widths, layout == DecoderLayout::kNet ? 3 : 4));
  if (latent_channels < 1 || latent_channels > 4096) {
    return make_status(StatusCode::kInvalidArgument, "decoder: {} latent channels",
                       latent_channels);
  }
  if (time_upscale.size() != 2 || !std::all_of(time_upscale.begin(), time_upscale.end(),
                                               [](int64_t t) { return t == 1 || t == 2; })) {
    return make_status(StatusCode::kInvalidArgument,
                       "decoder: two temporal factors are needed, each 1 or 2");
  }
  return {};
}

Result<TinyDecoderConfig> TinyDecoderConfig::detect(const Checkpoint& checkpoint) {
  const auto shape_of = [&](std::string_view name) -> const Shape* {
    const TensorEntry* entry = checkpoint.find(name);
    return entry != nullptr && entry->shape.rank() == 4 ? &entry->shape : nullptr;
  };
  TinyDecoderConfig config;
  if (shape_of("net.0.weight") != nullptr) {
    UF_ASSIGN(const LatentUpsamplerConfig net, LatentUpsamplerConfig::detect(checkpoint));
    if (net.scale != 8 || net.temporal_scale != 4 || net.out_channels != 3) {
      return make_status(StatusCode::kMalformed,
                         "{}: this network makes {} channels at {}x in space and {}x in time; a "
                         "decoder makes 3 at 8x and 4x",
                         checkpoint.label(), net.out_channels, net.scale, net.temporal_scale);
    }
    config.layout = DecoderLayout::kNet;
    config.latent_channels = net.in_channels;
    config.widths = net.stage_channels;
    config.memory_init = MemoryInit::kReplicate;
    return config;
  }
  const Shape* first = shape_of("decoder.1.weight");
  const Shape* to_1 = shape_of("decoder.8.weight");
  const Shape* to_2 = shape_of("decoder.14.weight");
  const Shape* to_3 = shape_of("decoder.20.weight");
  if (first == nullptr || to_1 == nullptr || to_2 == nullptr || to_3 == nullptr) {
    return make_status(StatusCode::kMalformed,
                       "{}: neither decoder.1, 8, 14 and 20 nor net.0; this is not a tiny decoder",
                       checkpoint.label());
  }
  config.latent_channels = (*first)[1];
  config.widths = {(*first)[0], (*to_1)[0], (*to_2)[0], (*to_3)[0]};
  if (shape_of("decoder.6.up.0.weight") != nullptr) {
    config.layout = DecoderLayout::kUltra;
    config.memory_init = MemoryInit::kReplicate;
  }
  UF_TRY(config.validate());
  return config;
}

TinyDecoder TinyDecoder::bind(Loader loader, const TinyDecoderConfig& config) {
  TinyDecoder decoder;
  decoder.config_ = config;
  if (config.layout == DecoderLayout::kNet) {
    decoder.v3_ = LatentUpsampler::bind(std::move(loader), net_config(config));
    return decoder;
  }
  MemoryNet net(config.memory_init);
  const std::vector<int64_t>& w = config.widths;
  const auto enlarge = [&](int64_t index, int64_t width) {
    if (config.layout == DecoderLayout::kTiny) {
      net.upsample(2);
    } else {
      net.pixel_shuffle(loader, fmt::format("decoder.{}.up.0", index), width, width, 2);
    }
  };
  const auto memory_blocks = [&](int64_t index, int64_t width) {
    for (int64_t i = index; i < index + 3; ++i) {
      net.memory_block(loader, fmt::format("decoder.{}", i), width, width);
    }
  };
  net.soft_clamp(kClampLimit);  // decoder.0
  net.conv(loader, "decoder.1", config.latent_channels, w[0], true, Activation::kRelu);
  memory_blocks(3, w[0]);
  enlarge(6, w[0]);
  net.temporal_grow(loader, "decoder.7.conv", w[0], 1, 1);
  net.conv(loader, "decoder.8", w[0], w[1], false);
  memory_blocks(9, w[1]);
  enlarge(12, w[1]);
  net.temporal_grow(loader, "decoder.13.conv", w[1], config.time_upscale[0], 2);
  net.conv(loader, "decoder.14", w[1], w[2], false);
  memory_blocks(15, w[2]);
  enlarge(18, w[2]);
  net.temporal_grow(loader, "decoder.19.conv", w[2], config.time_upscale[1], 2);
  net.conv(loader, "decoder.20", w[2], w[3], false, Activation::kRelu);
  net.conv(loader, "decoder.22", w[3], 3, true, Activation::kNone, 1, 0.5F);
  decoder.net_ = std::move(net);
  return decoder;
}

Tensor TinyDecoder::run(Executor& ops, const Tensor& latent, DecoderState& state) const {
  UF_CHECK(latent.rank() == 5 && latent.dim(4) == config_.latent_channels,
           "latent {} for {} channels", latent.to_string(), config_.latent_channels);
  if (!v3_) return net_.run(ops, latent, state.net);
  UpsamplerState upsampler{std::move(state.net)};
  Tensor y = v3_->run(ops, latent, upsampler);
  state.net = std::move(upsampler.net);
  return y;
}

Status TinyEncoderConfig::validate() const {
  if (latent_channels < 1 || latent_channels > 4096 || width < 1 || width > 1 << 14) {
    return make_status(StatusCode::kInvalidArgument, "encoder: width {} to {} latent channels",
                       width, latent_channels);
  }
  return {};
}

Result<TinyEncoderConfig> TinyEncoderConfig::detect(const Checkpoint& checkpoint) {
  const TensorEntry* first = checkpoint.find("encoder.0.weight");
  const TensorEntry* last = checkpoint.find("encoder.17.weight");
  if (first == nullptr || last == nullptr || first->shape.rank() != 4 || last->shape.rank() != 4) {
    return make_status(StatusCode::kMalformed,
                       "{}: no encoder.0 and encoder.17; this file has no tiny encoder",
                       checkpoint.label());
  }
  TinyEncoderConfig config;
  config.width = first->shape[0];
  config.latent_channels = last->shape[0];
  UF_TRY(config.validate());
  return config;
}

TinyEncoder TinyEncoder::bind(Loader loader, const TinyEncoderConfig& config, MemoryInit init) {
  TinyEncoder encoder;
  encoder.config_ = config;
  MemoryNet net(init);
  const int64_t w = config.width;
  net.conv(loader, "encoder.0", 3, w, true, Activation::kRelu);
  int64_t index = 2;  // 1 is the activation
  for (const int64_t pool : {2, 2, 1}) {
    net.temporal_pool(loader, fmt::format("encoder.{}.conv", index), w, pool);
    net.conv(loader, fmt::format("encoder.{}", index + 1), w, w, false, Activation::kNone, 2);
    for (int64_t i = 0; i < 3; ++i) {
      net.memory_block(loader, fmt::format("encoder.{}", index + 2 + i), w, w);
    }
    index += 5;
  }
  net.conv(loader, "encoder.17", w, config.latent_channels, true);
  encoder.net_ = std::move(net);
  return encoder;
}

Tensor TinyEncoder::run(Executor& ops, const Tensor& pictures, MemoryState& state) const {
  UF_CHECK(pictures.rank() == 5 && pictures.dim(4) == 3 && pictures.dim(2) % 8 == 0 &&
               pictures.dim(3) % 8 == 0,
           "pictures {}; sides must be multiples of 8", pictures.to_string());
  return net_.run(ops, pictures, state);
}

}  // namespace ultraflash

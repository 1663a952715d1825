#include "models/wan_vae.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "core/check.h"

namespace ultraflash {
namespace {

// Statistics of Wan2.1 latents (Wan2.1 wan/modules/vae.py).
constexpr std::array<float, 16> kMean = {-0.7571F, -0.7089F, -0.9113F, 0.1075F,  -0.1745F, 0.9653F,
                                         -0.1517F, 1.5508F,  0.4134F,  -0.0715F, 0.5517F,  -0.3632F,
                                         -0.1922F, -0.9497F, 0.2503F,  -0.2921F};
constexpr std::array<float, 16> kDeviation = {2.8184F, 1.4541F, 2.3275F, 2.6558F, 1.2196F, 1.7708F,
                                              2.6052F, 2.0743F, 3.2687F, 2.1526F, 2.8652F, 1.5579F,
                                              1.6382F, 1.1253F, 2.8251F, 1.9160F};

constexpr int64_t kHistory = 2;  // frames that a 3-tap causal convolution looks back
constexpr float kResidualGain = 0.5F;

Tensor last_frames(Executor& ops, const Tensor& past, const Tensor& x, int64_t count) {
  Tensor kept = ops.empty(x.dtype(), x.shape().with(1, count));
  const int64_t from_x = std::min(count, x.dim(1));
  const int64_t from_past = count - from_x;
  if (from_past > 0) {
    ops.copy(kept.slice(1, 0, from_past), past.slice(1, past.dim(1) - from_past, past.dim(1)));
  }
  ops.copy(kept.slice(1, from_past, count), x.slice(1, x.dim(1) - from_x, x.dim(1)));
  return kept;
}

Shape gamma_shape(int64_t channels, int spatial_axes) {
  return spatial_axes == 3 ? Shape{channels, 1, 1, 1} : Shape{channels, 1, 1};
}

}  // namespace

int64_t WanVaeConfig::frames_per_latent() const {
  int64_t frames = 1;
  for (const int64_t halved : temporal_downsample) frames *= halved != 0 ? 2 : 1;
  return frames;
}

Status WanVaeConfig::validate() const {
  const auto within = [](int64_t v, int64_t high) { return v >= 1 && v <= high; };
  if (!within(dim, 4096) || !within(z_dim, 1024) || !within(num_res_blocks, 64)) {
    return make_status(StatusCode::kInvalidArgument,
                       "autoencoder: width {}, {} latent channels, {} blocks per level", dim, z_dim,
                       num_res_blocks);
  }
  if (dim_mult.size() < 2 || dim_mult.size() > 8 ||
      !std::all_of(dim_mult.begin(), dim_mult.end(), [&](int64_t m) { return within(m, 64); }) ||
      temporal_downsample.size() + 1 != dim_mult.size()) {
    return make_status(StatusCode::kInvalidArgument,
                       "autoencoder: {} levels need {} temporal factors, got {}", dim_mult.size(),
                       dim_mult.size() - 1, temporal_downsample.size());
  }
  const auto statistics_ok = [&](const std::vector<float>& v) {
    return v.empty() ? z_dim == 16 : static_cast<int64_t>(v.size()) == z_dim;
  };
  if (!statistics_ok(mean) || !statistics_ok(deviation) ||
      std::any_of(deviation.begin(), deviation.end(), [](float d) { return !(d > 0.0F); })) {
    return make_status(StatusCode::kInvalidArgument,
                       "autoencoder: mean and deviation need {} values, deviations positive",
                       z_dim);
  }
  return {};
}

Result<WanVaeConfig> WanVaeConfig::detect(const Checkpoint& checkpoint) {
  const auto shape_of = [&](const std::string& name) -> const Shape* {
    const TensorEntry* entry = checkpoint.find(name);
    return entry != nullptr ? &entry->shape : nullptr;
  };
  const Shape* first = shape_of("encoder.conv1.weight");
  const Shape* conv2 = shape_of("conv2.weight");
  const Shape* last = shape_of("decoder.conv1.weight");
  if (first == nullptr || conv2 == nullptr || last == nullptr || first->rank() != 5) {
    return make_status(StatusCode::kMalformed,
                       "{}: no encoder.conv1, decoder.conv1 and conv2; this is not the Wan VAE",
                       checkpoint.label());
  }
  WanVaeConfig config;
  config.dim = (*first)[0];
  config.z_dim = (*conv2)[0];
  // Levels of the encoder: residual blocks up to the next resampling.
  config.dim_mult.clear();
  config.temporal_downsample.clear();
  int64_t blocks = 0;
  int64_t width = config.dim;
  for (int64_t i = 0;; ++i) {
    const std::string base = fmt::format("encoder.downsamples.{}", i);
    if (const Shape* conv = shape_of(base + ".residual.6.weight")) {
      width = (*conv)[0];
      ++blocks;
    } else if (shape_of(base + ".resample.1.weight") != nullptr) {
      config.dim_mult.push_back(width / config.dim);
      config.temporal_downsample.push_back(shape_of(base + ".time_conv.weight") != nullptr ? 1 : 0);
      if (config.dim_mult.size() == 1) config.num_res_blocks = blocks;
    } else {
      break;
    }
  }
  config.dim_mult.push_back(width / config.dim);
  UF_TRY(config.validate());
  return config;
}

WanVae::CausalConv WanVae::bind_causal(Loader& loader, std::string_view name, int64_t in,
                                       int64_t out, const Shape& kernel, size_t& slots) {
  CausalConv conv;
  conv.weight = loader.conv(name, {out, in, kernel[0], kernel[1], kernel[2]}, true);
  conv.slot = slots++;
  return conv;
}

WanVae::ResidualBlock WanVae::bind_residual(Loader loader, int64_t in, int64_t out, size_t& slots) {
  ResidualBlock block;
  block.norm_0 = loader.vector("residual.0.gamma", gamma_shape(in, 3), {in}, ParameterInit::ones());
  block.conv_2 = bind_causal(loader, "residual.2", in, out, {3, 3, 3}, slots);
  block.norm_3 =
      loader.vector("residual.3.gamma", gamma_shape(out, 3), {out}, ParameterInit::ones());
  block.conv_6.weight = loader.conv("residual.6", {out, out, 3, 3, 3}, true, kResidualGain);
  block.conv_6.slot = slots++;
  if (in != out) block.shortcut = loader.conv("shortcut", {out, in, 1, 1, 1}, true);
  return block;
}

WanVae::AttentionBlock WanVae::bind_attention(Loader loader, int64_t channels) {
  AttentionBlock block;
  block.norm =
      loader.vector("norm.gamma", gamma_shape(channels, 2), {channels}, ParameterInit::ones());
  block.to_qkv = loader.pointwise("to_qkv", channels, 3 * channels, true);
  block.proj = loader.pointwise("proj", channels, channels, true, kResidualGain);
  return block;
}

void WanVae::bind_middle(Half& half, Loader loader, int64_t channels) {
  half.middle_0 = bind_residual(loader.scoped("middle.0."), channels, channels, half.slots);
  half.middle_1 = bind_attention(loader.scoped("middle.1."), channels);
  half.middle_2 = bind_residual(loader.scoped("middle.2."), channels, channels, half.slots);
}

WanVae WanVae::bind(Loader loader, const WanVaeConfig& config, const Parts& parts) {
  WanVae vae;
  vae.config_ = config;
  vae.compute_ = loader.target().compute;
  const size_t levels = config.dim_mult.size();
  const Shape cube{3, 3, 3};
  const Shape time_only{3, 1, 1};
  if (parts.encoder) {
    Half half;
    Loader in = loader.scoped("encoder.");
    int64_t width = config.dim;
    half.conv_1 = bind_causal(in, "conv1", 3, width, cube, half.slots);
    int64_t index = 0;
    for (size_t level = 0; level < levels; ++level) {
      Stage stage;
      const int64_t out = config.dim * config.dim_mult[level];
      for (int64_t i = 0; i < config.num_res_blocks; ++i) {
        stage.blocks.push_back(bind_residual(in.scoped(fmt::format("downsamples.{}.", index++)),
                                             width, out, half.slots));
        width = out;
      }
      if (level + 1 < levels) {
        Loader at = in.scoped(fmt::format("downsamples.{}.", index++));
        Resample resample;
        resample.spatial = at.conv("resample.1", {width, width, 3, 3}, true);
        if (config.temporal_downsample[level] != 0) {
          resample.temporal = bind_causal(at, "time_conv", width, width, time_only, half.slots);
        }
        stage.resample = std::move(resample);
      }
      half.stages.push_back(std::move(stage));
    }
    bind_middle(half, in, width);
    half.head_norm =
        in.vector("head.0.gamma", gamma_shape(width, 3), {width}, ParameterInit::ones());
    half.head_conv = bind_causal(in, "head.2", width, 2 * config.z_dim, cube, half.slots);
    vae.encoder_ = std::move(half);
    const Conv conv1 = loader.conv("conv1", {2 * config.z_dim, 2 * config.z_dim, 1, 1, 1}, true);
    if (conv1.weight.defined() && conv1.bias.defined() && loader.target().executor != nullptr) {
      vae.conv1_.weights = {conv1.weight.reshape({2 * config.z_dim, 2 * config.z_dim})};
      vae.conv1_.biases = {conv1.bias};
      loader.target().executor->prepare(vae.conv1_, {.compute = vae.compute_});
    }
  } else {
    loader.binder().ignore_unused("encoder.");
    loader.binder().ignore_unused("conv1.");
  }
  if (parts.decoder) {
    Half half;
    const Conv conv2 = loader.conv("conv2", {config.z_dim, config.z_dim, 1, 1, 1}, true);
    if (conv2.weight.defined() && conv2.bias.defined() && loader.target().executor != nullptr) {
      vae.conv2_.weights = {conv2.weight.reshape({config.z_dim, config.z_dim})};
      vae.conv2_.biases = {conv2.bias};
      loader.target().executor->prepare(vae.conv2_, {.compute = vae.compute_});
    }
    Loader in = loader.scoped("decoder.");
    int64_t width = config.dim * config.dim_mult.back();
    half.conv_1 = bind_causal(in, "conv1", config.z_dim, width, cube, half.slots);
    bind_middle(half, in, width);
    int64_t index = 0;
    for (size_t level = 0; level < levels; ++level) {
      Stage stage;
      const int64_t out = config.dim * config.dim_mult[levels - 1 - level];
      for (int64_t i = 0; i <= config.num_res_blocks; ++i) {
        stage.blocks.push_back(bind_residual(in.scoped(fmt::format("upsamples.{}.", index++)),
                                             width, out, half.slots));
        width = out;
      }
      if (level + 1 < levels) {
        Loader at = in.scoped(fmt::format("upsamples.{}.", index++));
        Resample resample;
        resample.up = true;
        resample.spatial = at.conv("resample.1", {width / 2, width, 3, 3}, true);
        if (config.temporal_downsample[levels - 2 - level] != 0) {
          resample.temporal = bind_causal(at, "time_conv", width, 2 * width, time_only, half.slots);
        }
        width /= 2;
        stage.resample = std::move(resample);
      }
      half.stages.push_back(std::move(stage));
    }
    half.head_norm =
        in.vector("head.0.gamma", gamma_shape(width, 3), {width}, ParameterInit::ones());
    half.head_conv = bind_causal(in, "head.2", width, 3, cube, half.slots);
    vae.decoder_ = std::move(half);
  } else {
    loader.binder().ignore_unused("decoder.");
    loader.binder().ignore_unused("conv2.");
  }

  if (Executor* ops = loader.target().executor) {
    const auto upload = [&](auto value_of) {
      Tensor values = Tensor::allocate(DType::kF32, {config.z_dim});
      for (int64_t c = 0; c < config.z_dim; ++c) {
        const auto i = static_cast<size_t>(c);
        const float mean = config.mean.empty() ? kMean[i] : config.mean[i];
        const float deviation = config.deviation.empty() ? kDeviation[i] : config.deviation[i];
        values.mutable_data<float>()[c] = value_of(mean, deviation);
      }
      return ops->to_device(values, DType::kF32);
    };
    vae.to_raw_scale_ = upload([](float, float deviation) { return deviation; });
    vae.to_raw_shift_ = upload([](float mean, float) { return mean; });
    vae.to_normal_scale_ = upload([](float, float deviation) { return 1.0F / deviation; });
    vae.to_normal_shift_ = upload([](float mean, float deviation) { return -mean / deviation; });
  }
  return vae;
}

Tensor WanVae::run_causal(Executor& ops, const CausalConv& conv, const Tensor& x, VaeState& state,
                          int64_t stride_time) {
  Conv3dOptions options;
  options.stride_time = stride_time;
  if (conv.weight.weight.dim(3) == 1) options.padding = {0, 0, 0, 0};
  Tensor& past = state.slots[conv.slot];
  if (past.defined()) {
    options.past = past;
  } else {
    options.zeros = kHistory;
  }
  Tensor y = ops.causal_conv3d(x, conv.weight, options);
  if (!past.defined()) past = ops.zeros(x.dtype(), x.shape().with(1, kHistory));
  past = last_frames(ops, past, x, kHistory);
  return y;
}

Tensor WanVae::run_residual(Executor& ops, const ResidualBlock& block, const Tensor& x,
                            VaeState& state) {
  Tensor y = ops.channel_norm(x, block.norm_0, /*silu=*/true);
  y = run_causal(ops, block.conv_2, y, state);
  y = ops.channel_norm(y, block.norm_3, /*silu=*/true);
  y = run_causal(ops, block.conv_6, y, state);
  if (!block.shortcut) return ops.add(y, x);
  Conv3dOptions pointwise;
  pointwise.padding = {0, 0, 0, 0};
  return ops.add(y, ops.causal_conv3d(x, *block.shortcut, pointwise));
}

Tensor WanVae::run_attention(Executor& ops, const AttentionBlock& block, const Tensor& x) {
  const int64_t frames = x.dim(0) * x.dim(1);
  const int64_t pixels = x.dim(2) * x.dim(3);
  const int64_t channels = x.dim(4);
  Tensor y = ops.channel_norm(x, block.norm, /*silu=*/false);
  const Tensor qkv = ops.linear(y.reshape({frames, pixels, channels}), block.to_qkv);
  y = ops.attention(qkv.slice(2, 0, channels), qkv.slice(2, channels, 2 * channels),
                    qkv.slice(2, 2 * channels, 3 * channels), /*heads=*/1);
  return ops.add(ops.linear(y, block.proj).reshape(x.shape()), x);
}

Tensor WanVae::run_resample(Executor& ops, const Resample& resample, Tensor x, VaeState& state,
                            bool first) {
  if (resample.up) {
    // The first latent frame of a video is not doubled, and leaves no trace in the history.
    if (resample.temporal && !first) {
      const Tensor y = run_causal(ops, *resample.temporal, x, state);  // [b, t, h, w, 2c]
      const int64_t channels = x.dim(4);
      const Shape pairs{x.dim(0) * x.dim(1), 2, x.dim(2) * x.dim(3), channels};
      const Tensor halves = y.reshape({pairs[0], pairs[2], 2 * channels});
      Tensor doubled = ops.empty(x.dtype(), pairs);
      for (int i = 0; i < 2; ++i) {
        ops.copy(doubled.select(1, i), halves.slice(2, i * channels, (i + 1) * channels));
      }
      x = doubled.reshape(x.shape().with(1, 2 * x.dim(1)));
    }
    Conv2dOptions options;
    options.upsample = 2;
    return ops.conv2d(x, resample.spatial, options);
  }
  Conv2dOptions options;
  options.stride = 2;
  options.padding = {0, 1, 0, 1};
  Tensor y = ops.conv2d(x, resample.spatial, options);
  if (!resample.temporal) return y;
  // The first picture passes; later ones are convolved together with the one before them.
  Tensor& past = state.slots[resample.temporal->slot];
  Tensor out = y;
  if (!first) {
    Conv3dOptions time;
    time.padding = {0, 0, 0, 0};
    time.stride_time = 2;
    time.past = past;
    out = ops.causal_conv3d(y, resample.temporal->weight, time);
  }
  past = last_frames(ops, past, y, 1);
  return out;
}

Tensor WanVae::run_half(Executor& ops, const Half& half, Tensor x, VaeState& state, bool decoder,
                        bool first) {
  x = run_causal(ops, half.conv_1, x, state);
  const auto middle = [&] {
    x = run_residual(ops, half.middle_0, x, state);
    x = run_attention(ops, half.middle_1, x);
    x = run_residual(ops, half.middle_2, x, state);
  };
  if (decoder) middle();
  for (const Stage& stage : half.stages) {
    for (const ResidualBlock& block : stage.blocks) x = run_residual(ops, block, x, state);
    if (stage.resample) x = run_resample(ops, *stage.resample, std::move(x), state, first);
  }
  if (!decoder) middle();
  x = ops.channel_norm(x, half.head_norm, /*silu=*/true);
  return run_causal(ops, half.head_conv, x, state);
}

Tensor WanVae::decode_part(Executor& ops, const Tensor& latent, VaeState& state, bool first) const {
  Tensor z = ops.channel_affine(latent, to_raw_scale_, to_raw_shift_);
  return run_half(ops, *decoder_, ops.linear(z, conv2_), state, /*decoder=*/true, first);
}

Tensor WanVae::decode(Executor& ops, const Tensor& latent_any, VaeState& state) const {
  UF_CHECK(decoder_.has_value(), "the decoder half was not bound");
  UF_CHECK(latent_any.rank() == 5 && latent_any.dim(4) == config_.z_dim && latent_any.dim(1) > 0,
           "latent {} for {} channels", latent_any.to_string(), config_.z_dim);
  const Tensor latent = ops.cast(latent_any, compute_);
  if (state.started) return decode_part(ops, latent, state, /*first=*/false);
  state.slots.assign(decoder_->slots, Tensor());
  state.started = true;
  Tensor one = ops.empty(latent.dtype(), latent.shape().with(1, 1));
  ops.copy(one, latent.slice(1, 0, 1));
  const Tensor head = decode_part(ops, one, state, /*first=*/true);
  if (latent.dim(1) == 1) return head;
  Tensor rest = ops.empty(latent.dtype(), latent.shape().with(1, latent.dim(1) - 1));
  ops.copy(rest, latent.slice(1, 1, latent.dim(1)));
  const Tensor tail = decode_part(ops, rest, state, /*first=*/false);
  Tensor out = ops.empty(tail.dtype(), tail.shape().with(1, head.dim(1) + tail.dim(1)));
  ops.copy(out.slice(1, 0, head.dim(1)), head);
  ops.copy(out.slice(1, head.dim(1), out.dim(1)), tail);
  return out;
}

Tensor WanVae::encode_part(Executor& ops, const Tensor& pictures, VaeState& state,
                           bool first) const {
  Tensor h = run_half(ops, *encoder_, pictures, state, /*decoder=*/false, first);
  h = ops.linear(h, conv1_);  // mean and log-variance
  Tensor mean = ops.empty(h.dtype(), h.shape().with(4, config_.z_dim));
  ops.copy(mean, h.slice(4, 0, config_.z_dim));
  return ops.channel_affine(mean, to_normal_scale_, to_normal_shift_);
}

Tensor WanVae::encode(Executor& ops, const Tensor& pictures_any, VaeState& state) const {
  UF_CHECK(encoder_.has_value(), "the encoder half was not bound");
  UF_CHECK(pictures_any.rank() == 5 && pictures_any.dim(4) == 3, "pictures {}",
           pictures_any.to_string());
  const Tensor pictures = ops.cast(pictures_any, compute_);
  const int64_t frames = pictures.dim(1);
  const int64_t alone = state.started ? 0 : 1;
  const int64_t unit = config_.frames_per_latent();
  if (frames < 1 || (frames - alone) % unit != 0) {
    throw_error(
        StatusCode::kInvalidArgument, "the Wan VAE encodes {}{}n frames at {} of a video, not {}",
        alone != 0 ? "1 + " : "", unit, alone != 0 ? "the beginning" : "a later part", frames);
  }
  if (state.started) return encode_part(ops, pictures, state, /*first=*/false);
  state.slots.assign(encoder_->slots, Tensor());
  state.started = true;
  Tensor one = ops.empty(pictures.dtype(), pictures.shape().with(1, 1));
  ops.copy(one, pictures.slice(1, 0, 1));
  const Tensor head = encode_part(ops, one, state, /*first=*/true);
  if (frames == 1) return head;
  Tensor rest = ops.empty(pictures.dtype(), pictures.shape().with(1, frames - 1));
  ops.copy(rest, pictures.slice(1, 1, frames));
  const Tensor tail = encode_part(ops, rest, state, /*first=*/false);
  Tensor out = ops.empty(tail.dtype(), tail.shape().with(1, 1 + tail.dim(1)));
  ops.copy(out.slice(1, 0, 1), head);
  ops.copy(out.slice(1, 1, out.dim(1)), tail);
  return out;
}

}  // namespace ultraflash

#include "models/latent_upsampler.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/check.h"

namespace ultraflash {
namespace {

// Factors of 2 first, then what is left in one step: 6 -> 2, 3.
std::vector<int64_t> shuffle_factors(int64_t scale) {
  std::vector<int64_t> factors;
  while (scale % 2 == 0) {
    factors.push_back(2);
    scale /= 2;
  }
  if (scale > 1) factors.push_back(scale);
  return factors;
}

bool is_power_of_two_to_8(int64_t x) { return x == 1 || x == 2 || x == 4 || x == 8; }

int64_t doublings(int64_t scale) {
  int64_t count = 0;
  while (scale > 1) {
    scale /= 2;
    ++count;
  }
  return count;
}

// One convolution and shuffle per factor, `name`.0, `name`.2, ...; the activation after the last.
void build_head(MemoryNet& net, Loader& loader, std::string_view name, int64_t in, int64_t out,
                int64_t scale, Activation activation) {
  if (scale == 1) {
    net.conv(loader, fmt::format("{}.0", name), in, out, true, activation);
    return;
  }
  const std::vector<int64_t> factors = shuffle_factors(scale);
  for (size_t i = 0; i < factors.size(); ++i) {
    const bool last = i + 1 == factors.size();
    net.pixel_shuffle(loader, fmt::format("{}.{}", name, 2 * i), i == 0 ? in : out, out, factors[i],
                      last ? activation : Activation::kNone);
  }
}

void build_v1(MemoryNet& net, MemoryNet& skip, Loader& loader, const LatentUpsamplerConfig& c) {
  build_head(net, loader, "pre_shuffle", c.in_channels, c.mid_channels, c.scale, c.activation);
  for (int64_t i = 0; i < c.num_blocks; ++i) {
    net.memory_block(loader, fmt::format("blocks.{}", i), c.mid_channels, c.mid_channels,
                     c.activation);
  }
  net.conv(loader, "final", c.mid_channels, c.out_channels, true, Activation::kNone, 1, 0.5F);
  if (c.residual) {
    build_head(skip, loader, "skip_up", c.in_channels, c.out_channels, c.scale, Activation::kNone);
  }
}

// Indices of `net` count every layer of the reference's list, identities included.
void build_v3(MemoryNet& net, MemoryNet& skip, Loader& loader, const LatentUpsamplerConfig& c) {
  const int64_t stages = 3;
  const int64_t spatial = doublings(c.scale);            // fill the stages from the left
  const int64_t temporal = doublings(c.temporal_scale);  // fill them from the right
  int64_t index = 0;
  const auto next = [&](std::string_view suffix) {
    return fmt::format("net.{}{}", index++, suffix);
  };
  int64_t channels = c.stage_channels[0];
  net.conv(loader, next(""), c.in_channels, channels, true, c.activation);
  ++index;  // the activation
  for (int64_t stage = 0; stage < stages; ++stage) {
    for (int64_t i = 0; i < c.blocks_per_stage[static_cast<size_t>(stage)]; ++i) {
      net.memory_block(loader, next(""), channels, channels, c.activation);
    }
    const std::string shuffle = next(".block.0");
    if (stage < spatial) net.pixel_shuffle(loader, shuffle, channels, channels, 2);
    const int64_t grow = stage >= stages - temporal ? 2 : 1;
    net.temporal_grow(loader, next(".conv"), channels, grow, grow);
    if (stage + 1 < stages) {
      const int64_t out = c.stage_channels[static_cast<size_t>(stage + 1)];
      net.conv(loader, next(""), channels, out, false);
      channels = out;
    }
  }
  net.activate(c.activation);
  ++index;
  net.conv(loader, next(""), channels, c.out_channels, true, Activation::kNone, 1, 0.5F);
  if (!c.residual) return;
  if (c.scale == 1) {
    skip.conv(loader, "skip_up", c.in_channels, c.out_channels, true);
  } else {
    build_head(skip, loader, "skip_up", c.in_channels, c.out_channels, c.scale, Activation::kNone);
  }
}

}  // namespace

Status LatentUpsamplerConfig::validate() const {
  if (version != 1 && version != 3) {
    return make_status(StatusCode::kInvalidArgument, "upsampler: version {}, there are 1 and 3",
                       version);
  }
  const auto channels_ok = [](int64_t c) { return c >= 1 && c <= 1 << 14; };
  if (!channels_ok(in_channels) || !channels_ok(out_channels)) {
    return make_status(StatusCode::kInvalidArgument, "upsampler: {} channels in, {} out",
                       in_channels, out_channels);
  }
  if (scale < 1 || scale > 16) {
    return make_status(StatusCode::kInvalidArgument, "upsampler: scale {}, expected 1 to 16",
                       scale);
  }
  if (version == 1 && (!channels_ok(mid_channels) || num_blocks < 1 || num_blocks > 256)) {
    return make_status(StatusCode::kInvalidArgument, "upsampler: width {} with {} blocks",
                       mid_channels, num_blocks);
  }
  if (version == 1 && temporal_scale != 1) {
    return make_status(StatusCode::kInvalidArgument,
                       "upsampler: version 1 cannot change the frame rate (temporal scale {})",
                       temporal_scale);
  }
  if (version == 3) {
    if (!is_power_of_two_to_8(scale) || !is_power_of_two_to_8(temporal_scale)) {
      return make_status(StatusCode::kInvalidArgument,
                         "upsampler: version 3 scales by 1, 2, 4 or 8, not by {} in space and {} "
                         "in time; version 1 takes any spatial scale",
                         scale, temporal_scale);
    }
    if (stage_channels.size() != 3 || blocks_per_stage.size() != 3 ||
        !std::all_of(stage_channels.begin(), stage_channels.end(), channels_ok) ||
        !std::all_of(blocks_per_stage.begin(), blocks_per_stage.end(),
                     [](int64_t b) { return b >= 1 && b <= 64; })) {
      return make_status(StatusCode::kInvalidArgument,
                         "upsampler: version 3 has three stages of positive width and depth");
    }
  }
  return {};
}

Result<LatentUpsamplerConfig> LatentUpsamplerConfig::detect(const Checkpoint& checkpoint) {
  LatentUpsamplerConfig config;
  const auto shape_of = [&](const std::string& name) -> const Shape* {
    const TensorEntry* entry = checkpoint.find(name);
    return entry != nullptr && entry->shape.rank() == 4 ? &entry->shape : nullptr;
  };
  const auto missing = [&](std::string_view name) {
    return make_status(StatusCode::kMalformed,
                       "{}: no convolution {}; this is not a latent upsampler", checkpoint.label(),
                       name);
  };
  if (const Shape* head = shape_of("pre_shuffle.0.weight")) {
    config.in_channels = (*head)[1];
    const Shape* final = shape_of("final.weight");
    if (final == nullptr) return missing("final.weight");
    config.out_channels = (*final)[0];
    config.mid_channels = (*final)[1];
    config.scale = 1;
    for (int64_t i = 0; shape_of(fmt::format("pre_shuffle.{}.weight", 2 * i)) != nullptr; ++i) {
      const int64_t square =
          (*shape_of(fmt::format("pre_shuffle.{}.weight", 2 * i)))[0] / config.mid_channels;
      int64_t factor = 1;
      while (factor * factor < square) ++factor;
      config.scale *= factor;
    }
    config.num_blocks = 0;
    while (shape_of(fmt::format("blocks.{}.conv.0.weight", config.num_blocks)) != nullptr) {
      ++config.num_blocks;
    }
    config.residual = shape_of("skip_up.0.weight") != nullptr;
    UF_TRY(config.validate());
    return config;
  }
  const Shape* first = shape_of("net.0.weight");
  if (first == nullptr) return missing("pre_shuffle.0.weight or net.0.weight");
  config.version = 3;
  config.in_channels = (*first)[1];
  config.scale = 1;
  config.temporal_scale = 1;
  int64_t index = 2;
  for (size_t stage = 0; stage < 3; ++stage) {
    config.blocks_per_stage[stage] = 0;
    while (shape_of(fmt::format("net.{}.conv.0.weight", index)) != nullptr) {
      config.stage_channels[stage] = (*shape_of(fmt::format("net.{}.conv.0.weight", index)))[0];
      ++config.blocks_per_stage[stage];
      ++index;
    }
    if (shape_of(fmt::format("net.{}.block.0.weight", index)) != nullptr) config.scale *= 2;
    ++index;
    const std::string grow = fmt::format("net.{}.conv.weight", index++);
    if (shape_of(grow) == nullptr) return missing(grow);
    config.temporal_scale *= (*shape_of(grow))[0] / std::max<int64_t>((*shape_of(grow))[1], 1);
    ++index;  // the convolution to the next stage, or the last activation
  }
  const std::string last = fmt::format("net.{}.weight", index);
  if (shape_of(last) == nullptr) return missing(last);
  config.out_channels = (*shape_of(last))[0];
  config.residual =
      shape_of("skip_up.0.weight") != nullptr || shape_of("skip_up.weight") != nullptr;
  UF_TRY(config.validate());
  return config;
}

LatentUpsampler LatentUpsampler::bind(Loader loader, const LatentUpsamplerConfig& config) {
  LatentUpsampler network;
  network.config_ = config;
  network.net_ = MemoryNet(config.memory_init);
  if (config.version == 1) {
    build_v1(network.net_, network.skip_, loader, config);
  } else {
    build_v3(network.net_, network.skip_, loader, config);
  }
  return network;
}

Tensor LatentUpsampler::run(Executor& ops, const Tensor& latent, UpsamplerState& state) const {
  UF_CHECK(latent.rank() == 5 && latent.dim(4) == config_.in_channels, "latent {} for {} channels",
           latent.to_string(), config_.in_channels);
  Tensor y = net_.run(ops, latent, state.net);
  if (!config_.residual) return y;
  MemoryState none;
  Tensor skip = skip_.run(ops, latent, none);  // [batch, f, h * scale, w * scale, out]
  const int64_t repeat = config_.temporal_scale;
  if (repeat > 1) {
    Tensor repeated = ops.empty(skip.dtype(), y.shape());
    for (int64_t t = 0; t < y.dim(1); ++t) {
      ops.copy(repeated.slice(1, t, t + 1), skip.slice(1, t / repeat, t / repeat + 1));
    }
    skip = repeated;
  }
  return ops.axpby(1.0F, skip, static_cast<float>(config_.residual_scale), y);
}

}  // namespace ultraflash

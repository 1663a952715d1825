#include "stream/recipe_data.h"

#include <algorithm>
#include <filesystem>

#include "core/check.h"

namespace ultraflash {
namespace {

constexpr int64_t kPixelsPerLatent = 8;
constexpr int64_t kMaxLatentSide = 4096;

Status within(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return {};
  return make_status(StatusCode::kInvalidArgument, "{} is {}, expected {} to {}", field, value, low,
                     high);
}

// Recipes may come from strangers: what they name lies below the folder that the user named, for
// reading and for make-weights, which writes there.
Status check_file_name(const char* field, const std::string& name) {
  const std::filesystem::path path(name);
  const bool leaves = std::find(path.begin(), path.end(), "..") != path.end();
  if (!path.empty() && !path.is_absolute() && !leaves && name.find('\0') == std::string::npos) {
    return {};
  }
  return make_status(StatusCode::kInvalidArgument,
                     "{}: '{}' is no file below the weights folder; give a relative name without "
                     "'..'",
                     field, name.substr(0, 60));
}

Status check_checkpoint(const char* field, const CheckpointSpec& checkpoint) {
  for (const std::string& name : checkpoint.files) UF_TRY(check_file_name(field, name));
  for (const std::string& name : checkpoint.lora_files) UF_TRY(check_file_name(field, name));
  return {};
}

Status check_cascade(const RecipeData& recipe, const CascadeSpec& cascade) {
  UF_TRY(within("cascades.scale", cascade.scale, 1, 16));
  const int64_t channels = recipe.generator.network.out_dim;
  const auto mismatch = [&](const char* what, int64_t got) {
    return make_status(StatusCode::kInvalidArgument,
                       "cascade {}x: the {} takes {} latent channels, the generator makes {}",
                       cascade.scale, what, got, channels);
  };
  if (cascade.scale > 1 && !cascade.upsampler) {
    return make_status(StatusCode::kInvalidArgument, "cascade {}x has no upsampler", cascade.scale);
  }
  UF_TRY(check_checkpoint("decoder.checkpoint", cascade.decoder.checkpoint));
  if (cascade.upsampler) {
    UF_TRY(check_checkpoint("upsampler.checkpoint", cascade.upsampler->checkpoint));
    const LatentUpsamplerConfig& network = cascade.upsampler->network;
    UF_TRY(network.validate());
    if (network.in_channels != channels) return mismatch("upsampler", network.in_channels);
    if (network.scale != cascade.scale || network.temporal_scale != 1 ||
        network.out_channels != network.in_channels) {
      return make_status(StatusCode::kInvalidArgument,
                         "cascade {}x: its upsampler scales by {} in space and {} in time, {} to "
                         "{} channels",
                         cascade.scale, network.scale, network.temporal_scale, network.in_channels,
                         network.out_channels);
    }
  }
  if (cascade.refiner) {
    const RefinerSpec& refiner = *cascade.refiner;
    UF_TRY(check_checkpoint("refiner.checkpoint", refiner.checkpoint));
    UF_TRY(refiner.network.validate());
    const WanDitConfig& network = refiner.network.transformer;
    if (network.out_dim != channels || network.in_dim != 2 * channels) {
      return mismatch("refiner", network.in_dim / 2);
    }
    if (network.text_dim != recipe.text.encoder.dim ||
        network.text_len != recipe.generator.network.text_len) {
      return make_status(StatusCode::kInvalidArgument,
                         "cascade {}x: the refiner reads text of [{}, {}], the generator [{}, {}]",
                         cascade.scale, network.text_len, network.text_dim,
                         recipe.generator.network.text_len, recipe.text.encoder.dim);
    }
    UF_TRY(within("refiner.kv_len", refiner.kv_len, 1, 1024));
    UF_TRY(within("refiner.group_chunks", refiner.group_chunks, 1, 64));
    if (!(refiner.condition_noise_scale >= 0.0) || refiner.condition_noise_scale > 1.0 ||
        !(refiner.timestep >= 0.0) || refiner.timestep > 1000.0) {
      return make_status(StatusCode::kInvalidArgument,
                         "cascade {}x: condition noise {} must be 0 to 1, timestep {} 0 to 1000",
                         cascade.scale, refiner.condition_noise_scale, refiner.timestep);
    }
  }
  if (cascade.decoder.kind == DecoderKind::kTiny) {
    UF_TRY(cascade.decoder.tiny.validate());
    if (cascade.decoder.tiny_encoder) UF_TRY(cascade.decoder.tiny_encoder->validate());
    if (cascade.decoder.tiny.latent_channels != channels) {
      return mismatch("decoder", cascade.decoder.tiny.latent_channels);
    }
  } else {
    UF_TRY(cascade.decoder.vae.validate());
    if (cascade.decoder.vae.z_dim != channels)
      return mismatch("decoder", cascade.decoder.vae.z_dim);
  }
  return {};
}

}  // namespace

const CascadeSpec* RecipeData::cascade(int64_t scale) const {
  for (const CascadeSpec& cascade : cascades) {
    if (cascade.scale == scale) return &cascade;
  }
  return nullptr;
}

Status RecipeData::validate() const {
  UF_TRY(within("frames_per_second", frames_per_second, 1, 1000));
  UF_TRY(text.encoder.validate());
  UF_TRY(within("text.extra_ids", text.extra_ids, 0, 10'000));
  UF_TRY(check_checkpoint("text.checkpoint", text.checkpoint));
  for (const std::string& file : text.tokenizer_files) {
    UF_TRY(check_file_name("text.tokenizer_files", file));
  }
  UF_TRY(check_checkpoint("generator.checkpoint", generator.checkpoint));
  if (!shipped_models.empty()) UF_TRY(check_file_name("shipped_models", shipped_models));
  UF_TRY(generator.network.validate());
  if (generator.network.in_dim != generator.network.out_dim) {
    return make_status(StatusCode::kInvalidArgument,
                       "generator: {} channels in and {} out; a generator's are the same",
                       generator.network.in_dim, generator.network.out_dim);
  }
  if (generator.network.text_dim != text.encoder.dim) {
    return make_status(StatusCode::kInvalidArgument,
                       "generator: text width {}, but the text encoder's is {}",
                       generator.network.text_dim, text.encoder.dim);
  }
  UF_TRY(within("generator.latent_height", generator.latent_height, 2, kMaxLatentSide));
  UF_TRY(within("generator.latent_width", generator.latent_width, 2, kMaxLatentSide));
  if (generator.latent_height % 2 != 0 || generator.latent_width % 2 != 0) {
    return make_status(StatusCode::kInvalidArgument,
                       "a picture of {} x {} is impossible: both sides must be multiples of {} "
                       "pixels",
                       generator.latent_width * kPixelsPerLatent,
                       generator.latent_height * kPixelsPerLatent, 2 * kPixelsPerLatent);
  }
  UF_TRY(within("generator.frames_per_chunk", generator.frames_per_chunk, 1, 64));
  if (generator.denoising_steps.empty() || generator.denoising_steps.size() > 1000) {
    return make_status(StatusCode::kInvalidArgument, "generator.denoising_steps has {} entries",
                       generator.denoising_steps.size());
  }
  if (!(generator.timestep_shift > 0.0) || generator.timestep_shift > 1000.0 ||
      !(generator.context_timestep >= 0.0) || generator.context_timestep > 1000.0) {
    return make_status(StatusCode::kInvalidArgument,
                       "generator: shift {} must be positive, context timestep {} 0 to 1000",
                       generator.timestep_shift, generator.context_timestep);
  }
  UF_TRY(cache_policy().validate(generator.frames_per_chunk));
  if (cascades.empty()) {
    return make_status(StatusCode::kInvalidArgument, "the recipe has no cascade, not even scale 1");
  }
  for (const CascadeSpec& cascade : cascades) {
    UF_TRY(check_cascade(*this, cascade));
    if (std::count_if(cascades.begin(), cascades.end(), [&](const CascadeSpec& other) {
          return other.scale == cascade.scale;
        }) != 1) {
      return make_status(StatusCode::kInvalidArgument, "two cascades of scale {}", cascade.scale);
    }
  }
  if (cascade(default_scale) == nullptr) {
    return make_status(StatusCode::kInvalidArgument, "default_scale {} has no cascade",
                       default_scale);
  }
  return {};
}

}  // namespace ultraflash

#include "train/latent_bank.h"

#include <algorithm>

#include "core/rng.h"
#include "ops/autograd/torch_tensor.h"
#include "train/device_clips.h"
#include "train/encoder_check.h"

namespace ultraflash {
namespace {

constexpr uint64_t kSampleSeed = 0x62616e6b;

}  // namespace

Result<FrozenAutoencoder> FrozenAutoencoder::open(const TrainContext& context) {
  const CascadeSpec* base = context.recipe.cascade(1);
  const auto in_full = context.config.flow.sample_clips > 0 || context.config.evaluate.captions > 0;
  // Clips that are latents need no encoder, and without samples nothing is decoded.
  if (context.config.data.source == "random" && !in_full) return FrozenAutoencoder{};
  if (base != nullptr && base->decoder.kind == DecoderKind::kWanVae) {
    FrozenAutoencoder result;
    result.parameters = std::make_shared<ParameterSet>(context.device, /*trainable=*/false);
    UF_TRY(bind_network(
        context, *result.parameters, context.config.init.autoencoder, base->decoder.checkpoint, {},
        [&](Loader loader) { result.vae = WanVae::bind(loader, base->decoder.vae, {}); }));
    result.vae_decodes = true;
    return result;
  }
  if (base == nullptr || base->decoder.kind != DecoderKind::kTiny || !base->decoder.tiny_encoder) {
    return make_status(StatusCode::kInvalidArgument,
                       "recipe '{}' has no tiny autoencoder at scale 1", context.recipe.name);
  }
  const DecoderSpec& spec = base->decoder;
  FrozenAutoencoder result;
  result.parameters = std::make_shared<ParameterSet>(context.device, /*trainable=*/false);
  UF_TRY(bind_network(context, *result.parameters, context.config.init.autoencoder, spec.checkpoint,
                      {}, [&](Loader loader) {
                        result.encoder =
                            TinyEncoder::bind(loader, *spec.tiny_encoder, spec.tiny.memory_init);
                        result.decoder = TinyDecoder::bind(loader, spec.tiny);
                      }));
  return result;
}

Result<FrozenAutoencoder> FrozenAutoencoder::open_large(const TrainContext& context, int64_t scale,
                                                        const FrozenAutoencoder& base) {
  const std::string& init = context.config.init.decoder;
  const CascadeSpec* cascade = context.recipe.cascade(scale);
  if (init.empty() || context.config.data.source == "random") return base;
  if (cascade == nullptr || cascade->decoder.kind != DecoderKind::kTiny) {
    return make_status(StatusCode::kInvalidArgument, "recipe '{}' has no tiny decoder at scale {}",
                       context.recipe.name, scale);
  }
  const DecoderSpec& spec = cascade->decoder;
  FrozenAutoencoder result = base;
  if (spec.tiny_encoder) UF_TRY(require_encoder(context, init, spec));
  result.vae_decodes = false;
  result.parameters = std::make_shared<ParameterSet>(context.device, /*trainable=*/false);
  UF_TRY(bind_network(
      context, *result.parameters, init, spec.checkpoint, {"encoder."}, [&](Loader loader) {
        if (spec.tiny_encoder) {
          result.vae.reset();
          result.encoder = TinyEncoder::bind(loader, *spec.tiny_encoder, spec.tiny.memory_init);
        }
        result.decoder = TinyDecoder::bind(loader, spec.tiny);
      }));
  return result;
}

at::Tensor FrozenAutoencoder::encode(const TrainContext& context, const at::Tensor& clips) const {
  const at::NoGradGuard no_grad;
  if (vae) {
    std::vector<at::Tensor> latents;  // one after the other: a clip is large
    for (int64_t i = 0; i < clips.size(0); ++i) {
      VaeState state;
      const at::Tensor x = clips.narrow(0, i, 1).to(context.device).to(at::kFloat) / 127.5 - 1.0;
      latents.push_back(
          to_torch(vae->encode(context.ops(), from_torch(x.to(to_torch(context.compute))), state))
              .to(at::kFloat));
    }
    return at::cat(latents);
  }
  MemoryState state;
  const at::Tensor x =
      clips.to(context.device, /*non_blocking=*/true).to(to_torch(context.compute)).div_(255.0);
  return to_torch(encoder.run(context.ops(), from_torch(x), state)).to(at::kFloat);
}

at::Tensor FrozenAutoencoder::show(const TrainContext& context, const at::Tensor& latents) const {
  const at::NoGradGuard no_grad;
  const at::Tensor z = latents.to(to_torch(context.compute)).contiguous();
  if (vae_decodes) {
    std::vector<at::Tensor> pictures;  // one after the other: a clip is large
    for (int64_t i = 0; i < z.size(0); ++i) {
      VaeState state;
      const Tensor y =
          vae->decode(context.ops(), from_torch(z.narrow(0, i, 1).contiguous()), state);
      pictures.push_back((to_torch(y).to(at::kFloat) + 1.0) * 0.5);
    }
    return at::cat(pictures);
  }
  DecoderState state;
  const at::Tensor y = to_torch(decoder.run(context.ops(), from_torch(z), state)).to(at::kFloat);
  const int64_t trim = decoder.config().frames_to_trim();
  const auto low = static_cast<double>(decoder.config().output_low());
  const at::Tensor shown = y.narrow(1, trim, y.size(1) - trim);
  return low == 0.0 ? shown : (shown - low) / (1.0 - low);
}

at::Tensor FrozenAutoencoder::decode(const TrainContext& context, const at::Tensor& latents) const {
  std::vector<at::Tensor> pictures;
  for (int64_t i = 0; i < latents.size(0); ++i) {
    pictures.push_back((show(context, latents.narrow(0, i, 1)) * 255.0)
                           .clamp_(0.0, 255.0)
                           .to(at::kCPU, at::kByte));
  }
  return at::cat(pictures);
}

at::Tensor FrozenAutoencoder::round_trip(const TrainContext& context,
                                         const at::Tensor& latents) const {
  at::Tensor x = show(context, latents);
  if (!vae) {
    const int64_t missing = decoder.config().frames_to_trim();
    x = at::cat({x.narrow(1, 0, 1).expand({-1, missing, -1, -1, -1}), x}, 1);
  }
  return encode(context, x.clamp(0.0, 1.0) * 255.0);
}

namespace {

// Memory for clips as `clips` has them.
at::Tensor raw_clips(const TrainContext& context, const TrainingClips& clips, int64_t count,
                     int64_t scale) {
  const int64_t frames = context.config.bank.latent_frames;
  const GeneratorSpec& spec = context.recipe.generator;
  const auto pinned = [&](at::ScalarType type) {
    return at::TensorOptions(type).pinned_memory(context.device.is_cuda());
  };
  if (clips.encoded()) {
    return at::empty({count, frames, spec.latent_height, spec.latent_width, spec.network.out_dim},
                     pinned(at::kFloat));
  }
  return at::empty({count, pictures_of(context.recipe, frames), context.height() * scale,
                    context.width() * scale, 3},
                   pinned(at::kByte));
}

ClipWindow whole_window(const TrainContext& context, int64_t scale) {
  ClipWindow window;
  window.scale = scale;
  window.frames = pictures_of(context.recipe, context.config.bank.latent_frames);
  window.width = context.width() * scale;
  window.height = context.height() * scale;
  return window;
}

void read_clip(const TrainContext& context, const TrainingClips& clips, int64_t index,
               int64_t scale, const at::Tensor& out) {
  if (clips.encoded()) {
    clips.latents(index, out.size(0), out.mutable_data_ptr<float>());
    return;
  }
  const ClipWindow window = whole_window(context, scale);
  clips.render(index, window, out.mutable_data_ptr<uint8_t>());
}

at::Tensor encoded(const TrainContext& context, const FrozenAutoencoder& autoencoder,
                   const TrainingClips& clips, const at::Tensor& raw) {
  if (clips.encoded()) return raw.to(context.device, /*non_blocking=*/true);
  return autoencoder.encode(context, raw);
}

}  // namespace

at::Tensor latents_of(const TrainContext& context, const FrozenAutoencoder& autoencoder,
                      const TrainingClips& clips, int64_t count) {
  const at::Tensor raw = raw_clips(context, clips, count, /*scale=*/1);
  for (int64_t i = 0; i < count; ++i) read_clip(context, clips, i, /*scale=*/1, raw.select(0, i));
  return encoded(context, autoencoder, clips, raw);
}

LatentBank::LatentBank(const TrainContext& context, const FrozenAutoencoder& autoencoder,
                       const TrainingClips& clips, const CaptionTokenizer& tokenizer)
    : LatentBank(context, clips, tokenizer, /*scale=*/1,
                 [&](const at::Tensor& raw, int64_t /*group*/) {
                   return std::vector{encoded(context, autoencoder, clips, raw)};
                 }) {}

LatentBank::LatentBank(const TrainContext& context, const TrainingClips& clips,
                       const CaptionTokenizer& tokenizer, int64_t scale, Encode encode)
    : context_(context),
      clips_(clips),
      tokenizer_(tokenizer),
      scale_(scale),
      encode_(std::move(encode)) {
  const BankConfig& c = context.config.bank;
  group_clips_ = std::min(c.encode_batch, c.clips);
  groups_ = c.clips / group_clips_;
  drawn_ = draws_on_device(context, clips, whole_window(context, scale).frames);
  period_ = c.refresh > 0 ? std::max<int64_t>(1, group_clips_ / c.refresh) : 0;
}

LatentBank::Group LatentBank::render(int64_t group) const {
  const BankConfig& c = context_.config.bank;
  Group result;
  result.clips = drawn_ ? make_scene_rows(context_, group_clips_)
                        : raw_clips(context_, clips_, group_clips_, scale_);
  for (int64_t i = 0; i < group_clips_; ++i) {
    const int64_t index = (group * context_.ranks() + context_.rank()) * group_clips_ + i;
    if (drawn_) {
      prepare_scene_row(clips_, index, whole_window(context_, scale_), result.clips, i);
    } else {
      read_clip(context_, clips_, index, scale_, result.clips.select(0, i));
    }
    for (int64_t variant = 0; variant < c.captions; ++variant) {
      result.captions.push_back(
          tokenizer_.encode(clips_.caption(index, variant, /*full=*/variant < c.full_captions)));
    }
  }
  return result;
}

void LatentBank::take() {
  Group group = rendered_->next();
  const std::vector<at::Tensor> latents = encode_(
      drawn_ ? draw_scenes(context_, group.clips, {whole_window(context_, scale_)}) : group.clips,
      next_group_);
  if (latents_.empty()) {
    for (const at::Tensor& form : latents) {
      std::vector<int64_t> sizes = form.sizes().vec();
      sizes[0] = size();
      latents_.push_back(at::empty(sizes, form.options().dtype(at::kBFloat16)));
    }
    captions_.resize(static_cast<size_t>(size() * context_.config.bank.captions));
  }
  const int64_t place = next_group_ % groups_ * group_clips_;
  for (size_t i = 0; i < latents.size(); ++i) {
    latents_[i].narrow(0, place, group_clips_).copy_(latents[i]);
  }
  std::move(group.captions.begin(), group.captions.end(),
            captions_.begin() + place * context_.config.bank.captions);
  ++next_group_;
}

void LatentBank::fill(int64_t first_step) {
  first_step_ = first_step;
  next_group_ = period_ > 0 ? first_step / period_ : 0;
  rendered_ =
      std::make_unique<Prefetcher<Group>>([this](int64_t group) { return render(group); },
                                          next_group_, context_.workers(), context_.prefetch());
  for (int64_t i = 0; i < groups_; ++i) take();
  if (period_ == 0) rendered_.reset();
}

void LatentBank::advance(int64_t step) {
  if (period_ > 0 && step > first_step_ && step % period_ == 0) take();
}

LatentBatch LatentBank::sample(int64_t step, int64_t count, double dropout, int64_t purpose,
                               FrameRange frames) const {
  const int64_t captions = context_.config.bank.captions;
  const uint64_t key =
      (static_cast<uint64_t>(context_.config.seed) ^ kSampleSeed) + context_.rank_seed();
  at::Tensor places = at::empty({count}, at::kLong);
  std::vector<const TokenRow*> rows;
  for (int64_t i = 0; i < count; ++i) {
    const rng::Four r =
        rng::philox(static_cast<uint64_t>(i),
                    static_cast<uint64_t>(step) << 8 | static_cast<uint64_t>(purpose), key);
    const int64_t place = static_cast<int64_t>(r.x[0]) % size();
    places.mutable_data_ptr<int64_t>()[i] = place;
    const bool dropped = static_cast<double>(rng::uniform(r.x[2])) < dropout;
    const int64_t variant = static_cast<int64_t>(r.x[1]) % captions;
    rows.push_back(dropped ? &tokenizer_.empty()
                           : &captions_[static_cast<size_t>(place * captions + variant)]);
  }
  const at::Tensor chosen = places.to(context_.device);
  const auto rows_of = [&](const at::Tensor& form) {
    const int64_t length = frames.count > 0 ? frames.count : form.size(1) - frames.first;
    return form.narrow(1, frames.first, length).index_select(0, chosen).to(at::kFloat);
  };
  LatentBatch batch{rows_of(latents_[0]), CaptionTokenizer::batch(rows), {}};
  for (size_t i = 1; i < latents_.size(); ++i) batch.others.push_back(rows_of(latents_[i]));
  return batch;
}

}  // namespace ultraflash

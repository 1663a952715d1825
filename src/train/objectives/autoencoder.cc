// Stage 1: the tiny encoder and decoder together, the decoder alone once other networks have learnt
// the latents, or the ultra decoder on the latents of a frozen encoder.
//
// Raw output frame r of the decoder reconstructs input frame r, so a latent frame shows the four
// frames it was made of; the decoder's first frames_to_trim() frames are dropped at inference and
// count for nothing here. Latents are pulled to zero mean and unit variance per channel (the
// decoder clamps them softly at 3, and the transformers expect that scale) and decoded with a
// little noise, as generated latents are never exact.
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/rng.h"
#include "models/tiny_decoder.h"
#include "ops/autograd/torch_tensor.h"
#include "train/cascade.h"
#include "train/device_clips.h"
#include "train/encoder_check.h"
#include "train/generator.h"
#include "train/objective.h"
#include "train/patch_discriminator.h"
#include "train/pictures.h"
#include "train/prefetcher.h"
#include "train/step_graph.h"
#include "train/world/render.h"

namespace ultraflash {
namespace {

constexpr uint32_t kFrameSpan = 512;  // clips begin anywhere in so many frames
constexpr uint64_t kCropSeed = 0x63726f70;
constexpr double kAside = 0.5;  // of a crop's size, how far an object may be from its middle
constexpr int64_t kSmallDraw = 1;
constexpr int64_t kPixelsPerLatent = 8;
constexpr int64_t kEnds = 5;  // the first and last frames of a clip are a fifth of it

struct PictureBatch {
  at::Tensor clips;  // u8 [batch, frames, height, width, 3], pinned when the device is a GPU
  std::vector<ClipWindow> windows;  // where `clips` are scenes for the device to draw
};

class AutoencoderObjective final : public Objective {
 public:
  explicit AutoencoderObjective(TrainContext& context) : context_(context) {}

  Status bind() {
    const TrainConfig& config = context_.config;
    const AutoencoderConfig& c = config.autoencoder;
    const CascadeSpec* cascade = context_.recipe.cascade(c.scale);
    const CascadeSpec* base = context_.recipe.cascade(1);
    const bool small_vae = base != nullptr && base->decoder.kind == DecoderKind::kWanVae;
    if (cascade == nullptr || base == nullptr || cascade->decoder.kind != DecoderKind::kTiny ||
        (!base->decoder.tiny_encoder && (!small_vae || cascade->decoder.tiny_encoder))) {
      return make_status(StatusCode::kInvalidArgument,
                         "recipe '{}' has no tiny decoder at scale {}, or no encoder for it at "
                         "scale 1",
                         context_.recipe.name, c.scale);
    }
    spec_ = &cascade->decoder;
    joint_ = spec_->tiny_encoder.has_value();
    trained_.name = "autoencoder";
    trained_.parameters = std::make_shared<ParameterSet>(context_.device, /*trainable=*/true);
    averaged_ = std::make_shared<ParameterSet>(context_.device, /*trainable=*/false);
    UF_TRY(bind_pair(*trained_.parameters, *base, encoder_, decoder_));
    UF_TRY(bind_pair(*averaged_, *base, averaged_encoder_, averaged_decoder_));
    if (c.scale > 1 && (!joint_ || c.teacher > 0.0 || c.upsampled_share > 0.0)) {
      UF_ASSIGN(base_, FrozenAutoencoder::open(context_));
    }
    if (c.upsampled_share > 0.0) {
      if (trains_encoder()) {
        return make_status(StatusCode::kInvalidArgument,
                           "autoencoder.upsampled_share: an upsampler knows the latents of an "
                           "encoder that stays; set freeze_encoder");
      }
      for (const int64_t scale : c.data_scales) {
        if (scale == 1 || upsamplers_.contains(scale)) continue;
        UF_ASSIGN(upsamplers_[scale], UpsamplerNetwork::open(context_, config.init.upsampler, scale,
                                                             /*trainable=*/false));
      }
    }
    trained_.begin(config.optimizer, &config.ema);
    if (c.gan > 0.0 || c.gan_features > 0.0) {
      UF_ASSIGN(discriminator_, PatchDiscriminator::make(context_, c.gan_width));
      trained_discriminator_.name = "discriminator";
      trained_discriminator_.parameters = discriminator_->parameters();
      trained_discriminator_.begin(config.critic_optimizer, nullptr);
    }
    UF_ASSIGN(clips_, TrainingClips::open(context_, /*unseen=*/false));
    UF_ASSIGN(unseen_, TrainingClips::open(context_, /*unseen=*/true));
    return {};
  }

  std::vector<TrainedSet*> sets() override {
    if (discriminator_) return {&trained_, &trained_discriminator_};
    return {&trained_};
  }

  Status start(int64_t first_step) override {
    graphs_ = StepGraphs::open(context_);
    batches_ = std::make_unique<Prefetcher<PictureBatch>>(
        [this](int64_t step) { return make_batch(step); }, first_step, context_.workers(),
        context_.prefetch());
    return {};
  }

  void step(int64_t step, double lr_factor, Meter& meter) override {
    const AutoencoderConfig& c = context_.config.autoencoder;
    const PictureBatch batch = batches_->next();
    const at::Tensor clips =
        batch.windows.empty() ? batch.clips : draw_scenes(context_, batch.clips, batch.windows);
    context_.seed_step(step);
    const Pass pass{scale_of(step), from_small(step),
                    discriminator_ && context_.progress >= c.gan_after};
    const StepResult result =
        graphs_->run(pass.name(), *trained_.parameters, {clips},
                     [&](const std::vector<at::Tensor>& inputs) { return learn(pass, inputs[0]); });
    result.report(meter);
    const at::Tensor norm = trained_.update(lr_factor);
    if (discriminator_ && context_.progress >= c.gan_critic_after) {
      const StepResult taught_result =
          graphs_->run("discriminator", *trained_discriminator_.parameters, result.tensors,
                       [&](const std::vector<at::Tensor>& inputs) {
                         return teach_discriminator(inputs[0], inputs[1]);
                       });
      taught_result.report(meter);
      const OptimizerConfig& critic = context_.config.critic_optimizer;
      (void)trained_discriminator_.update(
          learning_rate_factor(critic, trained_discriminator_.updates, context_.progress));
    }
    meter.add("gradient_norm", norm);
  }

  // What one forward and backward pass does, beside its clips.
  struct Pass {
    int64_t scale = 1;
    bool upsampled = false;  // decodes what an upsampler makes of the small clips
    bool judged = false;     // the discriminator has a part in the loss
    [[nodiscard]] std::string name() const {
      return fmt::format("{}x{}{}", scale, upsampled ? " upsampled" : "", judged ? " judged" : "");
    }
  };

  // `clips`: u8 [b, t, h, w, 3]. Leaves the pictures and the true ones where the discriminator
  // learns from them.
  StepResult learn(const Pass& pass, const at::Tensor& clips) const {
    const AutoencoderConfig& c = context_.config.autoencoder;
    StepResult result;
    const at::Tensor target = clips.to(at::kFloat).div_(255.0);  // [b, t, h, w, 3]
    at::Tensor latent = pass.upsampled ? enlarged(pass.scale, target) : encoded(encoder_, target);
    at::Tensor loss = at::zeros({}, context_.f32());
    if (trains_encoder()) {
      const at::Tensor mean = latent.mean({0, 1, 2, 3});
      const at::Tensor variance = latent.var({0, 1, 2, 3}, /*correction=*/0) + 1e-6;
      const at::Tensor kl = 0.5 * (mean.square() + variance - variance.log() - 1.0).mean();
      loss = loss + c.latent_kl * kl;
      result.add("latent_kl", kl);
      result.add("latent_std", variance.detach().mean().sqrt());
    }
    if (c.latent_noise > 0.0) latent = latent + c.latent_noise * at::randn_like(latent);
    const int64_t trim = spec_->tiny.frames_to_trim();
    const at::Tensor decoded = decode(decoder_, latent);
    const at::Tensor y = decoded.narrow(1, trim, decoded.size(1) - trim);
    // The last pictures of the clip, and with a tiny encoder all but as many.
    const at::Tensor x = target.narrow(1, target.size(1) - y.size(1), y.size(1));
    const at::Tensor error = y - x;
    at::Tensor weight = at::ones({}, context_.f32());
    if (c.detail > 0.0) weight = detail_weight(x);
    const at::Tensor mse = (weight * error.square()).mean();
    const at::Tensor l1 = (weight * error.abs()).mean();
    loss = loss + c.l1 * l1 + c.mse * mse;
    if (c.gradient > 0.0) {
      // Differences of the error are errors of the differences.
      loss = loss +
             c.gradient * (difference(error, 2).abs().mean() + difference(error, 3).abs().mean());
    }
    if (c.temporal > 0.0 && error.size(1) > 1) {
      loss = loss + c.temporal * difference(error, 1).abs().mean();
    }
    if (c.spectrum > 0.0) {
      const at::Tensor spectrum = spectrum_distance(y.flatten(0, 1), x.flatten(0, 1));
      loss = loss + c.spectrum * spectrum;
      result.add("spectrum", spectrum);
    }
    if (c.teacher > 0.0) loss = loss + c.teacher * (y - taught(target)).abs().mean();
    if (pass.judged) loss = loss + adversarial(y, x, result);
    loss.backward();
    result.add("loss", loss);
    result.add("l1", l1);
    result.add(fmt::format("mse_{}x", pass.scale), mse);
    if (discriminator_) result.tensors = {y.detach(), x};
    return result;
  }

  Measures evaluate() override {
    const at::NoGradGuard no_grad;
    const AutoencoderConfig& c = context_.config.autoencoder;
    if (c.eval_clips == 0) return {};
    averaged_->assign(trained_.average->values());
    Measures measures;
    std::vector<int64_t> scales = c.data_scales;
    std::sort(scales.begin(), scales.end());
    scales.erase(std::unique(scales.begin(), scales.end()), scales.end());
    for (const int64_t scale : scales) {
      const at::Tensor& clips = eval_clips(scale);
      const auto count = static_cast<double>(clips.size(0));
      double sum = 0.0;
      double worst = 1e9;
      double first = 0.0;
      double last = 0.0;
      for (int64_t i = 0; i < clips.size(0); ++i) {
        const at::Tensor x = clips.narrow(0, i, 1).to(context_.device).to(at::kFloat).div_(255.0);
        const at::Tensor y = reconstruct(x);
        const at::Tensor error = (y - x.narrow(1, x.size(1) - y.size(1), y.size(1))).square();
        const double value = psnr(error.mean().item<double>());
        sum += value / count;
        worst = std::min(worst, value);
        const int64_t part = (error.size(1) + kEnds - 1) / kEnds;
        first += psnr(error.narrow(1, 0, part).mean().item<double>()) / count;
        last += psnr(error.narrow(1, error.size(1) - part, part).mean().item<double>()) / count;
      }
      measures.emplace_back(fmt::format("psnr_{}x", scale), sum);
      measures.emplace_back(fmt::format("psnr_worst_{}x", scale), worst);
      // Of the first and the last fifth: equal where nothing drifts.
      measures.emplace_back(fmt::format("psnr_first_{}x", scale), first);
      measures.emplace_back(fmt::format("psnr_last_{}x", scale), last);
    }
    // Statistics of the latents at the base size.
    const at::Tensor x = eval_clips(scales[0]).to(context_.device).to(at::kFloat).div_(255.0);
    const at::Tensor latent = encoded(averaged_encoder_, x);
    const at::Tensor mean = latent.mean({0, 1, 2, 3});
    const at::Tensor deviation = latent.std({0, 1, 2, 3}, /*correction=*/0);
    measures.emplace_back("latent_mean_largest", mean.abs().max().item<double>());
    measures.emplace_back("latent_std_least", deviation.min().item<double>());
    measures.emplace_back("latent_std_largest", deviation.max().item<double>());
    return measures;
  }

  std::optional<RgbImage> sheet() override {
    const at::NoGradGuard no_grad;
    if (context_.config.autoencoder.eval_clips == 0) return std::nullopt;
    averaged_->assign(trained_.average->values());
    std::vector<at::Tensor> rows;
    const at::Tensor& clips = eval_clips(context_.config.autoencoder.data_scales[0]);
    for (int64_t i = 0; i < std::min<int64_t>(clips.size(0), 6); ++i) {
      const at::Tensor x = clips.narrow(0, i, 1);
      const at::Tensor y = reconstruct(x.to(context_.device).to(at::kFloat).div_(255.0));
      rows.push_back(x.narrow(1, x.size(1) - y.size(1), y.size(1)));
      rows.push_back(to_bytes(y));
    }
    return clip_sheet(at::cat(rows), 6);
  }

  Result<std::vector<std::filesystem::path>> publish(const std::filesystem::path& out) override {
    return publish_sets(context_, out, {{trained_, spec_->checkpoint, DType::kF16}});
  }

 private:
  // At scale 1 both come from init.autoencoder. Above it both come from init.decoder, and without
  // that the decoder starts anew and its encoder, if it has one, as that of scale 1.
  Status bind_pair(ParameterSet& set, const CascadeSpec& base, TinyEncoder& encoder,
                   TinyDecoder& decoder) {
    const InitConfig& init = context_.config.init;
    const bool small = context_.config.autoencoder.scale == 1;
    const auto bind_encoder = [&](Loader loader) {
      encoder = TinyEncoder::bind(std::move(loader), *spec_->tiny_encoder, spec_->tiny.memory_init);
    };
    const bool anew = !small && init.decoder.empty();
    if (joint_ && !anew) {
      UF_TRY(require_encoder(context_, small ? init.autoencoder : init.decoder, *spec_));
    }
    if (joint_ && anew) {
      UF_TRY(bind_network(context_, set, init.autoencoder, base.decoder.checkpoint, {"decoder."},
                          bind_encoder));
    }
    return bind_network(context_, set, small ? init.autoencoder : init.decoder, spec_->checkpoint,
                        {"encoder."}, [&](Loader loader) {
                          if (joint_ && !anew) bind_encoder(loader);
                          decoder = TinyDecoder::bind(loader, spec_->tiny);
                        });
  }

  [[nodiscard]] bool trains_encoder() const {
    return joint_ && !context_.config.autoencoder.freeze_encoder;
  }

  // By the encoder that is trained here, or the frozen one of scale 1.
  at::Tensor encoded(const TinyEncoder& encoder, const at::Tensor& pictures) const {
    if (!joint_) return base_.encode(context_, pictures * 255.0);
    MemoryState state;
    const at::Tensor x = pictures.to(to_torch(context_.compute));
    const at::AutoGradMode gradients(at::GradMode::is_enabled() && trains_encoder());
    return to_torch(encoder.run(context_.ops(), from_torch(x), state)).to(at::kFloat);
  }

  at::Tensor decode(const TinyDecoder& decoder, const at::Tensor& latent) const {
    DecoderState state;
    const at::Tensor z = latent.to(to_torch(context_.compute));
    const at::Tensor y = to_torch(decoder.run(context_.ops(), from_torch(z), state)).to(at::kFloat);
    const auto low = static_cast<double>(decoder.config().output_low());
    return low == 0.0 ? y : (y - low) / (1.0 - low);
  }

  // With the averaged weights, clamped and trimmed as a stream would show it.
  [[nodiscard]] at::Tensor reconstruct(const at::Tensor& x) const {
    const int64_t trim = spec_->tiny.frames_to_trim();
    const at::Tensor y = decode(averaged_decoder_, encoded(averaged_encoder_, x)).clamp_(0.0, 1.0);
    return y.narrow(1, trim, y.size(1) - trim);
  }

  // Mean 1; more where neighbours differ, in a window as wide as a period of a fine texture.
  [[nodiscard]] at::Tensor detail_weight(const at::Tensor& x) const {
    constexpr int64_t kReach = 4;
    const at::NoGradGuard no_grad;
    const auto slope = [&](int64_t axis) {
      const at::Tensor d = difference(x, axis).abs().mean(4);
      return at::cat({d, d.narrow(axis, d.size(axis) - 1, 1)}, axis);  // [b, t, h, w]
    };
    const at::Tensor steep = slope(2) + slope(3);
    const at::Tensor local =
        at::avg_pool2d(at::replication_pad2d(steep, {kReach, kReach, kReach, kReach}),
                       {2 * kReach + 1, 2 * kReach + 1}, {1, 1});
    const double k = context_.config.autoencoder.detail;
    return ((1.0 + k * local / (local.mean() + 1e-6)) / (1.0 + k)).unsqueeze(4);
  }
  // The discriminator's part of the loss. Its gradient is taken here, at the pictures alone:
  // nothing of it reaches the discriminator's weights.
  at::Tensor adversarial(const at::Tensor& y, const at::Tensor& x, StepResult& result) const {
    const AutoencoderConfig& c = context_.config.autoencoder;
    const at::Tensor pictures = y.detach().requires_grad_(true);
    const PatchDiscriminator::Output fake = discriminator_->run(pictures);
    const at::Tensor passing = passing_loss(fake);
    result.add("gan", passing);
    at::Tensor loss = c.gan * passing;
    if (c.gan_features > 0.0) {
      PatchDiscriminator::Output real;
      {
        const at::NoGradGuard no_grad;
        real = discriminator_->run(x);
      }
      const at::Tensor features = feature_distance(real, fake);
      result.add("gan_features", features);
      loss = loss + c.gan_features * features;
    }
    const at::Tensor slope = torch::autograd::grad({loss}, {pictures})[0];
    return loss.detach() + (slope * (y - y.detach())).sum();
  }
  StepResult teach_discriminator(const at::Tensor& y, const at::Tensor& x) const {
    StepResult result;
    const at::Tensor loss = hinge_loss(discriminator_->run(x), discriminator_->run(y));
    loss.backward();
    result.add("discriminator", loss);
    return result;
  }
  // What the autoencoder of scale 1 shows.
  [[nodiscard]] at::Tensor taught(const at::Tensor& pictures) const {
    return base_.show(context_, base_.encode(context_, pictures * 255.0));
  }
  // Whether this step decodes what an upsampler makes of the small clips.
  [[nodiscard]] bool from_small(int64_t step) const {
    return upsamplers_.contains(scale_of(step)) &&
           StepRandom::shared(context_, step, kSmallDraw).uniform() <
               context_.config.autoencoder.upsampled_share;
  }
  at::Tensor enlarged(int64_t scale, const at::Tensor& pictures) const {
    const at::NoGradGuard no_grad;
    const at::Tensor small =
        resized(pictures, pictures.size(2) / scale, pictures.size(3) / scale, ResizeFilter::kArea);
    return upsamplers_.at(scale).run_window(context_, base_.encode(context_, small * 255.0), 0);
  }

  [[nodiscard]] int64_t scale_of(int64_t step) const {
    const std::vector<int64_t>& scales = context_.config.autoencoder.data_scales;
    return scales[static_cast<size_t>(step) % scales.size()];
  }

  PictureBatch make_batch(int64_t step) const {
    const TrainConfig& config = context_.config;
    const int64_t scale = scale_of(step);
    const int64_t frames = pictures(config.autoencoder.frames);
    // Crops that can be made small whole.
    const int64_t unit = upsamplers_.contains(scale) ? kPixelsPerLatent * scale : 1;
    const int64_t width = context_.width() / unit * unit;
    const int64_t height = context_.height() / unit * unit;
    const bool drawn = draws_on_device(context_, *clips_, frames);
    PictureBatch batch;
    batch.clips =
        drawn ? make_scene_rows(context_, config.batch)
              : at::empty({config.batch, frames, height, width, 3},
                          at::TensorOptions(at::kByte).pinned_memory(context_.device.is_cuda()));
    const int64_t crops = scale == 1 ? 1 : config.autoencoder.crops_per_clip;
    for (int64_t i = 0; i < config.batch; ++i) {
      const int64_t index = (step * context_.ranks() + context_.rank()) * config.batch + i / crops;
      const auto random = [&](int64_t k) {
        return rng::philox(static_cast<uint64_t>(k), static_cast<uint64_t>(index),
                           static_cast<uint64_t>(config.seed) ^ kCropSeed);
      };
      const rng::Four place = random(1 + i % crops);
      ClipWindow window;
      window.scale = scale;
      window.first_frame = static_cast<int64_t>(random(0).x[0] % kFrameSpan);
      window.frames = frames;
      // Where on this axis a crop of `part` of the picture's `whole` pixels begins.
      const auto begin = [&](uint32_t bits, int64_t whole, int64_t part,
                             const std::optional<double>& middle) {
        const int64_t last = (whole * scale - part) / unit;  // in units
        if (!middle) return static_cast<int64_t>(bits) % (last + 1) * unit;
        const double aside = (static_cast<double>(rng::uniform(bits)) - 0.5) * kAside;
        const double first = *middle + (aside - 0.5) * static_cast<double>(part);
        return std::clamp<int64_t>(std::llround(first / static_cast<double>(unit)), 0, last) * unit;
      };
      std::optional<double> x, y;
      const std::optional<world::Scene> scene = clips_->scene(index);
      if (scale > 1 && scene &&
          static_cast<double>(rng::uniform(place.x[2])) < config.autoencoder.object_crops) {
        const uint32_t object = place.x[3] % static_cast<uint32_t>(scene->object_count);
        const world::Pose pose =
            world::pose_at(scene->objects[object], window.first_frame + frames / 2);
        const double pixels = static_cast<double>(scale * world::kBaseWidth) /
                              static_cast<double>(world::kCanvasWidth);
        x = pose.x * pixels;
        y = pose.y * pixels;
      }
      window.x = begin(place.x[0], context_.width(), width, x);
      window.y = begin(place.x[1], context_.height(), height, y);
      window.width = width;
      window.height = height;
      if (drawn) {
        prepare_scene_row(*clips_, index, window, batch.clips, i);
        batch.windows.push_back(window);
      } else {
        clips_->render(index, window, batch.clips.mutable_data_ptr<uint8_t>() + i * window.bytes());
      }
    }
    return batch;
  }

  // Pictures of a clip that gives `count` / 4 latent frames.
  [[nodiscard]] int64_t pictures(int64_t count) const {
    return joint_ ? count : base_.pictures_for(count);
  }

  // Whole frames of unseen clips, rendered once.
  const at::Tensor& eval_clips(int64_t scale) {
    at::Tensor& clips = eval_[scale];
    if (clips.defined()) return clips;
    const AutoencoderConfig& c = context_.config.autoencoder;
    clips = first_clips(context_, *unseen_, scale, pictures(c.eval_frames), c.eval_clips);
    return clips;
  }

  TrainContext& context_;
  const DecoderSpec* spec_ = nullptr;
  bool joint_ = true;
  TrainedSet trained_, trained_discriminator_;
  std::optional<PatchDiscriminator> discriminator_;
  std::shared_ptr<ParameterSet> averaged_;
  FrozenAutoencoder base_;  // of scale 1, above it
  std::map<int64_t, UpsamplerNetwork> upsamplers_;
  TinyEncoder encoder_, averaged_encoder_;
  TinyDecoder decoder_, averaged_decoder_;
  std::unique_ptr<TrainingClips> clips_, unseen_;
  std::map<int64_t, at::Tensor> eval_;
  std::unique_ptr<StepGraphs> graphs_;
  std::unique_ptr<Prefetcher<PictureBatch>> batches_;  // last: its threads use all of the above
};

}  // namespace

Result<std::unique_ptr<Objective>> make_autoencoder_objective(TrainContext& context) {
  return open_objective<AutoencoderObjective>(context);
}

}  // namespace ultraflash

// Stage 1: the tiny encoder and decoder together, the decoder alone once other networks have learnt
// the latents, or the ultra decoder on the latents of a frozen encoder.
//
// Raw output frame r of the decoder reconstructs input frame r, so a latent frame shows the four
// frames it was made of; the decoder's first frames_to_trim() frames are dropped at inference and
// count for nothing here. Latents are pulled to zero mean and unit variance per channel (the
// decoder clamps them softly at 3, and the transformers expect that scale) and decoded with a
// little noise, as generated latents are never exact.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>

#include "core/rng.h"
#include "models/tiny_decoder.h"
#include "ops/autograd/torch_tensor.h"
#include "train/device_clips.h"
#include "train/objective.h"
#include "train/prefetcher.h"

namespace ultraflash {
namespace {

constexpr uint32_t kFrameSpan = 512;  // clips begin anywhere in so many frames
constexpr uint64_t kCropSeed = 0x63726f70;

struct PictureBatch {
  at::Tensor clips;  // u8 [batch, frames, height, width, 3], pinned when the device is a GPU
  std::vector<ClipWindow> windows;  // where `clips` are scenes for the device to draw
};

at::Tensor difference(const at::Tensor& x, int64_t axis) {
  const int64_t size = x.size(axis);
  return x.narrow(axis, 1, size - 1) - x.narrow(axis, 0, size - 1);
}

class AutoencoderObjective final : public Objective {
 public:
  explicit AutoencoderObjective(TrainContext& context) : context_(context) {}

  Status bind() {
    const TrainConfig& config = context_.config;
    const AutoencoderConfig& c = config.autoencoder;
    const CascadeSpec* cascade = context_.recipe.cascade(c.scale);
    const CascadeSpec* base = context_.recipe.cascade(1);
    if (cascade == nullptr || base == nullptr || cascade->decoder.kind != DecoderKind::kTiny ||
        !base->decoder.tiny_encoder) {
      return make_status(StatusCode::kInvalidArgument,
                         "recipe '{}' has no tiny decoder at scale {}, or no tiny encoder at scale "
                         "1",
                         context_.recipe.name, c.scale);
    }
    spec_ = &cascade->decoder;
    joint_ = spec_->tiny_encoder.has_value();
    trained_.name = "autoencoder";
    trained_.parameters = std::make_shared<ParameterSet>(context_.device, /*trainable=*/true);
    averaged_ = std::make_shared<ParameterSet>(context_.device, /*trainable=*/false);
    // A decoder that is trained alone starts anew unless it is in the folder too.
    const std::string decoder_init = joint_ ? config.init.autoencoder : std::string();
    UF_TRY(bind_pair(*trained_.parameters, decoder_init, encoder_, decoder_));
    UF_TRY(bind_pair(*averaged_, decoder_init, averaged_encoder_, averaged_decoder_));
    if (!joint_) {
      frozen_ = std::make_shared<ParameterSet>(context_.device, /*trainable=*/false);
      UF_TRY(bind_network(context_, *frozen_, config.init.autoencoder, base->decoder.checkpoint,
                          {"decoder."}, [&](Loader loader) {
                            encoder_ =
                                TinyEncoder::bind(std::move(loader), *base->decoder.tiny_encoder,
                                                  base->decoder.tiny.memory_init);
                          }));
      averaged_encoder_ = encoder_;
    }
    trained_.begin(config.optimizer, &config.ema);
    UF_ASSIGN(clips_, TrainingClips::open(context_, /*unseen=*/false));
    UF_ASSIGN(unseen_, TrainingClips::open(context_, /*unseen=*/true));
    return {};
  }

  std::vector<TrainedSet*> sets() override { return {&trained_}; }

  Status start(int64_t first_step) override {
    batches_ = std::make_unique<Prefetcher<PictureBatch>>(
        [this](int64_t step) { return make_batch(step); }, first_step, context_.workers(),
        context_.prefetch());
    return {};
  }

  void step(int64_t step, double lr_factor, Meter& meter) override {
    const AutoencoderConfig& c = context_.config.autoencoder;
    const PictureBatch batch = batches_->next();
    const at::Tensor clips = batch.windows.empty()
                                 ? batch.clips.to(context_.device, /*non_blocking=*/true)
                                 : draw_scenes(context_, batch.clips, batch.windows);
    context_.seed_step(step);
    const at::Tensor target = clips.to(at::kFloat).div_(255.0);  // [b, t, h, w, 3]
    at::Tensor latent = encode(encoder_, target);
    at::Tensor loss = at::zeros({}, context_.f32());
    if (trains_encoder()) {
      const at::Tensor mean = latent.mean({0, 1, 2, 3});
      const at::Tensor variance = latent.var({0, 1, 2, 3}, /*correction=*/0) + 1e-6;
      const at::Tensor kl = 0.5 * (mean.square() + variance - variance.log() - 1.0).mean();
      loss = loss + c.latent_kl * kl;
      meter.add("latent_kl", kl);
      meter.add("latent_std", variance.detach().mean().sqrt());
    }
    if (c.latent_noise > 0.0) latent = latent + c.latent_noise * at::randn_like(latent);
    const int64_t trim = spec_->tiny.frames_to_trim();
    const auto shown = [&](const at::Tensor& x) { return x.narrow(1, trim, x.size(1) - trim); };
    const at::Tensor y = shown(decode(decoder_, latent));
    const at::Tensor x = shown(target);
    const at::Tensor error = y - x;
    const at::Tensor mse = error.square().mean();
    const at::Tensor l1 = error.abs().mean();
    loss = loss + c.l1 * l1 + c.mse * mse;
    if (c.gradient > 0.0) {
      // Differences of the error are errors of the differences.
      loss = loss +
             c.gradient * (difference(error, 2).abs().mean() + difference(error, 3).abs().mean());
    }
    if (c.temporal > 0.0 && error.size(1) > 1) {
      loss = loss + c.temporal * difference(error, 1).abs().mean();
    }
    loss.backward();
    const at::Tensor norm = trained_.update(lr_factor);
    meter.add("loss", loss);
    meter.add("l1", l1);
    meter.add(fmt::format("mse_{}x", scale_of(step)), mse);
    meter.add("gradient_norm", norm);
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
      double psnr = 0.0;
      double worst = 1e9;
      for (int64_t i = 0; i < clips.size(0); ++i) {
        const at::Tensor x = clips.narrow(0, i, 1).to(context_.device).to(at::kFloat).div_(255.0);
        const auto [y, latent] = reconstruct(x);
        const int64_t trim = spec_->tiny.frames_to_trim();
        const at::Tensor error = (y - x.narrow(1, trim, x.size(1) - trim));
        const double mse = std::max(error.square().mean().item<double>(), 1e-10);
        const double value = -10.0 * std::log10(mse);
        psnr += value / static_cast<double>(clips.size(0));
        worst = std::min(worst, value);
      }
      measures.emplace_back(fmt::format("psnr_{}x", scale), psnr);
      measures.emplace_back(fmt::format("psnr_worst_{}x", scale), worst);
    }
    // Statistics of the latents at the base size.
    const at::Tensor x = eval_clips(scales[0]).to(context_.device).to(at::kFloat).div_(255.0);
    const at::Tensor latent = encode(averaged_encoder_, x);
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
    const int64_t trim = spec_->tiny.frames_to_trim();
    const at::Tensor& clips = eval_clips(context_.config.autoencoder.data_scales[0]);
    for (int64_t i = 0; i < std::min<int64_t>(clips.size(0), 6); ++i) {
      const at::Tensor x = clips.narrow(0, i, 1);
      const at::Tensor y = reconstruct(x.to(context_.device).to(at::kFloat).div_(255.0)).first;
      rows.push_back(x.narrow(1, trim, x.size(1) - trim));
      rows.push_back((y * 255.0).add_(0.5).clamp_(0.0, 255.0).to(at::kCPU, at::kByte));
    }
    return clip_sheet(at::cat(rows), 6);
  }

  Result<std::vector<std::filesystem::path>> publish(const std::filesystem::path& out) override {
    UF_ASSIGN(const std::filesystem::path path,
              publish_set(context_, trained_, spec_->checkpoint, DType::kF16, out));
    return std::vector{path};
  }

 private:
  Status bind_pair(ParameterSet& set, const std::string& init, TinyEncoder& encoder,
                   TinyDecoder& decoder) {
    return bind_network(context_, set, init, spec_->checkpoint, {"encoder."}, [&](Loader loader) {
      if (joint_)
        encoder = TinyEncoder::bind(loader, *spec_->tiny_encoder, spec_->tiny.memory_init);
      decoder = TinyDecoder::bind(loader, spec_->tiny);
    });
  }

  [[nodiscard]] bool trains_encoder() const {
    return joint_ && !context_.config.autoencoder.freeze_encoder;
  }

  at::Tensor encode(const TinyEncoder& encoder, const at::Tensor& pictures) const {
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
  std::pair<at::Tensor, at::Tensor> reconstruct(const at::Tensor& x) const {
    const at::Tensor latent = encode(averaged_encoder_, x);
    const int64_t trim = spec_->tiny.frames_to_trim();
    const at::Tensor y = decode(averaged_decoder_, latent).clamp_(0.0, 1.0);
    return {y.narrow(1, trim, y.size(1) - trim), latent};
  }

  [[nodiscard]] int64_t scale_of(int64_t step) const {
    const std::vector<int64_t>& scales = context_.config.autoencoder.data_scales;
    return scales[static_cast<size_t>(step) % scales.size()];
  }

  PictureBatch make_batch(int64_t step) const {
    const TrainConfig& config = context_.config;
    const int64_t scale = scale_of(step);
    const int64_t frames = config.autoencoder.frames;
    const int64_t width = context_.width();
    const int64_t height = context_.height();
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
      window.x = static_cast<int64_t>(place.x[0]) % (width * (scale - 1) + 1);
      window.y = static_cast<int64_t>(place.x[1]) % (height * (scale - 1) + 1);
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

  // Whole frames of unseen clips, rendered once.
  const at::Tensor& eval_clips(int64_t scale) {
    at::Tensor& clips = eval_[scale];
    if (clips.defined()) return clips;
    const AutoencoderConfig& c = context_.config.autoencoder;
    const int64_t width = context_.width() * scale;
    const int64_t height = context_.height() * scale;
    clips = at::empty({c.eval_clips, c.eval_frames, height, width, 3}, at::kByte);
    std::vector<std::thread> threads;
    std::atomic<int64_t> next{0};
    for (int64_t t = 0; t < std::min(context_.workers(), c.eval_clips); ++t) {
      threads.emplace_back([&] {
        for (int64_t i = next++; i < c.eval_clips; i = next++) {
          const ClipWindow window{scale, 0, c.eval_frames, 0, 0, width, height};
          unseen_->render(i, window, clips.mutable_data_ptr<uint8_t>() + i * window.bytes());
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return clips;
  }

  TrainContext& context_;
  const DecoderSpec* spec_ = nullptr;
  bool joint_ = true;
  TrainedSet trained_;
  std::shared_ptr<ParameterSet> averaged_, frozen_;
  TinyEncoder encoder_, averaged_encoder_;
  TinyDecoder decoder_, averaged_decoder_;
  std::unique_ptr<TrainingClips> clips_, unseen_;
  std::map<int64_t, at::Tensor> eval_;
  std::unique_ptr<Prefetcher<PictureBatch>> batches_;  // last: its threads use all of the above
};

}  // namespace

Result<std::unique_ptr<Objective>> make_autoencoder_objective(TrainContext& context) {
  auto objective = std::make_unique<AutoencoderObjective>(context);
  UF_TRY(objective->bind());
  return std::unique_ptr<Objective>(std::move(objective));
}

}  // namespace ultraflash

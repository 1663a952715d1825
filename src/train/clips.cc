#include "train/clips.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

#include "core/check.h"
#include "train/data/clip_source.h"
#include "train/objective.h"
#include "train/world/caption.h"
#include "train/world/render.h"
#include "train/world/scene.h"

namespace ultraflash {
namespace {

class WorldClips final : public TrainingClips {
 public:
  WorldClips(int64_t seed, bool unseen)
      : seed_(static_cast<uint64_t>(seed)),
        split_(unseen ? world::Split::kHeldOut : world::Split::kTraining) {}

  void render(int64_t index, const ClipWindow& w, uint8_t* out) const override {
    world::render(*scene(index), {w.scale, w.first_frame, w.frames, w.x, w.y, w.width, w.height},
                  std::span(out, static_cast<size_t>(w.bytes())));
  }
  [[nodiscard]] std::optional<world::Scene> scene(int64_t index) const override {
    return world::sample_scene(seed_, static_cast<uint64_t>(index), split_);
  }
  [[nodiscard]] std::string caption(int64_t index, int64_t variant, bool full) const override {
    const auto number = static_cast<uint64_t>(index);
    return world::caption(world::sample_scene(seed_, number, split_), seed_, number,
                          static_cast<uint32_t>(variant),
                          full ? world::CaptionDetail::kFull : world::CaptionDetail::kAny);
  }

 private:
  uint64_t seed_;
  world::Split split_;
};

// Noise, with captions of the pocket world.
class RandomLatents final : public TrainingClips {
 public:
  RandomLatents(const TrainContext& context, bool unseen)
      : context_(context), captions_(context.config.data.seed, unseen) {}

  void render(int64_t /*index*/, const ClipWindow& /*window*/, uint8_t* /*out*/) const override {
    throw_error(StatusCode::kInvalidArgument, "data.source random has latents and no pictures");
  }
  [[nodiscard]] bool encoded() const override { return true; }
  void latents(int64_t index, int64_t frames, float* out) const override {
    const GeneratorSpec& spec = context_.recipe.generator;
    const int64_t count = frames * spec.latent_height * spec.latent_width * spec.network.out_dim;
    fill_normal({static_cast<uint64_t>(context_.config.data.seed), static_cast<uint64_t>(index)}, 0,
                std::span(out, static_cast<size_t>(count)));
  }
  [[nodiscard]] std::string caption(int64_t index, int64_t variant, bool full) const override {
    return captions_.caption(index, variant, full);
  }

 private:
  const TrainContext& context_;
  WorldClips captions_;
};

class FileClips final : public TrainingClips {
 public:
  FileClips(const TrainContext& context, std::unique_ptr<ClipSource> source)
      : context_(context), source_(std::move(source)) {}

  void render(int64_t index, const ClipWindow& w, uint8_t* out) const override {
    const ClipShape shape = shape_of(w.frames, w.scale);
    const Result<Clip> clip = source_->clip(index, shape);
    if (!clip.ok()) throw Error(clip.status());
    const int64_t row = w.width * 3;
    for (int64_t frame = 0; frame < w.frames; ++frame) {
      for (int64_t y = 0; y < w.height; ++y) {
        const int64_t from = ((frame * shape.height + w.y + y) * shape.width + w.x) * 3;
        std::copy_n(clip->pixels.data() + from, row, out + (frame * w.height + y) * row);
      }
    }
  }
  bool damaged(int64_t index, const ClipWindow& w, uint8_t* out) const override {
    const Result<std::optional<Clip>> clip =
        source_->damaged(index, shape_of(w.frames, w.scale), w.scale);
    if (!clip.ok()) throw Error(clip.status());
    if (!clip->has_value()) return false;
    std::copy((*clip)->pixels.begin(), (*clip)->pixels.end(), out);
    return true;
  }
  [[nodiscard]] int64_t size() const override { return source_->size(); }
  [[nodiscard]] std::string caption(int64_t index, int64_t variant, bool /*full*/) const override {
    // Of the length that this run's clips have, so that caption and clip are of one video.
    const TrainConfig& config = context_.config;
    const bool pictures = config.stage == TrainStage::kAutoencoder;
    const int64_t frames = pictures ? config.autoencoder.frames
                                    : pictures_of(context_.recipe, config.bank.latent_frames);
    Result<std::string> caption = source_->caption(index, shape_of(frames, 1), variant);
    if (!caption.ok()) throw Error(caption.status());
    return *std::move(caption);
  }

 private:
  [[nodiscard]] ClipShape shape_of(int64_t frames, int64_t scale) const {
    return {frames, context_.width() * scale, context_.height() * scale,
            static_cast<double>(context_.recipe.frames_per_second), context_.config.data.part};
  }

  const TrainContext& context_;
  std::unique_ptr<ClipSource> source_;
};

}  // namespace

void TrainingClips::latents(int64_t /*index*/, int64_t /*frames*/, float* /*out*/) const {
  UF_CHECK(encoded(), "pictures have no latents");
}

int64_t pictures_of(const RecipeData& recipe, int64_t latent_frames) {
  const CascadeSpec* base = recipe.cascade(1);
  if (base == nullptr || base->decoder.kind == DecoderKind::kTiny) return 4 * latent_frames;
  return 1 + (latent_frames - 1) * base->decoder.vae.frames_per_latent();
}

Result<std::unique_ptr<TrainingClips>> TrainingClips::open(const TrainContext& context,
                                                           bool unseen) {
  const DataConfig& config = context.config.data;
  if (config.source == "pocket_world") {
    // A smaller recipe takes a corner of the picture.
    if (context.width() > world::kBaseWidth || context.height() > world::kBaseHeight) {
      return make_status(StatusCode::kInvalidArgument,
                         "data.source pocket_world has {}x{} pixels, recipe '{}' {}x{}",
                         world::kBaseWidth, world::kBaseHeight, context.recipe.name,
                         context.width(), context.height());
    }
    return std::unique_ptr<TrainingClips>(std::make_unique<WorldClips>(config.seed, unseen));
  }
  if (config.source == "random") {
    return std::unique_ptr<TrainingClips>(std::make_unique<RandomLatents>(context, unseen));
  }
  FileClipOptions options;
  options.seed = static_cast<uint64_t>(config.seed);
  options.hold_out = config.hold_out;
  options.unseen = unseen;
  options.log = context.log;
  UF_ASSIGN(std::unique_ptr<ClipSource> source, open_file_clips(config.source, options));
  context.log.info(
      fmt::format("{}: {} {}videos", config.source, source->size(), unseen ? "held-out " : ""));
  return std::unique_ptr<TrainingClips>(std::make_unique<FileClips>(context, std::move(source)));
}

}  // namespace ultraflash

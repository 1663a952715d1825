#include "train/clips.h"

#include <span>

#include "core/check.h"
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
    const world::Scene scene = world::sample_scene(seed_, static_cast<uint64_t>(index), split_);
    world::render(scene, {w.scale, w.first_frame, w.frames, w.x, w.y, w.width, w.height},
                  std::span(out, static_cast<size_t>(w.bytes())));
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

}  // namespace

Result<std::unique_ptr<TrainingClips>> TrainingClips::open(const DataConfig& config, bool unseen) {
  if (config.source == "pocket_world") {
    return std::unique_ptr<TrainingClips>(std::make_unique<WorldClips>(config.seed, unseen));
  }
  return make_status(StatusCode::kUnsupported,
                     "data.source '{}': this trainer reads clips of pocket_world alone",
                     config.source);
}

}  // namespace ultraflash

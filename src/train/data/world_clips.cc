#include "core/check.h"
#include "train/data/clip_source.h"
#include "train/world/caption.h"
#include "train/world/render.h"

namespace ultraflash {
namespace {

class WorldClipSource final : public ClipSource {
 public:
  WorldClipSource(uint64_t seed, world::Split split) : seed_(seed), split_(split) {}

  [[nodiscard]] int64_t size() const override { return -1; }

  [[nodiscard]] Result<Clip> clip(int64_t index, const ClipShape& shape) const override {
    const int64_t scale = world::scale_of(shape.width, shape.height);
    if (scale == 0) {
      return make_status(StatusCode::kInvalidArgument,
                         "the pocket world has 160x96, 320x192 and 480x288 pixels, not {}x{}",
                         shape.width, shape.height);
    }
    const auto number = static_cast<uint64_t>(index);
    const world::Scene scene = world::sample_scene(seed_, number, split_);
    return Clip{world::render(scene, world::RenderWindow::whole(scale, 0, shape.frames)),
                world::caption(scene, seed_, number, 0), "pocket world " + std::to_string(index)};
  }
  [[nodiscard]] Result<std::string> caption(int64_t index, const ClipShape& /*shape*/,
                                            int64_t variant) const override {
    const auto number = static_cast<uint64_t>(index);
    return world::caption(world::sample_scene(seed_, number, split_), seed_, number,
                          static_cast<uint32_t>(variant));
  }

 private:
  uint64_t seed_;
  world::Split split_;
};

}  // namespace

std::unique_ptr<ClipSource> make_world_clips(uint64_t seed, world::Split split) {
  return std::make_unique<WorldClipSource>(seed, split);
}

}  // namespace ultraflash

// TrainingClips: pictures and captions by index, for every stage.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "train/world/scene.h"
#include "ultraflash/status.h"

namespace ultraflash {

struct RecipeData;
struct TrainContext;

/// A rectangle of the picture at `scale`, and a range of frames. The picture at scale s has s times
/// the base size of the recipe. A video file shows the frames of the stretch that its index gives,
/// whatever first_frame is.
struct ClipWindow {
  int64_t scale = 1;
  int64_t first_frame = 0;
  int64_t frames = 84;
  int64_t x = 0;
  int64_t y = 0;
  int64_t width = 160;
  int64_t height = 96;
  [[nodiscard]] int64_t bytes() const { return frames * height * width * 3; }
};

/// Pictures that `latent_frames` latent frames of the recipe's autoencoder are made of.
int64_t pictures_of(const RecipeData& recipe, int64_t latent_frames);

/// Thread-safe; what an index gives never changes. Files that cannot be read any more are an Error.
class TrainingClips {
 public:
  virtual ~TrainingClips() = default;

  /// Clips of config.data for training, or (`unseen`) held-out ones for measuring. kNotFound,
  /// kInvalidArgument, kIo, kMalformed. `context` outlives the clips.
  static Result<std::unique_ptr<TrainingClips>> open(const TrainContext& context, bool unseen);

  /// u8 RGB [frames, height, width, 3] of clip `index`.
  virtual void render(int64_t index, const ClipWindow& window, uint8_t* out) const = 0;
  /// u8 RGB [frames, height / scale, width / scale, 3] of the small clip that was damaged ahead of
  /// this run for clip `index`; false where there is none. The window is that of a whole picture.
  virtual bool damaged(int64_t /*index*/, const ClipWindow& /*window*/, uint8_t* /*out*/) const {
    return false;
  }
  /// What clip `index` shows, where that is a scene of the pocket world.
  [[nodiscard]] virtual std::optional<world::Scene> scene(int64_t /*index*/) const {
    return std::nullopt;
  }
  /// Clips before they repeat; -1: endless.
  [[nodiscard]] virtual int64_t size() const { return -1; }
  /// True where clips are latents already, and latents() takes the place of render().
  [[nodiscard]] virtual bool encoded() const { return false; }
  /// Fills f32 [frames, latent_height, latent_width, channels].
  virtual void latents(int64_t index, int64_t frames, float* out) const;
  /// One of the ways to say what clip `index` shows; `full` leaves nothing out (captions of files
  /// are what they are).
  [[nodiscard]] virtual std::string caption(int64_t index, int64_t variant, bool full) const = 0;
};

}  // namespace ultraflash

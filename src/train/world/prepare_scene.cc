#include "core/check.h"
#include "train/world/render_cuda.h"
#include "train/world/shading.h"

namespace ultraflash::world {

// Poses are worked out here in double: a stream of hours has no float for its time.
DeviceScene prepare_scene(const Scene& scene, int64_t first_frame, int64_t frames) {
  UF_CHECK(frames >= 0 && frames <= DeviceScene::kMaxFrames, "{} frames, at most {}", frames,
           DeviceScene::kMaxFrames);
  DeviceScene device = {};
  device.object_count = scene.object_count;
  device.gradient = scene.gradient ? 1 : 0;
  device.starry = scene.starry ? 1 : 0;
  device.star_seed = scene.star_seed;
  device.ground[0] = scene.ground_rgb.r;
  device.ground[1] = scene.ground_rgb.g;
  device.ground[2] = scene.ground_rgb.b;
  for (size_t i = 0; i < static_cast<size_t>(scene.object_count); ++i) {
    DeviceScene::Object& object = device.objects[i];
    for (int64_t f = 0; f < frames; ++f) {
      const PlacedObject placed = place(scene.objects[i], first_frame + f);
      object.x[f] = placed.x;
      object.y[f] = placed.y;
      object.cosine[f] = placed.cosine;
      object.sine[f] = placed.sine;
      object.radius = placed.radius;
      object.reach = placed.reach;
    }
    object.colour[0] = scene.objects[i].colour.r;
    object.colour[1] = scene.objects[i].colour.g;
    object.colour[2] = scene.objects[i].colour.b;
    object.shape = static_cast<int32_t>(scene.objects[i].traits.shape);
    object.texture = static_cast<int32_t>(scene.objects[i].traits.texture);
  }
  return device;
}

}  // namespace ultraflash::world

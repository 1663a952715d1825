#include "train/device_clips.h"

#include <cstring>

#include "train/world/render_cuda.h"

namespace ultraflash {

bool draws_on_device(const TrainContext& context, const TrainingClips& clips, int64_t frames) {
  return context.device.is_cuda() && world::renders_with_cuda() &&
         frames <= world::DeviceScene::kMaxFrames && clips.scene(0).has_value();
}

at::Tensor make_scene_rows(const TrainContext& context, int64_t clips) {
  return at::empty({clips, static_cast<int64_t>(sizeof(world::DeviceScene))},
                   at::TensorOptions(at::kByte).pinned_memory(context.device.is_cuda()));
}

void prepare_scene_row(const TrainingClips& clips, int64_t index, const ClipWindow& window,
                       const at::Tensor& rows, int64_t row) {
  const world::DeviceScene scene =
      world::prepare_scene(*clips.scene(index), window.first_frame, window.frames);
  std::memcpy(rows.mutable_data_ptr<uint8_t>() + row * rows.size(1), &scene, sizeof scene);
}

at::Tensor draw_scenes(const TrainContext& context, const at::Tensor& rows,
                       const std::vector<ClipWindow>& windows) {
  const at::Tensor scenes = rows.to(context.device, /*non_blocking=*/true);
  const ClipWindow& size = windows.front();
  const int64_t clips = rows.size(0);
  const at::Tensor out = at::empty({clips, size.frames, size.height, size.width, 3},
                                   at::TensorOptions(at::kByte).device(context.device));
  const auto* const first = reinterpret_cast<const world::DeviceScene*>(scenes.const_data_ptr());
  const int64_t at_once = windows.size() == 1 ? clips : 1;
  for (int64_t i = 0; i < clips; i += at_once) {
    const ClipWindow& w = windows[at_once == 1 && clips > 1 ? static_cast<size_t>(i) : 0];
    // libtorch's work is in the default stream, as this is.
    const Status status =
        world::render_cuda(first + i, at_once, {w.scale, 0, w.frames, w.x, w.y, w.width, w.height},
                           out.mutable_data_ptr<uint8_t>() + i * size.bytes(), /*stream=*/nullptr);
    if (!status.ok()) throw Error(status);
  }
  return out;
}

}  // namespace ultraflash

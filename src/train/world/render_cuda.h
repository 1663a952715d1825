// The renderer of the pocket world on a GPU: the same pictures as render.h, in one pass.
#pragma once

#include <cstdint>
#include <span>

#include "train/world/render.h"
#include "ultraflash/status.h"

namespace ultraflash::world {

/// A scene with its poses worked out, as the kernel reads it. Plain bytes, made by prepare_scene().
struct DeviceScene {
  static constexpr int64_t kMaxFrames = 96;

  struct Object {
    float x[kMaxFrames];  // canvas pixels
    float y[kMaxFrames];
    float cosine[kMaxFrames];
    float sine[kMaxFrames];
    float radius;
    float reach;
    float colour[3];
    int32_t shape;
    int32_t texture;
  };
  Object objects[2];
  int32_t object_count;
  int32_t gradient;
  float ground[3];
  int32_t starry;
  uint64_t star_seed;
};

/// The frames of `window` (at most DeviceScene::kMaxFrames) of a scene.
DeviceScene prepare_scene(const Scene& scene, int64_t first_frame, int64_t frames);

/// Whether this build has render_cuda(); it may still find no GPU.
bool renders_with_cuda();

/// Renders `count` scenes, which lie in device memory, into `out`, u8 [count, frames, height,
/// width, 3] in device memory. The poses begin at the first frame; window.first_frame is not read.
/// Enqueues on `stream` (a cudaStream_t) and returns; allocates nothing. kInvalidArgument for a
/// window outside the picture, kDevice when the launch fails, kUnsupported without UF_CUDA.
Status render_cuda(const DeviceScene* scenes, int64_t count, const RenderWindow& window,
                   uint8_t* out, void* stream);

}  // namespace ultraflash::world

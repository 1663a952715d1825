// One thread draws one pixel of the picture: it averages the canvas pixels under it (9 at scale 1,
// up to 4 at scale 2, 1 at scale 3), each shaded as on the CPU (shading.h). Grid: x over the pixels
// of a frame, y over frames, z over scenes; so all threads of a CTA share their objects, and
// branches on shape and texture do not diverge. Reads some 100 bytes a CTA, writes 3 bytes a
// thread: bound by arithmetic where objects are, by launch width elsewhere. Compile with
// --fmad=false, so that edges round as on the CPU.
#include <cuda_runtime.h>

#include <string>

#include "train/world/render_cuda.h"
#include "train/world/shading.h"

namespace ultraflash::world {
namespace {

constexpr int kThreads = 256;

template <Shape SHAPE>
__device__ Sample sample_texture(int texture, float dx, float dy, float c, float s, float radius) {
  switch (static_cast<Texture>(texture)) {
    case Texture::kStriped:
      return sample_object_at<SHAPE, Texture::kStriped>(dx, dy, c, s, radius);
    case Texture::kDotted:
      return sample_object_at<SHAPE, Texture::kDotted>(dx, dy, c, s, radius);
    case Texture::kCheckered:
      return sample_object_at<SHAPE, Texture::kCheckered>(dx, dy, c, s, radius);
    case Texture::kPlain:
      break;
  }
  return sample_object_at<SHAPE, Texture::kPlain>(dx, dy, c, s, radius);
}

__device__ Sample sample_any(int shape, int texture, float dx, float dy, float c, float s,
                             float radius) {
  switch (static_cast<Shape>(shape)) {
    case Shape::kCircle:
      return sample_texture<Shape::kCircle>(texture, dx, dy, c, s, radius);
    case Shape::kSquare:
      return sample_texture<Shape::kSquare>(texture, dx, dy, c, s, radius);
    case Shape::kTriangle:
      return sample_texture<Shape::kTriangle>(texture, dx, dy, c, s, radius);
    case Shape::kStar:
      return sample_texture<Shape::kStar>(texture, dx, dy, c, s, radius);
    case Shape::kRing:
      return sample_texture<Shape::kRing>(texture, dx, dy, c, s, radius);
    case Shape::kCross:
      break;
  }
  return sample_texture<Shape::kCross>(texture, dx, dy, c, s, radius);
}

__device__ float nearest(float difference, float length) {
  return difference - length * floorf(difference / length + 0.5F);
}

// One canvas pixel.
__device__ Rgb canvas_pixel(const DeviceScene& scene, int frame, int x, int y) {
  const float px = static_cast<float>(x) + 0.5F;
  const float py = static_cast<float>(y) + 0.5F;
  Rgb value = ground_colour({scene.ground[0], scene.ground[1], scene.ground[2]},
                            scene.gradient != 0, py / static_cast<float>(kCanvasHeight));
  if (scene.starry != 0) {
    Star star;
    const int cell = y / kStarCell * (kCanvasWidth / kStarCell) + x / kStarCell;
    if (star_of(scene.star_seed, cell, star) && star.x == x && star.y == y) {
      value = {star.level, star.level, star.level};
    }
  }
  for (int i = 0; i < scene.object_count; ++i) {
    const DeviceScene::Object& object = scene.objects[i];
    const float dx = nearest(px - object.x[frame], static_cast<float>(kCanvasWidth));
    const float dy = nearest(py - object.y[frame], static_cast<float>(kCanvasHeight));
    if (dx * dx + dy * dy > object.reach * object.reach) continue;
    const Sample s = sample_any(object.shape, object.texture, dx, dy, object.cosine[frame],
                                object.sine[frame], object.radius);
    value.r += s.coverage * (s.shade * object.colour[0] - value.r);
    value.g += s.coverage * (s.shade * object.colour[1] - value.g);
    value.b += s.coverage * (s.shade * object.colour[2] - value.b);
  }
  return value;
}

struct Grid {
  int scale;
  int x;
  int y;
  int width;
  int height;
  int frames;
};

// Canvas pixels under row or column `i` of the picture, and the weight of each.
struct Taps {
  int first;
  int count;
  float weights[3];
};
__device__ Taps taps_of(int scale, int i) {
  if (scale == 3) return {i, 1, {1.0F, 0.0F, 0.0F}};
  if (scale == 1) return {3 * i, 3, {1.0F / 3, 1.0F / 3, 1.0F / 3}};
  const int group = i / 2 * 3;
  if (i % 2 == 0) return {group, 2, {2.0F / 3, 1.0F / 3, 0.0F}};
  return {group + 1, 2, {1.0F / 3, 2.0F / 3, 0.0F}};
}

__global__ void __launch_bounds__(kThreads)
    render_kernel(const DeviceScene* __restrict__ scenes, Grid grid, uint8_t* __restrict__ out) {
  const int pixel = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (pixel >= grid.width * grid.height) return;
  const int frame = static_cast<int>(blockIdx.y);
  const DeviceScene& scene = scenes[blockIdx.z];
  const Taps columns = taps_of(grid.scale, grid.x + pixel % grid.width);
  const Taps rows = taps_of(grid.scale, grid.y + pixel / grid.width);
  Rgb sum;
  for (int j = 0; j < rows.count; ++j) {
    for (int i = 0; i < columns.count; ++i) {
      const Rgb value = canvas_pixel(scene, frame, columns.first + i, rows.first + j);
      const float weight = rows.weights[j] * columns.weights[i];
      sum.r += weight * value.r;
      sum.g += weight * value.g;
      sum.b += weight * value.b;
    }
  }
  const int64_t index =
      ((static_cast<int64_t>(blockIdx.z) * grid.frames + frame) * grid.width * grid.height +
       pixel) *
      3;
  out[index] = static_cast<uint8_t>(static_cast<int>(sum.r + 0.5F));
  out[index + 1] = static_cast<uint8_t>(static_cast<int>(sum.g + 0.5F));
  out[index + 2] = static_cast<uint8_t>(static_cast<int>(sum.b + 0.5F));
}

}  // namespace

bool renders_with_cuda() { return true; }

Status render_cuda(const DeviceScene* scenes, int64_t count, const RenderWindow& window,
                   uint8_t* out, void* stream) {
  if (window.scale < 1 || window.scale > 3 || window.x < 0 || window.y < 0 || window.width < 1 ||
      window.height < 1 || window.x + window.width > window.scale * kBaseWidth ||
      window.y + window.height > window.scale * kBaseHeight || window.frames < 0 ||
      window.frames > DeviceScene::kMaxFrames || count < 0) {
    return Status(StatusCode::kInvalidArgument,
                  "the window of the pocket world does not lie inside the picture");
  }
  if (count == 0 || window.frames == 0) return {};
  // The GPU that the memory is on, whichever one this thread used last.
  cudaPointerAttributes memory = {};
  cudaError_t found = cudaPointerGetAttributes(&memory, out);
  if (found == cudaSuccess) found = cudaSetDevice(memory.device);
  if (found != cudaSuccess) {
    return Status(StatusCode::kDevice,
                  std::string("rendering the pocket world: ") + cudaGetErrorString(found));
  }
  const Grid grid = {static_cast<int>(window.scale),  static_cast<int>(window.x),
                     static_cast<int>(window.y),      static_cast<int>(window.width),
                     static_cast<int>(window.height), static_cast<int>(window.frames)};
  const auto tiles =
      static_cast<unsigned>((window.width * window.height + kThreads - 1) / kThreads);
  const int64_t scene_bytes = window.bytes();
  constexpr int64_t kMostScenes = 65535;  // of one launch: the limit of the grid's z
  for (int64_t first = 0; first < count; first += kMostScenes) {
    const int64_t some = count - first < kMostScenes ? count - first : kMostScenes;
    const dim3 ctas(tiles, static_cast<unsigned>(window.frames), static_cast<unsigned>(some));
    render_kernel<<<ctas, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        scenes + first, grid, out + first * scene_bytes);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) {
      return Status(StatusCode::kDevice,
                    std::string("rendering the pocket world: ") + cudaGetErrorString(error));
    }
  }
  return {};
}

}  // namespace ultraflash::world

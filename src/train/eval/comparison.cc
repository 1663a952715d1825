#include "train/eval/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/check.h"
#include "media/image.h"
#include "media/video_reader.h"
#include "train/eval/scene_json.h"
#include "train/eval/segment.h"

namespace ultraflash::world {
namespace {

constexpr int64_t kAround = 8;  // frames before and after the moment that help to find objects

struct Moment {
  std::vector<uint8_t> pixels;  // u8 [frames, height, width, 3]
  int64_t frames = 0;
  int64_t width = 0;
  int64_t height = 0;
  int64_t index = 0;  // of the moment's frame among these

  [[nodiscard]] ClipView view() const { return {pixels.data(), frames, width, height}; }
  [[nodiscard]] RgbFrame frame() const {
    return RgbFrame::contiguous(view().frame(index), width, height);
  }
};

Result<Moment> read_moment(const std::string& path, double at) {
  UF_ASSIGN(VideoReader reader, VideoReader::open(path));
  const VideoFormat format = reader.info().format;
  const double fps = format.fps_num > 0 ? format.fps() : static_cast<double>(kFramesPerSecond);
  const int64_t wanted = std::llround(at * fps);
  Moment moment;
  moment.width = format.width;
  moment.height = format.height;
  const int64_t first = std::max<int64_t>(0, wanted - kAround);
  moment.index = wanted - first;
  for (int64_t i = 0; i <= wanted + kAround; ++i) {
    UF_ASSIGN(const std::optional<VideoFrame> frame, reader.next());
    if (!frame.has_value()) break;
    if (i < first) continue;
    for (int64_t y = 0; y < format.height; ++y) {
      const uint8_t* row = frame->rgb.row(y);
      moment.pixels.insert(moment.pixels.end(), row, row + 3 * format.width);
    }
    ++moment.frames;
  }
  if (moment.frames <= moment.index || format.width < kBaseWidth || format.height < kBaseHeight) {
    return make_status(StatusCode::kNotFound, "{}: no frame of {}x{} or more at {:g} s", path,
                       kBaseWidth, kBaseHeight, at);
  }
  return moment;
}

// The first object with a texture, or none.
const NamedObject* textured(const NamedScene& scene) {
  for (const NamedObject& object : scene.objects) {
    if (object.texture && *object.texture != Texture::kPlain) return &object;
  }
  return nullptr;
}

// Where `object` is, in base pixels; the middle of the picture where it is not seen.
Centre find_object(const Moment& moment, const NamedScene& scene, const NamedObject& object) {
  const std::vector<BaseFrame> frames = base_frames(moment.view());
  const std::vector<Segment> segments =
      find_segments(frames, fit_background(frames), std::ssize(scene.objects));
  const Segment* best = nullptr;
  for (const Segment& segment : segments) {
    if (best == nullptr || (object.colour && segment.colour == *object.colour)) best = &segment;
  }
  const Centre middle{static_cast<double>(kBaseWidth) / 2, static_cast<double>(kBaseHeight) / 2, 0};
  if (best == nullptr) return middle;
  const Centre centre = centre_of(best->masks[static_cast<size_t>(moment.index)]);
  return centre.area > 0.0 ? centre : middle;
}

// On joined edges, as the world's are.
RgbImage square_around(const RgbFrame& frame, const Centre& centre, int64_t side, int64_t enlarge) {
  const double scale = static_cast<double>(frame.width) / static_cast<double>(kBaseWidth);
  const auto length = std::min<int64_t>(std::llround(static_cast<double>(side) * scale),
                                        std::min(frame.width, frame.height));
  const int64_t left = std::llround(centre.x * scale) - length / 2 + frame.width;
  const int64_t top = std::llround(centre.y * scale) - length / 2 + frame.height;
  RgbImage image = RgbImage::black(length * enlarge, length * enlarge);
  for (int64_t y = 0; y < image.height; ++y) {
    const uint8_t* row = frame.row((top + y / enlarge) % frame.height);
    for (int64_t x = 0; x < image.width; ++x) {
      std::memcpy(image.row(y) + 3 * x, row + 3 * ((left + x / enlarge) % frame.width), 3);
    }
  }
  return image;
}

}  // namespace

Result<RgbImage> comparison_sheet(const ComparisonOptions& options) {
  namespace fs = std::filesystem;
  UF_CHECK(!options.folders.empty(), "no folder");
  UF_ASSIGN(const std::vector<CaptionLine> lines,
            read_captions((fs::path(options.folders[0]) / "captions.jsonl").string()));
  std::vector<RgbImage> images;
  int64_t rows = 0;
  for (const CaptionLine& line : lines) {
    const NamedObject* object = textured(line.scene);
    if (object == nullptr) continue;
    std::vector<Moment> moments;
    int64_t width = 0;
    int64_t height = 0;
    for (const std::string& folder : options.folders) {
      UF_ASSIGN(Moment moment, read_moment((fs::path(folder) / line.file).string(), options.at));
      width = std::max(width, moment.width);
      height = std::max(height, moment.height);
      moments.push_back(std::move(moment));
    }
    const Centre centre = find_object(moments[0], line.scene, *object);
    for (const Moment& moment : moments) {
      UF_ASSIGN(const RgbImage large, resize(moment.frame(), width, height));
      images.push_back(square_around(large.view(), centre, options.side, options.enlarge));
    }
    if (++rows == options.clips) break;
  }
  if (images.empty()) {
    return make_status(StatusCode::kInvalidArgument, "{}: no caption names a texture",
                       options.folders[0]);
  }
  std::vector<RgbFrame> frames;
  for (const RgbImage& image : images) frames.push_back(image.view());
  SheetOptions sheet;
  sheet.columns = std::ssize(options.folders);
  sheet.margin = 4;
  return contact_sheet(frames, sheet);
}

}  // namespace ultraflash::world

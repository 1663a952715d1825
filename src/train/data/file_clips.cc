#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "core/check.h"
#include "core/rng.h"
#include "media/image.h"
#include "media/video_reader.h"
#include "train/data/clip_source.h"
#include "train/data/tar_index.h"
#include "weights/strict_json.h"

namespace ultraflash {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::string_view, 7> kVideoEndings = {".mp4",  ".m4v", ".mov", ".mkv",
                                                           ".webm", ".avi", ".y4m"};
constexpr int64_t kMaxCaptionBytes = 64 << 10;
constexpr int64_t kMaxVideoBytes = int64_t{2} << 30;  // of one in an archive, read whole

// A file, or a part of an archive.
struct Place {
  std::string path;
  int64_t offset = -1;  // -1: the whole file
  int64_t size = 0;
};

struct Sample {
  std::string name;
  Place video;
  Place caption;
  bool json = false;
};

Result<std::vector<uint8_t>> read_place(const Place& place, int64_t limit) {
  std::ifstream stream(place.path, std::ios::binary);
  if (!stream) return make_status(StatusCode::kNotFound, "{}: cannot be opened", place.path);
  int64_t size = place.size;
  if (place.offset < 0) {
    stream.seekg(0, std::ios::end);
    size = static_cast<int64_t>(stream.tellg());
  }
  if (size < 0 || size > limit) {
    return make_status(StatusCode::kUnsupported, "{}: {} bytes, at most {} are read", place.path,
                       size, limit);
  }
  stream.seekg(std::max<int64_t>(place.offset, 0));
  std::vector<uint8_t> bytes(static_cast<size_t>(size));
  if (!stream.read(reinterpret_cast<char*>(bytes.data()), size)) {
    return make_status(StatusCode::kIo, "{}: reading {} bytes failed", place.path, size);
  }
  return bytes;
}

// Videos and captions by their name without the ending; ordered, so that an index means the same on
// every machine.
class Collection {
 public:
  void add(const std::string& name, Place place) {
    const fs::path path(name);
    std::string ending = path.extension().string();
    std::transform(ending.begin(), ending.end(), ending.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    Found& found = all_[(path.parent_path() / path.stem()).string()];
    if (std::find(kVideoEndings.begin(), kVideoEndings.end(), ending) != kVideoEndings.end()) {
      found.video = std::move(place);
    } else if (ending == ".txt") {
      found.text = std::move(place);
    } else if (ending == ".json") {
      found.json = std::move(place);
    }
  }

  [[nodiscard]] std::vector<Sample> samples() const {
    std::vector<Sample> samples;
    for (const auto& [name, found] : all_) {
      if (!found.video || (!found.text && !found.json)) continue;
      samples.push_back(
          {name, *found.video, found.text ? *found.text : *found.json, !found.text.has_value()});
    }
    return samples;
  }

 private:
  struct Found {
    std::optional<Place> video;
    std::optional<Place> text;
    std::optional<Place> json;
  };
  std::map<std::string, Found> all_;
};

Status add_archive(const std::string& path, Collection& collection) {
  UF_ASSIGN(const std::vector<TarMember> members, read_tar_index(path));
  for (const TarMember& member : members) {
    collection.add(path + ":" + member.name, {path, member.offset, member.size});
  }
  return {};
}

Status add_folder(const std::string& path, Collection& collection) {
  std::error_code error;
  fs::recursive_directory_iterator entries(path, error);
  for (; !error && entries != fs::recursive_directory_iterator(); entries.increment(error)) {
    if (entries->symlink_status().type() != fs::file_type::regular) continue;
    const std::string file = entries->path().string();
    if (entries->path().extension() == ".tar") {
      UF_TRY(add_archive(file, collection));
    } else {
      collection.add(file, {file, -1, 0});
    }
  }
  if (error) return make_status(StatusCode::kIo, "{}: {}", path, error.message());
  return {};
}

Result<std::string> read_caption(const Sample& sample) {
  UF_ASSIGN(const std::vector<uint8_t> bytes, read_place(sample.caption, kMaxCaptionBytes));
  std::string text(bytes.begin(), bytes.end());
  if (sample.json) {
    UF_ASSIGN(const nlohmann::json json, parse_strict_json(text, sample.name + ".json"));
    const auto caption = json.is_object() ? json.find("caption") : json.end();
    if (caption == json.end() || !caption->is_string()) {
      return make_status(StatusCode::kMalformed, "{}.json: no \"caption\" in it", sample.name);
    }
    text = caption->get<std::string>();
  }
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  return text;
}

// A permutation of [0, count): a Feistel network over the next power of four, walked until it ends
// inside. No table, so an index costs the same in any epoch.
int64_t permuted(int64_t index, int64_t count, uint64_t seed, uint64_t epoch) {
  uint32_t half = 1;
  while ((int64_t{1} << (2 * half)) < count) ++half;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  auto value = static_cast<uint64_t>(index);
  do {
    uint64_t left = value >> half;
    uint64_t right = value & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t mixed = rng::philox(right, (epoch << 8) | round, seed).x[0] & mask;
      left = std::exchange(right, left ^ mixed);
    }
    value = (left << half) | right;
  } while (value >= static_cast<uint64_t>(count));
  return static_cast<int64_t>(value);
}

class FileClipSource final : public ClipSource {
 public:
  FileClipSource(std::vector<Sample> samples, uint64_t seed)
      : samples_(std::move(samples)), seed_(seed) {}

  [[nodiscard]] int64_t size() const override { return std::ssize(samples_); }

  [[nodiscard]] Result<Clip> clip(int64_t index, const ClipShape& shape) const override {
    const auto epoch = static_cast<uint64_t>(index / size());
    const Sample& sample =
        samples_[static_cast<size_t>(permuted(index % size(), size(), seed_, epoch))];
    Clip clip;
    clip.name = sample.name;
    UF_ASSIGN(clip.caption, read_caption(sample));
    std::vector<uint8_t> bytes;  // outlives the reader
    Result<VideoReader> reader = [&]() -> Result<VideoReader> {
      if (sample.video.offset < 0) return VideoReader::open(sample.video.path);
      UF_ASSIGN(bytes, read_place(sample.video, kMaxVideoBytes));
      return VideoReader::open_memory(bytes, sample.name);
    }();
    if (!reader.ok()) return reader.status();
    // Where the container does not tell its length, the stretch is the beginning.
    const int64_t spare = std::max<int64_t>(0, reader->info().frames - shape.frames);
    world::Draw draw({seed_, hash_name(sample.name) ^ static_cast<uint64_t>(index)});
    const int64_t first = draw.below(spare + 1);
    clip.pixels.reserve(static_cast<size_t>(shape.frames * shape.height * shape.width * 3));
    for (int64_t f = 0; f < first + shape.frames; ++f) {
      UF_ASSIGN(const std::optional<VideoFrame> frame, reader->next());
      if (!frame.has_value()) {
        return make_status(StatusCode::kInvalidArgument, "{}: {} frames, {} are asked for",
                           sample.name, f, first + shape.frames);
      }
      if (f < first) continue;
      UF_ASSIGN(const RgbImage image, resize(cut_to(frame->rgb, shape), shape.width, shape.height));
      clip.pixels.insert(clip.pixels.end(), image.pixels.begin(), image.pixels.end());
    }
    return clip;
  }

 private:
  // The largest middle part with the proportions of `shape`.
  static RgbFrame cut_to(RgbFrame frame, const ClipShape& shape) {
    const int64_t width =
        std::clamp<int64_t>(frame.height * shape.width / shape.height, 1, frame.width);
    const int64_t height =
        std::clamp<int64_t>(frame.width * shape.height / shape.width, 1, frame.height);
    frame.pixels = frame.row((frame.height - height) / 2) + (frame.width - width) / 2 * 3;
    frame.width = width;
    frame.height = height;
    return frame;
  }

  std::vector<Sample> samples_;
  uint64_t seed_;
};

}  // namespace

Result<std::unique_ptr<ClipSource>> open_file_clips(const std::string& path, uint64_t seed) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (error || status.type() == fs::file_type::not_found) {
    return make_status(StatusCode::kNotFound, "{}: no such folder or archive", path);
  }
  Collection collection;
  if (status.type() == fs::file_type::directory) {
    UF_TRY(add_folder(path, collection));
  } else {
    UF_TRY(add_archive(path, collection));
  }
  std::vector<Sample> samples = collection.samples();
  if (samples.empty()) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: no video with a caption (NAME.mp4 and NAME.txt or NAME.json)", path);
  }
  return std::unique_ptr<ClipSource>(std::make_unique<FileClipSource>(std::move(samples), seed));
}

}  // namespace ultraflash

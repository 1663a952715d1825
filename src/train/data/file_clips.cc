#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "core/check.h"
#include "core/rng.h"
#include "core/utf8.h"
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
constexpr int64_t kMostFrames = 4096;                 // of a video that are used
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
  std::map<int64_t, Place> damaged;  // by scale
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
    const bool video =
        std::find(kVideoEndings.begin(), kVideoEndings.end(), ending) != kVideoEndings.end();
    fs::path stem = path.stem();
    const std::string scale = stem.extension().string();  // ".2x" of NAME.2x.y4m
    if (video && scale.size() == 3 && scale[1] >= '2' && scale[1] <= '9' && scale[2] == 'x') {
      all_[(path.parent_path() / stem.stem()).string()].damaged[scale[1] - '0'] = std::move(place);
      return;
    }
    Found& found = all_[(path.parent_path() / stem).string()];
    if (video) {
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
      samples.push_back({name, *found.video, found.text ? *found.text : *found.json,
                         !found.text.has_value(), found.damaged});
    }
    return samples;
  }

 private:
  struct Found {
    std::optional<Place> video;
    std::optional<Place> text;
    std::optional<Place> json;
    std::map<int64_t, Place> damaged;
  };
  std::map<std::string, Found> all_;
};

// `name` is that of the archive below the collection's folder.
Status add_archive(const std::string& path, const std::string& name, Collection& collection) {
  UF_ASSIGN(const std::vector<TarMember> members, read_tar_index(path));
  for (const TarMember& member : members) {
    collection.add(name.empty() ? member.name : name + ":" + member.name,
                   {path, member.offset, member.size});
  }
  return {};
}

Status add_folder(const std::string& path, Collection& collection) {
  std::error_code error;
  fs::recursive_directory_iterator entries(path, error);
  for (; !error && entries != fs::recursive_directory_iterator(); entries.increment(error)) {
    if (entries->symlink_status().type() != fs::file_type::regular) continue;
    const std::string file = entries->path().string();
    const std::string name = entries->path().lexically_relative(path).generic_string();
    if (entries->path().extension() == ".tar") {
      UF_TRY(add_archive(file, name, collection));
    } else {
      collection.add(name, {file, -1, 0});
    }
  }
  if (error) return make_status(StatusCode::kIo, "{}: {}", path, error.message());
  return {};
}

// At least one, none empty.
Result<std::vector<std::string>> read_captions(const Sample& sample) {
  UF_ASSIGN(const std::vector<uint8_t> bytes, read_place(sample.caption, kMaxCaptionBytes));
  const std::string text(bytes.begin(), bytes.end());
  std::vector<std::string> captions;
  if (sample.json) {
    UF_ASSIGN(const nlohmann::json json, parse_strict_json(text, sample.name + ".json"));
    const auto found = json.is_object() ? json.find("caption") : json.end();
    if (found != json.end() && found->is_string()) {
      captions.push_back(found->get<std::string>());
    } else if (found != json.end() && found->is_array()) {
      for (const nlohmann::json& one : *found) {
        if (one.is_string()) captions.push_back(one.get<std::string>());
      }
    }
    if (captions.empty()) {
      return make_status(StatusCode::kMalformed, "{}.json: no \"caption\" in it", sample.name);
    }
  } else {
    captions.push_back(text);
  }
  for (std::string& caption : captions) {
    caption.erase(caption.find_last_not_of(" \t\r\n") + 1);
    if (caption.empty()) {
      return make_status(StatusCode::kMalformed, "{}: an empty caption", sample.name);
    }
    UF_TRY(validate_utf8(caption, sample.name));
  }
  return captions;
}

// A video and, where it lies in an archive, its bytes.
struct OpenVideo {
  std::vector<uint8_t> bytes;
  std::optional<VideoReader> reader;

  static Result<OpenVideo> open(const Place& place, const std::string& name) {
    OpenVideo video;
    if (place.offset < 0) {
      UF_ASSIGN(video.reader, VideoReader::open(place.path));
    } else {
      UF_ASSIGN(video.bytes, read_place(place, kMaxVideoBytes));
      UF_ASSIGN(video.reader, VideoReader::open_memory(video.bytes, name));
    }
    return video;
  }
};

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
  FileClipSource(std::vector<Sample> samples, const FileClipOptions& options)
      : samples_(std::move(samples)), options_(options), checks_(samples_.size()) {}

  [[nodiscard]] int64_t size() const override { return std::ssize(samples_); }

  [[nodiscard]] Result<Clip> clip(int64_t index, const ClipShape& shape) const override {
    UF_ASSIGN(const Use use, choose(index, shape));
    const Sample& sample = samples_[use.sample];
    Clip clip;
    clip.name = sample.name;
    UF_ASSIGN(const std::vector<std::string> captions, read_captions(sample));
    clip.caption = captions[0];
    UF_TRY(read_stretch(sample.video, index, use, shape, clip));
    return clip;
  }

  [[nodiscard]] Result<std::optional<Clip>> damaged(int64_t index, const ClipShape& large,
                                                    int64_t scale) const override {
    UF_ASSIGN(Use use, choose(index, large));
    const Sample& sample = samples_[use.sample];
    const auto found = sample.damaged.find(scale);
    if (found == sample.damaged.end()) return std::optional<Clip>();
    if (large.part != 1.0) {
      return make_status(StatusCode::kInvalidArgument,
                         "{}.{}x: a damaged clip belongs to the whole picture, data.part is {}",
                         sample.name, scale, large.part);
    }
    ClipShape shape = large;
    shape.width /= scale;
    shape.height /= scale;
    Clip clip;
    clip.name = fmt::format("{}.{}x", sample.name, scale);
    UF_TRY(read_stretch(found->second, index, use, shape, clip));
    return std::optional<Clip>(std::move(clip));
  }

  [[nodiscard]] Result<std::string> caption(int64_t index, const ClipShape& shape,
                                            int64_t variant) const override {
    UF_ASSIGN(const Use use, choose(index, shape));
    UF_ASSIGN(std::vector<std::string> captions, read_captions(samples_[use.sample]));
    return std::move(captions[static_cast<size_t>(variant) % captions.size()]);
  }

 private:
  // What reading a video through has shown.
  struct Check {
    bool known = false;
    bool told = false;  // the log was
    Status status;
    int64_t frames = 0;
    double fps = 0.0;  // 0: not stated
  };
  struct Use {
    size_t sample = 0;
    Check check;
  };

  // Frames of the stretch that `index` gives, cut and resized.
  Status read_stretch(const Place& place, int64_t index, const Use& use, const ClipShape& shape,
                      Clip& clip) const {
    const std::string& name = samples_[use.sample].name;
    UF_ASSIGN(OpenVideo video, OpenVideo::open(place, clip.name));
    const int64_t spare = use.check.frames - needed(use.check, shape);
    world::Draw draw({options_.seed, hash_name(name) ^ static_cast<uint64_t>(index)});
    const int64_t first = draw.below(spare + 1);
    const double x = draw.uniform(0.0, 1.0);
    const double y = draw.uniform(0.0, 1.0);
    const auto frame_bytes = static_cast<size_t>(shape.height * shape.width * 3);
    clip.pixels.reserve(static_cast<size_t>(shape.frames) * frame_bytes);
    int64_t read = 0;
    for (int64_t f = 0; f < shape.frames; ++f) {
      const int64_t wanted = first + source_frame(use.check, shape, f);
      if (read > wanted) {  // a slower video shows this one again
        clip.pixels.resize(clip.pixels.size() + frame_bytes);
        std::copy_n(clip.pixels.end() - 2 * static_cast<std::ptrdiff_t>(frame_bytes), frame_bytes,
                    clip.pixels.end() - static_cast<std::ptrdiff_t>(frame_bytes));
        continue;
      }
      std::optional<VideoFrame> frame;
      for (; read <= wanted; ++read) {
        UF_ASSIGN(frame, video.reader->next());
        if (!frame.has_value()) {
          return make_status(StatusCode::kMalformed, "{}: {} frames, there should be {}", clip.name,
                             read, use.check.frames);
        }
      }
      UF_ASSIGN(const RgbImage image,
                resize(cut_to(frame->rgb, shape, x, y), shape.width, shape.height));
      clip.pixels.insert(clip.pixels.end(), image.pixels.begin(), image.pixels.end());
    }
    return {};
  }

  // Which frame of the video is shown at frame `f` of a clip that begins at its frame 0.
  static int64_t source_frame(const Check& check, const ClipShape& shape, int64_t f) {
    if (shape.fps <= 0.0 || check.fps <= 0.0) return f;
    return static_cast<int64_t>(static_cast<double>(f) * check.fps / shape.fps + 1e-6);
  }
  static int64_t needed(const Check& check, const ClipShape& shape) {
    return source_frame(check, shape, shape.frames - 1) + 1;
  }

  // The sample of an index: that of its place in the epoch, or the first after it that can be used.
  [[nodiscard]] Result<Use> choose(int64_t index, const ClipShape& shape) const {
    const auto epoch = static_cast<uint64_t>(index / size());
    Status last;
    for (int64_t i = 0; i < size(); ++i) {
      Use use;
      use.sample =
          static_cast<size_t>(permuted((index + i) % size(), size(), options_.seed, epoch));
      use.check = checked(use.sample);
      const std::string& name = samples_[use.sample].name;
      last = use.check.status;
      if (last.ok() && use.check.frames < needed(use.check, shape)) {
        last = make_status(StatusCode::kInvalidArgument, "{}: {} frames, {} are asked for", name,
                           use.check.frames, needed(use.check, shape));
      }
      if (last.ok()) return use;
      if (tell(use.sample)) {
        options_.log.warning(fmt::format("passed over: {}", last.message()));
      }
    }
    return make_status(last.code(), "none of {} videos can be used; the last: {}", size(),
                       last.message());
  }

  // Two threads that meet the same new sample both read it; what they find is the same.
  [[nodiscard]] Check checked(size_t sample) const {
    {
      const std::lock_guard lock(mutex_);
      if (checks_[sample].known) return checks_[sample];
    }
    Check check;
    check.status = read_through(samples_[sample], check);
    check.known = true;
    const std::lock_guard lock(mutex_);
    if (!checks_[sample].known) checks_[sample] = check;
    return checks_[sample];
  }

  // Whether the log is still to be told about a sample.
  [[nodiscard]] bool tell(size_t sample) const {
    const std::lock_guard lock(mutex_);
    return !std::exchange(checks_[sample].told, true);
  }

  static Status read_through(const Sample& sample, Check& check) {
    UF_TRY(read_captions(sample).status());
    UF_ASSIGN(OpenVideo video, OpenVideo::open(sample.video, sample.name));
    const VideoFormat& format = video.reader->info().format;
    if (format.fps_num > 0) {
      check.fps = static_cast<double>(format.fps_num) / static_cast<double>(format.fps_den);
    }
    while (check.frames < kMostFrames) {
      UF_ASSIGN(const std::optional<VideoFrame> frame, video.reader->next());
      if (!frame.has_value()) break;
      ++check.frames;
    }
    return {};
  }

  // Of the largest middle part with the proportions of `shape` the part that it asks for; x and y
  // in [0, 1) say where.
  static RgbFrame cut_to(RgbFrame frame, const ClipShape& shape, double x, double y) {
    const auto cut = [&](int64_t left, int64_t top, int64_t width, int64_t height) {
      frame.pixels = frame.row(top) + 3 * left;
      frame.width = width;
      frame.height = height;
    };
    const int64_t width =
        std::clamp<int64_t>(frame.height * shape.width / shape.height, 1, frame.width);
    const int64_t height =
        std::clamp<int64_t>(frame.width * shape.height / shape.width, 1, frame.height);
    cut((frame.width - width) / 2, (frame.height - height) / 2, width, height);
    if (shape.part == 1.0) return frame;
    const auto side = [&](int64_t length) {
      return std::max<int64_t>(1, std::llround(shape.part * static_cast<double>(length)));
    };
    const auto place = [](double share, int64_t length, int64_t part) {
      return static_cast<int64_t>(share * static_cast<double>(length - part + 1));
    };
    const int64_t part_width = side(width);
    const int64_t part_height = side(height);
    cut(place(x, width, part_width), place(y, height, part_height), part_width, part_height);
    return frame;
  }

  std::vector<Sample> samples_;
  FileClipOptions options_;
  mutable std::mutex mutex_;
  mutable std::vector<Check> checks_;  // guarded by mutex_
};

// The samples of one side of the hold-out.
std::vector<Sample> one_side(std::vector<Sample> samples, const FileClipOptions& options) {
  if (options.hold_out <= 0.0) return samples;
  const auto set_apart = [](const Sample& s) {
    return ("/" + s.name).find("/held-out/") != std::string::npos;
  };
  const auto apart = std::count_if(samples.begin(), samples.end(), set_apart);
  if (apart > 0 && apart < std::ssize(samples)) {
    std::erase_if(samples, [&](const Sample& s) { return set_apart(s) != options.unseen; });
    return samples;
  }
  const auto place = [](const Sample& s) {  // in [0, 1)
    return static_cast<double>(rng::philox(hash_name(s.name), 0, 0).x[0]) / 4294967296.0;
  };
  if (samples.size() == 1) {
    options.log.warning("one video: it is used for training and as the unseen one");
    return samples;
  }
  const auto by_place = [&](const Sample& a, const Sample& b) { return place(a) < place(b); };
  const auto [first, last] = std::minmax_element(samples.begin(), samples.end(), by_place);
  // Neither side is left empty.
  const double limit = std::clamp(options.hold_out, place(*first) + 1e-12, place(*last));
  std::vector<Sample> kept;
  for (Sample& sample : samples) {
    if ((place(sample) < limit) == options.unseen) kept.push_back(std::move(sample));
  }
  return kept;
}

}  // namespace

Result<std::unique_ptr<ClipSource>> open_file_clips(const std::string& path,
                                                    const FileClipOptions& options) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (error || status.type() == fs::file_type::not_found) {
    return make_status(StatusCode::kNotFound, "{}: no such folder or archive", path);
  }
  Collection collection;
  if (status.type() == fs::file_type::directory) {
    UF_TRY(add_folder(path, collection));
  } else {
    UF_TRY(add_archive(path, "", collection));
  }
  std::vector<Sample> samples = collection.samples();
  if (samples.empty()) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: no video with a caption (NAME.mp4 and NAME.txt or NAME.json)", path);
  }
  return std::unique_ptr<ClipSource>(
      std::make_unique<FileClipSource>(one_side(std::move(samples), options), options));
}

}  // namespace ultraflash

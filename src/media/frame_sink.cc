#include "media/frame_sink.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "core/check.h"
#include "core/exceptions.h"
#include "core/output_file.h"
#include "media/sinks.h"
#include "media/text.h"

namespace ultraflash {
namespace {

bool is_folder(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

// Empty when the ending says nothing.
std::string format_from_path(const std::string& path) {
  if (is_standard_output(path)) return "y4m";
  constexpr std::pair<const char*, const char*> kEndings[] = {{".mp4", "mp4"}, {".m4v", "mp4"},
                                                              {".y4m", "y4m"}, {".png", "png"},
                                                              {".rgb", "raw"}, {".raw", "raw"}};
  const std::string lower_path = to_lower(path);
  for (const auto& [ending, format] : kEndings) {
    if (lower_path.ends_with(ending)) return format;
  }
  if (path.ends_with('/') || is_folder(path)) return "png";
  return {};
}

Status check_options(const SinkOptions& options, const std::string& format) {
  const std::string& path = options.path;
  if (format != "mp4") {
    const bool has_codec = options.codec != "auto" && !options.codec.empty();
    if (has_codec || options.crf != 0 || options.bitrate != 0 || !options.preset.empty()) {
      return make_status(StatusCode::kInvalidArgument,
                         "{}: codec, crf, bitrate and preset are for MP4 files, this is {}; drop "
                         "them or choose a path that ends in .mp4",
                         path, format);
    }
  }
  if (options.crf < 0 || options.crf > 51) {
    return make_status(StatusCode::kInvalidArgument, "{}: crf is {}; it goes from 1 (best) to 51",
                       path, options.crf);
  }
  if (options.bitrate < 0 || options.bitrate > 2'000'000'000) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: the bit rate is {}; it is in bits per second, at most 2000000000", path,
                       options.bitrate);
  }
  if (options.crf != 0 && options.bitrate != 0) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: both crf ({}) and a bit rate ({}) are set; choose one", path,
                       options.crf, options.bitrate);
  }
  if (options.threads < 1 || options.threads > 256) {
    return make_status(StatusCode::kInvalidArgument, "{}: {} encoder threads; give 1 to 256", path,
                       options.threads);
  }
  constexpr std::array kPresets = {"ultrafast", "superfast", "veryfast", "faster",  "fast",
                                   "medium",    "slow",      "slower",   "veryslow"};
  if (!options.preset.empty() &&
      std::find(kPresets.begin(), kPresets.end(), options.preset) == kPresets.end()) {
    return make_status(StatusCode::kInvalidArgument, "{}: no preset is called '{}'; there are {}",
                       path, options.preset, fmt::join(kPresets, ", "));
  }
  if (!options.chroma.empty() && format != "y4m" && !(format == "mp4" && options.chroma == "420")) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: chroma is '{}', but {} has no choice of chroma; drop the setting", path,
                       options.chroma, format);
  }
  if (!options.chroma.empty() && options.chroma != "420" && options.chroma != "444") {
    return make_status(StatusCode::kInvalidArgument, "{}: chroma is '{}'; give 420 or 444", path,
                       options.chroma);
  }
  return {};
}

}  // namespace

CheckedSink::CheckedSink(std::string name, const VideoFormat& format)
    : name_(std::move(name)), format_(format) {}

Status CheckedSink::write(const RgbFrame& frame) {
  return without_exceptions([&] { return write_checked(frame); });
}

Status CheckedSink::finish() {
  return without_exceptions([&] { return finish_checked(); });
}

Status CheckedSink::write_checked(const RgbFrame& frame) {
  if (!failure_.ok()) return failure_;
  if (finished_) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: a frame came after the end: the file is finished with {} frames", name_,
                       frames_);
  }
  const std::string where = fmt::format("{}: frame {}", name_, frames_);
  UF_TRY(check_frame(frame, where));
  if (frame.width != format_.width || frame.height != format_.height) {
    return make_status(
        StatusCode::kInvalidArgument,
        "{}: the frame is {}x{}, but the video began as {}x{}; a video has one size, "
        "start another file",
        where, frame.width, frame.height, format_.width, format_.height);
  }
  failure_ = without_exceptions([&] { return write_frame(frame); },
                                [&] {
                                  return fmt::format("{}: no memory for a frame of {}x{}", where,
                                                     frame.width, frame.height);
                                });
  if (failure_.ok()) ++frames_;
  return failure_;
}

Status CheckedSink::finish_checked() {
  if (!failure_.ok()) return failure_;
  if (finished_) {
    return make_status(StatusCode::kInvalidArgument, "{}: is finished already", name_);
  }
  finished_ = true;
  failure_ =
      without_exceptions([&] { return finish_frames(); },
                         [&] { return fmt::format("{}: no memory to finish the file", name_); });
  return failure_;
}

namespace {

Result<std::unique_ptr<FrameSink>> open_checked(const SinkOptions& options,
                                                const VideoFormat& format) {
  if (options.path.empty()) {
    return Status(StatusCode::kInvalidArgument, "the output path is empty; name a file");
  }
  if (options.path.find('\0') != std::string::npos) {
    return Status(StatusCode::kInvalidArgument, "the output path holds a zero byte");
  }
  UF_TRY(check_video_format(format, options.path));
  const std::string container =
      options.format.empty() ? format_from_path(options.path) : to_lower(options.format);
  UF_TRY(check_options(options, container));
  UF_TRY(check_metadata(options.metadata, options.path));
  if (container == "mp4") return open_mp4_sink(options, format);
  if (container == "y4m") return open_y4m_sink(options, format);
  if (container == "raw") return open_raw_sink(options, format);
  if (container == "png") return open_png_sink(options, format);
  if (container.empty()) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: the ending does not say what to write; end the path in .mp4, .y4m, "
                       ".png, .rgb or /, or give a format (mp4, y4m, png, raw)",
                       options.path);
  }
  return make_status(StatusCode::kInvalidArgument,
                     "{}: no format is called '{}'; there are mp4, y4m, png and raw", options.path,
                     options.format);
}

}  // namespace

Result<std::unique_ptr<FrameSink>> open_sink(const SinkOptions& options,
                                             const VideoFormat& format) {
  return without_exceptions([&] { return open_checked(options, format); },
                            [&] {
                              return fmt::format("{}: no memory for frames of {}x{}", options.path,
                                                 format.width, format.height);
                            });
}

}  // namespace ultraflash

// A folder of numbered PNG files, one a frame.
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "core/check.h"
#include "core/output_file.h"
#include "core/system_error.h"
#include "media/image.h"
#include "media/picture_names.h"
#include "media/sinks.h"

namespace ultraflash {
namespace {

class PngSink final : public CheckedSink {
 public:
  PngSink(const std::string& path, PicturePattern pattern, const VideoFormat& format)
      : CheckedSink(path, format), pattern_(std::move(pattern)) {}

  [[nodiscard]] SinkStats stats() const override { return {frames(), bytes_written_}; }
  [[nodiscard]] std::string name() const override { return "png"; }

 private:
  Status write_frame(const RgbFrame& frame) override {
    UF_ASSIGN(const std::vector<uint8_t> bytes, encode_png(frame, kFastPng));
    UF_ASSIGN(OutputFile file, OutputFile::create(pattern_.path(frames()), {.buffer_bytes = 0}));
    const Status written = file.write(bytes);
    if (!written.ok()) {
      return make_status(written.code(), "{}; the {} pictures before are complete",
                         written.message(), frames());
    }
    bytes_written_ += file.bytes_written();
    // Waiting for the disk after every picture would cost more than the picture.
    return file.commit(/*durable=*/false);
  }
  Status finish_frames() override { return {}; }

  PicturePattern pattern_;
  int64_t bytes_written_ = 0;
};

}  // namespace

Result<std::unique_ptr<FrameSink>> open_png_sink(const SinkOptions& options,
                                                 const VideoFormat& format) {
  const std::string& path = options.path;
  if (is_standard_output(path)) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: pictures cannot go to standard output; use y4m or raw there", path);
  }
  // Says early that libpng is missing.
  constexpr uint8_t kPixel[3] = {};
  UF_TRY(encode_png(RgbFrame::contiguous(kPixel, 1, 1)).status());

  struct stat info {};
  const bool exists = ::stat(path.c_str(), &info) == 0;
  if (path.ends_with('/') || (exists && S_ISDIR(info.st_mode))) {
    if (!exists && ::mkdir(path.c_str(), 0777) != 0) {
      return system_error(errno, path, "the folder cannot be made");
    }
    return std::unique_ptr<FrameSink>(
        std::make_unique<PngSink>(path, PicturePattern::in_folder(path), format));
  }
  UF_ASSIGN(PicturePattern pattern, PicturePattern::parse(path));
  const std::string folder = pattern.folder();
  if (::stat(folder.c_str(), &info) != 0) {
    return system_error(errno, folder, "the folder for the pictures cannot be used");
  }
  if (!S_ISDIR(info.st_mode)) {
    return make_status(StatusCode::kInvalidArgument, "{}: is a file, expected a folder", folder);
  }
  return std::unique_ptr<FrameSink>(std::make_unique<PngSink>(path, std::move(pattern), format));
}

}  // namespace ultraflash

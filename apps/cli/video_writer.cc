#include "video_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>

#include "media/image.h"
#include "ultraflash/recipe.h"
#include "ultraflash/version.h"

namespace ultraflash::cli {
namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

Result<std::unique_ptr<FrameSink>> VideoWriter::open_sink_at(const std::string& prompt,
                                                             const std::string& path, int64_t width,
                                                             int64_t height) const {
  nlohmann::ordered_json stored;
  stored["version"] = fmt::format("{} ({})", version(), commit());
  stored["settings"] = settings_.stored(prompt);
  stored["device"] = info_.device;
  stored["dtype"] = info_.dtype;
  stored["attention"] = info_.attention;
  stored["fp8_sums"] = info_.fp8_sums;
  stored["sources"] = info_.sources;
  SinkOptions options;
  options.path = path;
  options.format = settings_.format;
  options.codec = settings_.codec;
  options.crf = settings_.crf;
  options.bitrate = settings_.bitrate;
  options.preset = settings_.preset;
  options.metadata = {{"title", prompt},
                      {"ultraflash_version", stored["version"].get<std::string>()},
                      {"ultraflash_recipe", engine_.recipe().name()},
                      {"ultraflash_prompt", prompt},
                      {"ultraflash_seed", fmt::format("{}", settings_.stream.seed)},
                      {"ultraflash_settings", dump_json(stored, -1)}};
  return open_sink(
      options, {width * settings_.enlarge, height * settings_.enlarge, info_.frames_per_second, 1});
}

Status VideoWriter::open(const std::string& prompt, const std::string& path,
                         const std::string& low_resolution_path) {
  info_ = engine_.info();
  written_ = Written();
  UF_ASSIGN(sink_, open_sink_at(prompt, path, info_.width, info_.height));
  small_.reset();
  if (!low_resolution_path.empty()) {
    UF_ASSIGN(small_, open_sink_at(prompt, low_resolution_path, info_.width / info_.scale,
                                   info_.height / info_.scale));
  }
  written_.path = path;
  written_.low_resolution_path = low_resolution_path;
  written_.sink = sink_->name();
  written_.width = info_.width * settings_.enlarge;
  written_.height = info_.height * settings_.enlarge;
  return {};
}

Result<Written> VideoWriter::run(Session& session, ProgressLine& progress) {
  const auto begin = std::chrono::steady_clock::now();
  const int64_t planned = session.planned_frames();
  Status failed;
  for (;;) {
    const Result<Frames> frames = session.next();
    if (!frames.ok()) {
      written_.outcome = frames.status();
      break;
    }
    if (written_.frames == 0) written_.first_seconds = seconds_since(begin);
    failed = write(*frames);
    if (!failed.ok()) {
      session.cancel();
      break;
    }
    written_.frames += frames->count;
    report(progress, planned, seconds_since(begin));
  }
  progress.finish();
  if (written_.frames == 0) {
    // An empty file would be of no use; the sinks remove what they began.
    const Status nothing = sink_->finish();
    if (small_) (void)small_->finish();
    if (!failed.ok()) return failed;
    const bool stopped = written_.outcome.code() == StatusCode::kEnd && !nothing.ok();
    return stopped ? Status(StatusCode::kCancelled,
                            fmt::format("{}: stopped before the first frame, so nothing was "
                                        "written",
                                        written_.path))
                   : written_.outcome;
  }
  const Status finished = sink_->finish();
  if (small_) {
    const Status small_finished = small_->finish();
    if (failed.ok() && finished.ok()) failed = small_finished;
  }
  UF_TRY(failed);
  UF_TRY(finished);
  written_.seconds = seconds_since(begin);
  written_.bytes = sink_->stats().bytes_written;
  return written_;
}

Status VideoWriter::write(const Frames& frames) {
  const auto put = [this](FrameSink& sink, const RgbFrame& frame) -> Status {
    if (settings_.enlarge == 1) return sink.write(frame);
    UF_ASSIGN(const RgbImage large,
              resize(frame, frame.width * settings_.enlarge, frame.height * settings_.enlarge));
    return sink.write(large.view());
  };
  for (int64_t i = 0; i < frames.count; ++i) {
    UF_TRY(
        put(*sink_, RgbFrame::contiguous(frames.picture(i).data(), frames.width, frames.height)));
  }
  for (int64_t i = 0; small_ && i < frames.low_resolution_count; ++i) {
    UF_TRY(put(*small_,
               RgbFrame::contiguous(frames.low_resolution_picture(i).data(),
                                    frames.low_resolution_width, frames.low_resolution_height)));
  }
  return {};
}

void VideoWriter::report(ProgressLine& progress, int64_t planned, double seconds) const {
  const int64_t done = written_.frames;
  const double rate = static_cast<double>(done) / std::max(seconds, 1e-9);
  if (planned == 0) {
    progress.update(
        -1.0, fmt::format("{} frames ({:.1f} s of video), {:.1f} frames/s", done,
                          static_cast<double>(done) / static_cast<double>(info_.frames_per_second),
                          rate));
    return;
  }
  const double left = static_cast<double>(planned - done) / std::max(rate, 1e-9);
  progress.update(
      static_cast<double>(done) / static_cast<double>(planned),
      fmt::format("{} of {} frames, {:.1f} frames/s, {:.0f} s left", done, planned, rate, left));
}

}  // namespace ultraflash::cli

#include "train/eval/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>
#include <utility>

#include "core/check.h"
#include "media/frame_sink.h"
#include "media/video_reader.h"
#include "train/world/render.h"

namespace ultraflash::world {
namespace {

constexpr int64_t kSheetFrames = 6;

// The frames of one window as they come in.
struct Window {
  int64_t begin = 0;
  int64_t end = 0;
  std::vector<uint8_t> pixels;
  int64_t frames = 0;
};

ClipResult measure_window(const CaptionLine& line, const VideoFormat& format, const Window& window,
                          bool sheet_frames) {
  ClipResult result;
  result.file = line.file;
  result.caption = line.caption;
  if (window.frames * 2 < window.end - window.begin || window.frames < 8) return result;
  const ClipView clip = {window.pixels.data(), window.frames, format.width, format.height};
  result.measured = true;
  result.seen = measure(clip, std::ssize(line.scene.objects));
  result.checks = compare(line.scene, result.seen);
  for (int64_t k = 0; sheet_frames && k < kSheetFrames; ++k) {
    RgbImage image = RgbImage::black(format.width, format.height);
    std::memcpy(image.pixels.data(), clip.frame(k * (clip.frames - 1) / (kSheetFrames - 1)),
                image.pixels.size());
    result.frames.push_back(std::move(image));
  }
  return result;
}

Result<std::vector<ClipResult>> measure_file(const EvalOptions& options, const CaptionLine& line) {
  const std::string path = (std::filesystem::path(options.folder) / line.file).string();
  UF_ASSIGN(VideoReader reader, VideoReader::open(path));
  const VideoFormat format = reader.info().format;
  if (format.width < kBaseWidth || format.height < kBaseHeight) {
    return make_status(StatusCode::kInvalidArgument, "{}: {}x{} is below {}x{}", path, format.width,
                       format.height, kBaseWidth, kBaseHeight);
  }
  const double fps = format.fps_num > 0 ? format.fps() : static_cast<double>(kFramesPerSecond);
  std::vector<Window> windows;
  int64_t last = 0;
  for (const double at : options.at) {
    const int64_t begin = std::llround(at * fps);
    windows.push_back(
        {begin, begin + std::max<int64_t>(8, std::llround(options.seconds * fps)), {}, 0});
    last = std::max(last, windows.back().end);
  }
  const auto bytes = static_cast<size_t>(format.width * format.height * 3);
  for (int64_t index = 0; index < last; ++index) {
    if (options.interrupted && options.interrupted()) {
      return make_status(StatusCode::kCancelled, "stopped before {} was measured", path);
    }
    UF_ASSIGN(const std::optional<VideoFrame> frame, reader.next());
    if (!frame.has_value()) break;
    for (Window& window : windows) {
      if (index < window.begin || index >= window.end) continue;
      const size_t offset = window.pixels.size();
      window.pixels.resize(offset + bytes);
      for (int64_t y = 0; y < format.height; ++y) {
        std::memcpy(window.pixels.data() + offset + static_cast<size_t>(y * format.width * 3),
                    frame->rgb.row(y), static_cast<size_t>(format.width * 3));
      }
      ++window.frames;
    }
  }
  std::vector<ClipResult> results;
  for (const Window& window : windows) {
    results.push_back(
        measure_window(line, format, window, options.sheet_frames && results.empty()));
  }
  return results;
}

// A clip that cannot be read has nothing right.
ClipResult unread(const CaptionLine& line, std::string failure) {
  ClipResult result;
  result.file = line.file;
  result.caption = line.caption;
  result.failure = std::move(failure);
  result.checks = compare(line.scene, {});
  for (Check& check : result.checks) {
    check.right = false;
    check.seen = "nothing";
  }
  return result;
}

// Whether measuring the other files has no sense either.
bool ends_all(StatusCode code) {
  return code == StatusCode::kCancelled || code == StatusCode::kOutOfMemory ||
         code == StatusCode::kInternal;
}

}  // namespace

Result<EvalReport> evaluate(const EvalOptions& options) {
  UF_ASSIGN(const std::vector<CaptionLine> lines,
            read_captions((std::filesystem::path(options.folder) / "captions.jsonl").string()));
  EvalReport report;
  report.folder = options.folder;
  for (const double at : options.at) {
    report.windows.push_back({at, {}, std::vector<ClipResult>(lines.size())});
  }
  std::atomic<size_t> next = 0;
  std::mutex mutex;
  Status failure;
  Status first_unread;
  int64_t read = 0;
  int64_t done = 0;
  const auto work = [&] {
    for (size_t i = next++; i < lines.size(); i = next++) {
      Result<std::vector<ClipResult>> results = [&]() -> Result<std::vector<ClipResult>> {
        try {
          return measure_file(options, lines[i]);
        } catch (const Error& error) {
          return error.status();
        } catch (const std::bad_alloc&) {
          return make_status(StatusCode::kOutOfMemory, "{}: out of memory", lines[i].file);
        }
      }();
      const std::lock_guard lock(mutex);
      if (!results.ok() && ends_all(results.status().code())) {
        if (failure.ok()) failure = results.status();
        next = lines.size();
        return;
      }
      if (!results.ok() && first_unread.ok()) first_unread = results.status();
      read += results.ok() ? 1 : 0;
      for (size_t w = 0; w < report.windows.size(); ++w) {
        report.windows[w].clips[i] =
            results.ok() ? std::move((*results)[w])
                         : unread(lines[i], std::string(results.status().message()));
      }
      ++done;
      if (options.progress) options.progress(done, std::ssize(lines));
    }
  };
  const unsigned processors = std::max(1U, std::thread::hardware_concurrency());
  const size_t count =
      std::min(lines.size(), options.threads > 0 ? static_cast<size_t>(options.threads)
                                                 : static_cast<size_t>(processors));
  std::vector<std::thread> threads;
  for (size_t i = 1; i < count; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (!failure.ok()) return failure;
  if (read == 0 && !first_unread.ok()) return first_unread;
  for (EvalWindow& window : report.windows) {
    for (size_t i = 0; i < lines.size(); ++i) {
      const ClipResult& clip = window.clips[i];
      if (clip.measured || !clip.failure.empty()) window.table.add(lines[i].scene, clip.checks);
    }
  }
  return report;
}

Status write_eval_set(const EvalSetOptions& options) {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::create_directories(options.folder, error);
  if (error) return make_status(StatusCode::kIo, "{}: {}", options.folder, error.message());
  const std::string path = (fs::path(options.folder) / "captions.jsonl").string();
  std::ofstream list(path, std::ios::binary);
  const std::string prompts_path = (fs::path(options.folder) / "captions.txt").string();
  std::ofstream prompts(prompts_path, std::ios::binary);
  for (int64_t i = 0; i < options.count; ++i) {
    const auto index = static_cast<uint64_t>(i);
    const Scene scene = sample_scene(options.seed, index, options.split);
    CaptionLine line;
    line.file = options.count > 1 ? fmt::format("clip-{:04}.mp4", i) : "clip.mp4";
    line.caption = caption(scene, options.seed, index, 0, CaptionDetail::kFull);
    line.scene = name_scene(scene);
    list << caption_line_json(line) << '\n';
    prompts << line.caption << '\n';
    if (options.render_scale == 0) continue;
    const RenderWindow window = RenderWindow::whole(options.render_scale, 0, 1);
    SinkOptions sink_options;
    sink_options.path = (fs::path(options.folder) / line.file).string();
    UF_ASSIGN(const std::unique_ptr<FrameSink> sink,
              open_sink(sink_options, {window.width, window.height, kFramesPerSecond, 1}));
    // A second at a time, so that streams of minutes fit into memory.
    for (int64_t first = 0; first < options.frames; first += kFramesPerSecond) {
      RenderWindow part = window;
      part.first_frame = first;
      part.frames = std::min(kFramesPerSecond, options.frames - first);
      const std::vector<uint8_t> pixels = render(scene, part);
      for (int64_t f = 0; f < part.frames; ++f) {
        UF_TRY(sink->write(
            RgbFrame::contiguous(pixels.data() + f * window.bytes(), window.width, window.height)));
      }
    }
    UF_TRY(sink->finish());
  }
  list.flush();
  if (!list) return make_status(StatusCode::kIo, "{}: writing failed", path);
  prompts.flush();
  if (!prompts) return make_status(StatusCode::kIo, "{}: writing failed", prompts_path);
  return {};
}

}  // namespace ultraflash::world

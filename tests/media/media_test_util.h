// What the tests of the media layer share.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "media/frame.h"
#include "media/frame_sink.h"
#include "media/image.h"
#include "media/video_reader.h"
#include "support/files.h"
#include "support/status.h"

namespace ultraflash::media_test {

/// A smooth pattern that moves with `index`: colours within the YUV gamut, no sharp edges.
inline RgbImage moving_pattern(int64_t width, int64_t height, int64_t index) {
  RgbImage image = RgbImage::black(width, height);
  const double t = static_cast<double>(index);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const double u = static_cast<double>(x) / 40.0;
      const double v = static_cast<double>(y) / 40.0;
      uint8_t* pixel = image.row(y) + 3 * x;
      pixel[0] = static_cast<uint8_t>(128.0 + 60.0 * std::sin(u + 0.12 * t));
      pixel[1] = static_cast<uint8_t>(120.0 + 50.0 * std::sin(v - 0.09 * t + u));
      pixel[2] = static_cast<uint8_t>(130.0 + 55.0 * std::cos(u - v + 0.07 * t));
    }
  }
  return image;
}

inline RgbImage noise(int64_t width, int64_t height, uint32_t seed) {
  RgbImage image = RgbImage::black(width, height);
  std::mt19937 random(seed);
  for (uint8_t& value : image.pixels) value = static_cast<uint8_t>(random());
  return image;
}

/// Peak signal-to-noise ratio in dB; infinity for equal pictures.
inline double psnr(const RgbFrame& a, const RgbFrame& b) {
  double sum = 0.0;
  for (int64_t y = 0; y < a.height; ++y) {
    for (int64_t i = 0; i < 3 * a.width; ++i) {
      const double difference = static_cast<double>(a.row(y)[i]) - static_cast<double>(b.row(y)[i]);
      sum += difference * difference;
    }
  }
  const double mean = sum / static_cast<double>(3 * a.width * a.height);
  return 10.0 * std::log10(255.0 * 255.0 / mean);
}

inline int largest_difference(const RgbFrame& a, const RgbFrame& b) {
  int largest = 0;
  for (int64_t y = 0; y < a.height; ++y) {
    for (int64_t i = 0; i < 3 * a.width; ++i) {
      largest = std::max(largest, std::abs(int{a.row(y)[i]} - int{b.row(y)[i]}));
    }
  }
  return largest;
}

inline RgbImage copy_of(const RgbFrame& frame) {
  RgbImage image = RgbImage::black(frame.width, frame.height);
  for (int64_t y = 0; y < frame.height; ++y) {
    std::copy_n(frame.row(y), 3 * frame.width, image.row(y));
  }
  return image;
}

inline std::vector<uint8_t> read_bytes(const std::filesystem::path& path) {
  const std::string text = read_text(path);
  return {text.begin(), text.end()};
}

inline void write_bytes(const std::filesystem::path& path, const std::vector<uint8_t>& bytes) {
  write_text(path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

/// All frames of a video, and how the reading ended.
struct ReadVideo {
  Status status;  // ok: to the end
  VideoInfo info;
  std::vector<RgbImage> frames;
  std::vector<double> times_s;
};

inline ReadVideo drain(Result<VideoReader> reader) {
  ReadVideo video;
  video.status = reader.status();
  if (!reader.ok()) return video;
  video.info = reader->info();
  while (true) {
    Result<std::optional<VideoFrame>> frame = reader->next();
    video.status = frame.status();
    if (!frame.ok() || !frame->has_value()) return video;
    EXPECT_EQ((*frame)->index, static_cast<int64_t>(video.frames.size()));
    EXPECT_EQ((*frame)->rgb.width, video.info.format.width);
    EXPECT_EQ((*frame)->rgb.height, video.info.format.height);
    video.frames.push_back(copy_of((*frame)->rgb));
    video.times_s.push_back((*frame)->time_s);
  }
}

inline ReadVideo read_video(const std::string& path, const ReaderLimits& limits = {}) {
  return drain(VideoReader::open(path, limits));
}

/// Writes frames of moving_pattern(); the first failure, ok if there was none.
inline Status write_pattern(const SinkOptions& options, const VideoFormat& format, int64_t frames) {
  UF_ASSIGN(const auto sink, open_sink(options, format));
  for (int64_t i = 0; i < frames; ++i) {
    UF_TRY(sink->write(moving_pattern(format.width, format.height, i).view()));
  }
  return sink->finish();
}

inline bool has_ffmpeg() { return !available_video_encoders().empty(); }
inline bool has_png() {
  constexpr uint8_t kPixel[3] = {};
  return encode_png(RgbFrame::contiguous(kPixel, 1, 1)).ok();
}

/// What a program prints; nothing when it cannot be run.
inline std::string output_of(const std::string& command) {
  std::string output;
  FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return output;
  char piece[4096];
  while (const size_t got = std::fread(piece, 1, sizeof(piece), pipe)) output.append(piece, got);
  ::pclose(pipe);
  return output;
}

/// Runs `body` in a process of its own and returns what waitpid() says: 0 if it came to its end.
/// `meanwhile` runs here.
inline int in_child(const std::function<void()>& body,
                    const std::function<void()>& meanwhile = {}) {
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    ::_exit(0);
  }
  if (meanwhile) meanwhile();
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

inline bool has_ffprobe() {
  return output_of("ffprobe -version").find("ffprobe version") != std::string::npos;
}

#if defined(__has_feature)
#define UF_TEST_HAS_FEATURE(x) __has_feature(x)
#else
#define UF_TEST_HAS_FEATURE(x) 0
#endif

constexpr bool address_sanitizer() {
#if defined(__SANITIZE_ADDRESS__) || UF_TEST_HAS_FEATURE(address_sanitizer)
  return true;
#else
  return false;
#endif
}

constexpr bool thread_sanitizer() {
#if defined(__SANITIZE_THREAD__) || UF_TEST_HAS_FEATURE(thread_sanitizer)
  return true;
#else
  return false;
#endif
}

}  // namespace ultraflash::media_test

#define UF_REQUIRE_FFMPEG()                                                    \
  do {                                                                         \
    if (!media_test::has_ffmpeg()) GTEST_SKIP() << "this build has no FFmpeg"; \
  } while (false)
#define UF_REQUIRE_PNG()                                                    \
  do {                                                                      \
    if (!media_test::has_png()) GTEST_SKIP() << "this build has no libpng"; \
  } while (false)

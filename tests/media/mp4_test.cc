#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "media/frame_sink.h"
#include "media/media_test_util.h"
#include "media/recode.h"
#include "media/video_reader.h"

namespace ultraflash {
namespace {

using media_test::moving_pattern;
using media_test::noise;
using media_test::output_of;
using media_test::read_bytes;
using media_test::read_video;
using media_test::ReadVideo;

SinkOptions mp4(const std::string& path, const std::string& codec = "auto") {
  SinkOptions options;
  options.path = path;
  options.codec = codec;
  return options;
}

int64_t resident_kib() {
  std::ifstream stream("/proc/self/statm");
  int64_t total = 0;
  int64_t resident = 0;
  stream >> total >> resident;
  return resident * (::sysconf(_SC_PAGESIZE) / 1024);
}

TEST(Mp4Test, RoundTripsInEveryEncoderWithExactTimes) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  for (const std::string& codec : available_video_encoders()) {
    for (const auto& [num, den] : {std::pair<int64_t, int64_t>{16, 1}, {30000, 1001}, {25, 2}}) {
      const VideoFormat format{192, 108, num, den};
      constexpr int64_t kFrames = 81;
      const std::string path = folder / (codec + ".mp4");
      auto sink = open_sink(mp4(path, codec), format);
      ASSERT_OK(sink.status());
      for (int64_t i = 0; i < kFrames; ++i) {
        ASSERT_OK((*sink)->write(moving_pattern(192, 108, i).view()));
      }
      EXPECT_TRUE(std::filesystem::exists(path + ".part"));
      ASSERT_OK((*sink)->finish());
      EXPECT_FALSE(std::filesystem::exists(path + ".part"));
      EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
      EXPECT_NE((*sink)->name().find(codec), std::string::npos) << (*sink)->name();
      EXPECT_EQ((*sink)->stats().frames, kFrames);
      EXPECT_GT((*sink)->stats().bytes_written, 1000);

      const ReadVideo video = read_video(path);
      ASSERT_OK(video.status);
      ASSERT_EQ(video.frames.size(), static_cast<size_t>(kFrames)) << codec;
      EXPECT_EQ(video.info.format.fps_num, num);
      EXPECT_EQ(video.info.format.fps_den, den);
      EXPECT_EQ(video.info.frames, kFrames);
      EXPECT_EQ(video.info.container, "mp4");
      EXPECT_EQ(video.info.codec, codec == "mpeg4" ? "mpeg4" : "h264");
      EXPECT_EQ(video.info.duration_s,
                static_cast<double>(kFrames * den) / static_cast<double>(num));
      double worst = 1000.0;
      for (int64_t i = 0; i < kFrames; ++i) {
        const auto at = static_cast<size_t>(i);
        EXPECT_EQ(video.times_s[at], static_cast<double>(i * den) / static_cast<double>(num))
            << codec << " frame " << i;
        worst = std::min(
            worst, media_test::psnr(video.frames[at].view(), moving_pattern(192, 108, i).view()));
      }
      EXPECT_GT(worst, 40.0) << codec;
      RecordProperty("worst_psnr_" + codec, std::to_string(worst));
    }
  }
}

TEST(Mp4Test, FfprobeSeesExactDurationAndColourTags) {
  UF_REQUIRE_FFMPEG();
  if (!media_test::has_ffprobe()) GTEST_SKIP() << "there is no ffprobe program";
  const TempFolder folder;
  for (const std::string& codec : available_video_encoders()) {
    const std::string path = folder / (codec + ".mp4");
    ASSERT_OK(media_test::write_pattern(mp4(path, codec), {96, 64, 16, 1}, 37));
    const std::string stream = output_of(
        "ffprobe -v error -count_frames -select_streams v -show_streams -show_format " + path);
    for (const char* expected :
         {"nb_frames=37", "nb_read_frames=37", "duration=2.312500", "start_time=0.000000",
          "avg_frame_rate=16/1", "r_frame_rate=16/1", "pix_fmt=yuv420p", "color_range=tv",
          "color_space=bt709", "color_transfer=bt709", "color_primaries=bt709"}) {
      EXPECT_NE(stream.find(expected), std::string::npos) << codec << " lacks " << expected << "\n"
                                                          << stream;
    }
    const std::string listed = output_of(
        "ffprobe -v error -select_streams v -show_entries frame=pts_time -of csv=p=0 " + path);
    std::string times;  // without the commas and empty lines that side data leaves
    for (const char c : listed) {
      if (c != ',' && (c != '\n' || (!times.empty() && times.back() != '\n'))) times += c;
    }
    std::string expected;
    for (int i = 0; i < 37; ++i) {
      char line[32];
      std::snprintf(line, sizeof(line), "%.6f\n", i / 16.0);
      expected += line;
    }
    EXPECT_EQ(times, expected);
  }
}

TEST(Mp4Test, TheIndexStandsInFrontOfTheData) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  ASSERT_OK(media_test::write_pattern(mp4(folder / "a.mp4"), {64, 48, 16, 1}, 20));
  const std::vector<uint8_t> bytes = read_bytes(folder / "a.mp4");
  const std::string text(bytes.begin(), bytes.end());
  ASSERT_NE(text.find("moov"), std::string::npos);
  EXPECT_LT(text.find("moov"), text.find("mdat"));
  EXPECT_EQ(text.find("moof"), std::string::npos);
}

TEST(Mp4Test, TheSameFramesGiveTheSameFile) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  for (const char* name : {"a.mp4", "b.mp4"}) {
    ASSERT_OK(media_test::write_pattern(mp4(folder / name), {64, 48, 16, 1}, 20));
  }
  EXPECT_EQ(read_bytes(folder / "a.mp4"), read_bytes(folder / "b.mp4"));
}

TEST(Mp4Test, PureColoursKeepTheirValues) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  constexpr uint8_t kColours[][3] = {{255, 0, 0}, {0, 255, 0},     {0, 0, 255},  {255, 255, 255},
                                     {0, 0, 0},   {128, 128, 128}, {180, 90, 40}};
  SinkOptions options = mp4(folder / "a.mp4");
  options.crf = 1;
  auto sink = open_sink(options, {64, 64, 16, 1});
  ASSERT_OK(sink.status());
  for (const auto& colour : kColours) {
    RgbImage image = RgbImage::black(64, 64);
    for (size_t i = 0; i < image.pixels.size(); ++i) image.pixels[i] = colour[i % 3];
    ASSERT_OK((*sink)->write(image.view()));
  }
  ASSERT_OK((*sink)->finish());
  const ReadVideo video = read_video(folder / "a.mp4");
  ASSERT_OK(video.status);
  ASSERT_EQ(video.frames.size(), std::size(kColours));
  for (size_t i = 0; i < video.frames.size(); ++i) {
    const uint8_t* pixel = video.frames[i].view().row(32) + 3 * 32;
    for (int c = 0; c < 3; ++c) {
      EXPECT_NEAR(int{pixel[c]}, int{kColours[i][c]}, 3) << "colour " << i << " component " << c;
    }
  }
}

TEST(Mp4Test, MetadataRoundTrips) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  std::string json = "{\"prompt\": \"caf\xc3\xa9 \xf0\x9f\x8e\xac\", \"values\": [";
  while (json.size() < 6000) json += "0.123456789, ";
  json += "0]}";
  const Metadata metadata = {{"title", "A fox; a \"quote\" = \\ and\na line"},
                             {"comment", "two"},
                             {"ultraflash.settings", json},
                             {"Seed", "42"},
                             {"com.example/x:y", "%s %n"}};
  for (const std::string& codec : available_video_encoders()) {
    SinkOptions options = mp4(folder / (codec + ".mp4"), codec);
    options.metadata = metadata;
    ASSERT_OK(media_test::write_pattern(options, {64, 48, 16, 1}, 5));
    const Result<Metadata> back = read_metadata(options.path);
    ASSERT_OK(back.status());
    EXPECT_EQ(*back, metadata);
    EXPECT_EQ(read_video(options.path).info.metadata, metadata);
  }
  // An unfinished file carries it as well.
  {
    SinkOptions options = mp4(folder / "unfinished.mp4");
    options.metadata = metadata;
    auto sink = open_sink(options, {64, 48, 16, 1});
    ASSERT_OK(sink.status());
    for (int64_t i = 0; i < 100; ++i) ASSERT_OK((*sink)->write(moving_pattern(64, 48, i).view()));
  }
  const Result<Metadata> unfinished = read_metadata(folder / "unfinished.mp4.part");
  ASSERT_OK(unfinished.status());
  EXPECT_EQ(*unfinished, metadata);
  EXPECT_EQ(read_metadata(folder / "no.mp4").status().code(), StatusCode::kNotFound);
}

TEST(Mp4Test, UnusualPathsWork) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  for (const char* name :
       {"a b.mp4", "http:x.mp4", "-x.mp4", "%d.mp4", "\xc3\xa9'\".mp4", ".MP4"}) {
    ASSERT_OK(media_test::write_pattern(mp4(folder / name), {32, 32, 16, 1}, 3));
    EXPECT_EQ(read_video(folder / name).frames.size(), 3U) << name;
  }
}

TEST(Mp4Test, AnExistingFileIsReplacedOnlyAtTheEnd) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  const std::string path = folder / "a.mp4";
  write_text(path, "old");
  auto sink = open_sink(mp4(path), {64, 48, 16, 1});
  ASSERT_OK(sink.status());
  for (int64_t i = 0; i < 60; ++i) ASSERT_OK((*sink)->write(moving_pattern(64, 48, i).view()));
  EXPECT_EQ(read_bytes(path).size(), 3U);
  ASSERT_OK((*sink)->finish());
  EXPECT_EQ(read_video(path).frames.size(), 60U);
}

TEST(Mp4Test, RefusalsSayWhatWouldWork) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  const auto refused = [&](const SinkOptions& options, const VideoFormat& format,
                           const char* part) {
    const Status status = open_sink(options, format).status();
    EXPECT_NE(status.message().find(part), std::string::npos) << status.to_string();
    return status.code();
  };
  const VideoFormat format{64, 48, 16, 1};
  EXPECT_EQ(refused(mp4(folder / "a.mp4"), {63, 48, 16, 1}, "62x48"), StatusCode::kInvalidArgument);
  EXPECT_EQ(refused(mp4(folder / "a.mp4"), {64, 47, 16, 1}, "64x46"), StatusCode::kInvalidArgument);
  EXPECT_EQ(refused(mp4(folder / "a.mp4", "av1"), format, "x264"), StatusCode::kInvalidArgument);
  EXPECT_EQ(refused(mp4("/dev/null", "auto"), format, "ending"), StatusCode::kInvalidArgument);
  SinkOptions options = mp4("/dev/null");
  options.format = "mp4";
  EXPECT_EQ(refused(options, format, "pipe or a device"), StatusCode::kInvalidArgument);
  options = mp4(folder / "a.mp4");
  options.preset = "warp";
  EXPECT_EQ(refused(options, format, "veryfast"), StatusCode::kInvalidArgument);
  options.preset = "fast";
  options.codec = "mpeg4";
  EXPECT_EQ(refused(options, format, "x264"), StatusCode::kInvalidArgument);
  options = mp4(folder / "a.mp4");
  options.crf = 52;
  EXPECT_EQ(refused(options, format, "51"), StatusCode::kInvalidArgument);
  options.crf = 20;
  options.bitrate = 1000;
  EXPECT_EQ(refused(options, format, "choose one"), StatusCode::kInvalidArgument);
  for (const char* codec : {"x264", "openh264", "mpeg4"}) {
    const auto have = available_video_encoders();
    if (std::find(have.begin(), have.end(), codec) != have.end()) continue;
    EXPECT_EQ(refused(mp4(folder / "a.mp4", codec), format, codec), StatusCode::kUnsupported)
        << "a required encoder must not be replaced by another";
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path())) << "a refusal left a file behind";

  auto sink = open_sink(mp4(folder / "none.mp4"), format);
  ASSERT_OK(sink.status());
  EXPECT_EQ((*sink)->finish().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Mp4Test, BitrateIsKept) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  for (const std::string& codec : available_video_encoders()) {
    SinkOptions options = mp4(folder / (codec + ".mp4"), codec);
    options.bitrate = 400'000;
    auto sink = open_sink(options, {128, 96, 16, 1});
    ASSERT_OK(sink.status());
    for (uint32_t i = 0; i < 160; ++i) ASSERT_OK((*sink)->write(noise(128, 96, i).view()));
    ASSERT_OK((*sink)->finish());
    const double bits = 8.0 * static_cast<double>(std::filesystem::file_size(options.path)) / 10.0;
    EXPECT_GT(bits, 250'000.0) << codec;
    EXPECT_LT(bits, 650'000.0) << codec;
  }
}

TEST(Mp4Test, AKilledWriterLeavesAPlayablePart) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  const int status = media_test::in_child([&] {
    auto sink = open_sink(mp4(folder / "a.mp4"), {96, 64, 16, 1});
    if (!sink.ok()) ::_exit(1);
    for (int64_t i = 0; i < 200; ++i) {
      if (!(*sink)->write(moving_pattern(96, 64, i).view()).ok()) ::_exit(2);
    }
    ::kill(::getpid(), SIGKILL);
  });
  ASSERT_TRUE(WIFSIGNALED(status)) << status;
  EXPECT_FALSE(std::filesystem::exists(folder / "a.mp4"));
  const ReadVideo video = read_video(folder / "a.mp4.part");
  EXPECT_OK(video.status);
  // At most a second waits for its fragment, and the encoder looks some frames ahead.
  ASSERT_GE(video.frames.size(), 150U);
  for (size_t i = 0; i < video.frames.size(); ++i) {
    EXPECT_EQ(video.times_s[i], static_cast<double>(i) / 16.0);
  }
  EXPECT_GT(media_test::psnr(video.frames[149].view(), moving_pattern(96, 64, 149).view()), 40.0);
  if (media_test::has_ffprobe()) {
    const std::string count = output_of(
        "ffprobe -v error -count_frames -show_entries stream=nb_read_frames -of csv=p=0 " +
        (folder / "a.mp4.part").string());
    EXPECT_EQ(count, std::to_string(video.frames.size()) + "\n");
  }
}

TEST(Mp4Test, AFullDiskLeavesAPlayablePart) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  const int status = media_test::in_child([&] {
    const rlimit limit{300'000, 300'000};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(1);
    auto sink = open_sink(mp4(folder / "a.mp4"), {96, 64, 16, 1});
    if (!sink.ok()) ::_exit(2);
    Status written;
    for (uint32_t i = 0; i < 500 && written.ok(); ++i) {
      written = (*sink)->write(noise(96, 64, i).view());
    }
    if (written.code() != StatusCode::kIo) ::_exit(3);
    if (written.message().find("a.mp4.part") == std::string::npos) ::_exit(4);
    if (written.message().find("plays as it is") == std::string::npos) ::_exit(5);
    if ((*sink)->finish().message() != written.message()) ::_exit(6);
  });
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "wait status " << status;
  EXPECT_FALSE(std::filesystem::exists(folder / "a.mp4"));
  EXPECT_LE(std::filesystem::file_size(folder / "a.mp4.part"), 300'000U);
  const ReadVideo video = read_video(folder / "a.mp4.part");
  EXPECT_OK(video.status);
  EXPECT_GE(video.frames.size(), 16U);
}

TEST(Mp4Test, WhenFinishingFailsThePartStaysAndTheOldFileToo) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  write_text(folder / "a.mp4", "old");
  std::filesystem::create_directory(folder / "a.mp4.tmp");  // in the way of the finished file
  const Status status = media_test::write_pattern(mp4(folder / "a.mp4"), {96, 64, 16, 1}, 40);
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find("all 40 frames are in " + (folder / "a.mp4.part").string()),
            std::string::npos)
      << status.message();
  EXPECT_EQ(read_bytes(folder / "a.mp4").size(), 3U);
  const ReadVideo video = read_video(folder / "a.mp4.part");
  EXPECT_OK(video.status);
  EXPECT_EQ(video.frames.size(), 40U);
  EXPECT_EQ(video.times_s.back(), 39.0 / 16.0);
}

TEST(Mp4Test, MemoryDoesNotGrowWithTheStream) {
  UF_REQUIRE_FFMPEG();
  if (media_test::address_sanitizer()) GTEST_SKIP() << "the address sanitizer keeps freed memory";
  const TempFolder folder;
  auto sink = open_sink(mp4(folder / "a.mp4"), {64, 64, 16, 1});
  ASSERT_OK(sink.status());
  const auto write = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ASSERT_OK((*sink)->write(moving_pattern(64, 64, i).view()));
    }
  };
  write(0, 400);
  const int64_t before = resident_kib();
  write(400, 2400);
  const int64_t growth = resident_kib() - before;
  RecordProperty("growth_kib", std::to_string(growth));
  // 2000 frames that were kept would be 24 MB as RGB and 12 MB as YUV.
  EXPECT_LT(growth, 2048) << "KiB for 2000 frames";
  ASSERT_OK((*sink)->finish());
  EXPECT_EQ(read_video(folder / "a.mp4").frames.size(), 2400U);
}

TEST(RecodeTest, GivesEveryFrameBackAtItsPlace) {
  std::vector<uint8_t> pixels;  // frame f is grey level 10 + 8 f
  constexpr int64_t kFrames = 30;
  constexpr int64_t kWidth = 51;
  constexpr int64_t kHeight = 37;
  for (int64_t f = 0; f < kFrames; ++f) {
    pixels.insert(pixels.end(), static_cast<size_t>(3 * kWidth * kHeight),
                  static_cast<uint8_t>(10 + 8 * f));
  }
  const std::vector<uint8_t> before = pixels;
  const VideoFormat format{kWidth, kHeight, 16, 1};
  const Status status = recode_h264(pixels, format, {.crf = 20, .gop = 12, .preset = "medium"});
  if (!can_recode()) {
    EXPECT_EQ(status.code(), StatusCode::kUnsupported);
    GTEST_SKIP() << status.message();
  }
  ASSERT_OK(status);
  for (size_t i = 0; i < pixels.size(); i += 97) {
    ASSERT_NEAR(pixels[i], before[i], 3) << "byte " << i;
  }
  std::vector<uint8_t> part(before.begin(), before.end() - 1);
  EXPECT_EQ(recode_h264(part, format, {}).code(), StatusCode::kInvalidArgument);
  part.clear();
  EXPECT_EQ(recode_h264(part, format, {}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(recode_h264(pixels, format, {.crf = 20, .gop = 12, .preset = "none"}).code(),
            StatusCode::kInvalidArgument);
}

TEST(Mp4Test, WithoutFfmpegTheSentenceSaysWhatToInstall) {
  if (media_test::has_ffmpeg()) GTEST_SKIP() << "this build has FFmpeg";
  const TempFolder folder;
  const Status status = open_sink(mp4(folder / "a.mp4"), {64, 48, 16, 1}).status();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("libavcodec-dev"), std::string::npos);
  write_text(folder / "a.mp4", "something");
  EXPECT_EQ(read_video(folder / "a.mp4").status.code(), StatusCode::kUnsupported);
  EXPECT_EQ(read_metadata(folder / "a.mp4").status().code(), StatusCode::kUnsupported);
}

}  // namespace
}  // namespace ultraflash

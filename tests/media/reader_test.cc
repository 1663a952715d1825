#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "media/frame_sink.h"
#include "media/media_test_util.h"
#include "media/video_reader.h"

namespace ultraflash {
namespace {

using media_test::drain;
using media_test::moving_pattern;
using media_test::output_of;
using media_test::read_bytes;
using media_test::read_video;
using media_test::ReadVideo;

bool has_ffmpeg_program() {
  return output_of("ffmpeg -version").find("ffmpeg version") != std::string::npos;
}

std::vector<uint8_t> small_mp4(const TempFolder& folder) {
  SinkOptions options;
  options.path = folder / "small.mp4";
  EXPECT_OK(media_test::write_pattern(options, {64, 48, 16, 1}, 12));
  return read_bytes(options.path);
}

TEST(ReaderTest, MissingEmptyAndForeignFilesAreTold) {
  const TempFolder folder;
  EXPECT_EQ(read_video("").status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(read_video(folder / "no.mp4").status.code(), StatusCode::kNotFound);
  write_text(folder / "empty.mp4", "");
  const Status empty = read_video(folder / "empty.mp4").status;
  EXPECT_EQ(empty.code(), StatusCode::kMalformed);
  EXPECT_NE(empty.message().find("is empty"), std::string::npos);
  UF_REQUIRE_FFMPEG();
  write_text(folder / "text.mp4", std::string(5000, 'a'));
  const Status text = read_video(folder / "text.mp4").status;
  EXPECT_EQ(text.code(), StatusCode::kMalformed);
  EXPECT_TRUE(text.message().starts_with((folder / "text.mp4").string())) << text.message();
}

// Formats that refer to other files or to the network must not be opened at all, whatever their
// names say.
TEST(ReaderTest, PlaylistsAndReferencesAreNotFollowed) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  const std::vector<uint8_t> video = small_mp4(folder);
  const std::string target = folder / "small.mp4";
  const struct {
    const char* name;
    std::string text;
  } kCases[] = {
      {"list.mp4", "ffconcat version 1.0\nfile '" + target + "'\n"},
      {"list.m3u8", "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n" + target +
                        "\n#EXT-X-ENDLIST\n"},
      {"list.mpd", "<?xml version=\"1.0\"?><MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\"></MPD>"},
      {"sdp.mp4",
       "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 "
       "RTP/AVP 96\na=rtpmap:96 H264/90000\n"},
      {"meta.mp4", ";FFMETADATA1\ntitle=x\n"},
      {"picture.mp4", "P6\n2 2\n255\n123456789012"},
  };
  for (const auto& [name, text] : kCases) {
    write_text(folder / name, text);
    const Status status = read_video(folder / name).status;
    EXPECT_EQ(status.code(), StatusCode::kMalformed) << name << ": " << status.to_string();
  }
}

TEST(ReaderTest, EveryCutOfAFileIsAnErrorOrShorter) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  const std::vector<uint8_t> whole = small_mp4(folder);
  for (size_t size = 1; size < whole.size(); size += 1 + whole.size() / 150) {
    const ReadVideo video =
        drain(VideoReader::open_memory(std::span(whole).first(size), "cut.mp4"));
    EXPECT_EQ(video.status.code(), StatusCode::kMalformed) << size << " of " << whole.size();
    EXPECT_TRUE(video.status.message().starts_with("cut.mp4: ")) << video.status.message();
    EXPECT_LT(video.frames.size(), 12U);
  }
}

// What a killed writer leaves may end anywhere: all whole fragments must come out.
TEST(ReaderTest, EveryCutOfAFragmentedFileGivesItsWholeFragments) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  SinkOptions options;
  options.path = folder / "a.mp4";
  auto sink = open_sink(options, {64, 48, 16, 1});
  ASSERT_OK(sink.status());
  for (int64_t i = 0; i < 120; ++i) ASSERT_OK((*sink)->write(moving_pattern(64, 48, i).view()));
  const std::vector<uint8_t> whole = read_bytes(options.path + ".part");
  const std::string text(whole.begin(), whole.end());
  std::vector<size_t> ends;  // of fragments: where the box after "moof" and "mdat" begins
  for (size_t at = text.find("moof"); at != std::string::npos; at = text.find("moof", at + 4)) {
    if (at > text.find("moof")) ends.push_back(at - 4);
  }
  ends.push_back(whole.size());
  ASSERT_GE(ends.size(), 4U);
  for (size_t i = 0; i < ends.size(); ++i) {
    const auto at_end = drain(VideoReader::open_memory(std::span(whole).first(ends[i]), "cut"));
    EXPECT_OK(at_end.status);
    EXPECT_GE(at_end.frames.size(), 15 * (i + 1));
    const auto inside =
        drain(VideoReader::open_memory(std::span(whole).first(ends[i] - 60), "cut"));
    EXPECT_LE(inside.frames.size(), at_end.frames.size());
    if (i > 0) {
      EXPECT_GE(inside.frames.size(), 15 * i) << inside.status.to_string();
    }
  }
}

TEST(ReaderTest, DamagedBytesNeverCrash) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  const std::vector<uint8_t> whole = small_mp4(folder);
  std::mt19937 random(1);
  int told = 0;
  ReaderLimits limits;
  limits.max_pixels = 1 << 20;
  limits.timeout_ms = 5000;
  for (int round = 0; round < 400; ++round) {
    std::vector<uint8_t> damaged = whole;
    for (int k = 0; k < 1 + round % 8; ++k) {
      damaged[random() % damaged.size()] = static_cast<uint8_t>(random());
    }
    const ReadVideo video = drain(VideoReader::open_memory(damaged, "damaged.mp4", limits));
    if (!video.status.ok()) {
      ++told;
      EXPECT_TRUE(video.status.message().starts_with("damaged.mp4: ")) << video.status.message();
    }
  }
  EXPECT_GT(told, 100) << "most damage should be noticed";
}

// A table of a few bytes can announce 2^32 samples, for each of which libavformat makes an entry.
TEST(ReaderTest, TablesThatAnnounceTooMuchAreRefused) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  const std::vector<uint8_t> whole = small_mp4(folder);
  const std::string text(whole.begin(), whole.end());
  const size_t table = text.find("stsz");
  ASSERT_NE(table, std::string::npos);
  for (const uint32_t count : {2'000'000U, 13'000'000U, 0x07ffffffU, 0xffffffffU}) {
    std::vector<uint8_t> bomb = whole;
    const uint32_t fields[2] = {1, count};  // bytes of every sample, number of samples
    for (size_t i = 0; i < 8; ++i) {
      bomb[table + 8 + i] = static_cast<uint8_t>(fields[i / 4] >> (24 - 8 * (i % 4)));
    }
    const ReadVideo video = drain(VideoReader::open_memory(bomb, "bomb.mp4"));
    EXPECT_TRUE(video.status.code() == StatusCode::kUnsupported ||
                video.status.code() == StatusCode::kOutOfMemory ||
                video.status.code() == StatusCode::kMalformed)
        << video.status.to_string();
    EXPECT_TRUE(video.frames.empty());
  }
}

TEST(ReaderTest, LimitsAreKept) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  const std::vector<uint8_t> whole = small_mp4(folder);
  const auto code = [&](const ReaderLimits& limits) {
    return drain(VideoReader::open_memory(whole, "a.mp4", limits)).status.code();
  };
  EXPECT_EQ(code({}), StatusCode::kOk);
  ReaderLimits limits;
  limits.max_side = 63;
  EXPECT_EQ(code(limits), StatusCode::kUnsupported);
  limits.max_side = 64;
  EXPECT_EQ(code(limits), StatusCode::kOk);
  limits = {};
  limits.max_pixels = 64 * 48 - 1;
  EXPECT_EQ(code(limits), StatusCode::kUnsupported);
  limits.max_pixels = 64 * 48;
  EXPECT_EQ(code(limits), StatusCode::kOk);
  limits = {};
  limits.max_frames = 11;
  EXPECT_EQ(code(limits), StatusCode::kUnsupported);
  limits.max_frames = 12;
  EXPECT_EQ(code(limits), StatusCode::kOk);
  limits = {};
  if (!media_test::thread_sanitizer()) {  // which cannot see how libavcodec's threads agree
    limits.threads = 4;
    EXPECT_EQ(code(limits), StatusCode::kOk);
  }
  limits.threads = 0;
  EXPECT_EQ(code(limits), StatusCode::kInvalidArgument);
}

TEST(ReaderTest, TimeIsBounded) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  SinkOptions options;
  options.path = folder / "large.mp4";
  auto sink = open_sink(options, {1280, 720, 16, 1});
  ASSERT_OK(sink.status());
  const RgbImage frame = media_test::noise(1280, 720, 1);
  for (int i = 0; i < 8; ++i) ASSERT_OK((*sink)->write(frame.view()));
  ASSERT_OK((*sink)->finish());
  ReaderLimits limits;
  limits.timeout_ms = 1;  // a picture of noise takes some ten times as long
  const Status status = read_video(options.path, limits).status;
  EXPECT_EQ(status.code(), StatusCode::kDeadline) << status.to_string();
}

TEST(ReaderTest, StandardInputIsReadAsY4m) {
  const TempFolder folder;
  SinkOptions options;
  options.path = folder / "a.y4m";
  ASSERT_OK(media_test::write_pattern(options, {64, 48, 16, 1}, 6));
  const std::vector<uint8_t> bytes = read_bytes(options.path);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const int status = media_test::in_child(
      [&] {
        ::close(ends[1]);
        ::dup2(ends[0], STDIN_FILENO);
        const ReadVideo video = read_video("-");
        if (!video.status.ok() || video.frames.size() != 6) ::_exit(1);
      },
      [&] {
        ::close(ends[0]);
        // Pieces that end in the middle of lines and frames.
        for (size_t at = 0; at < bytes.size(); at += 1009) {
          const size_t size = std::min<size_t>(1009, bytes.size() - at);
          EXPECT_EQ(::write(ends[1], bytes.data() + at, size), static_cast<ssize_t>(size));
        }
        ::close(ends[1]);
      });
  EXPECT_EQ(status, 0);
}

TEST(ReaderTest, ReadsTheContainersAndSampleFormatsThatPeopleBring) {
  UF_REQUIRE_FFMPEG();
  if (!has_ffmpeg_program()) GTEST_SKIP() << "there is no ffmpeg program to make such files";
  const TempFolder folder;
  SinkOptions source;
  source.path = folder / "source.y4m";
  ASSERT_OK(media_test::write_pattern(source, {96, 64, 16, 1}, 10));
  // The matrix is named, because ffmpeg converts without asking; where the container has no place
  // for it, a small video counts as BT.601.
  const struct {
    const char* file;
    const char* options;
    const char* container;
    const char* matrix;
    double least_psnr;
  } kCases[] = {
      {"a.mkv", "-c:v libx264 -crf 10", "matroska", "bt709", 42.0},
      {"a.webm", "-c:v libvpx-vp9 -crf 10 -b:v 0", "matroska", "bt709", 40.0},
      {"vp8.webm", "-c:v libvpx -crf 4 -b:v 4M", "matroska", "smpte170m", 40.0},
      {"a.avi", "-c:v mpeg4 -q:v 2", "avi", "smpte170m", 40.0},
      {"mjpeg.avi", "-c:v mjpeg -q:v 2", "avi", "smpte170m", 37.0},
      {"a.mov", "-c:v prores_ks -profile:v 3", "mp4", "smpte170m", 42.0},
      {"ffv1.mkv", "-c:v ffv1 -pix_fmt yuv444p", "matroska", "bt709", 48.0},
      {"gray.mkv", "-c:v ffv1 -pix_fmt gray", "matroska", "bt709", 15.0},
      {"ten.mkv", "-c:v libx264 -crf 10 -pix_fmt yuv420p10le", "matroska", "bt709", 42.0},
      {"h444.mp4", "-c:v libx264 -crf 10 -pix_fmt yuv444p", "mp4", "bt709", 42.0},
      {"h422.mp4", "-c:v libx264 -crf 10 -pix_fmt yuv422p", "mp4", "bt709", 42.0},
      {"rgb.mkv", "-c:v ffv1 -pix_fmt bgr0", "matroska", "bt709", 48.0},
      {"hevc.mp4", "-c:v libx265 -crf 10 -x265-params log-level=none", "mp4", "bt709", 40.0},
  };
  for (const auto& [file, options, container, matrix, least_psnr] : kCases) {
    const std::string path = folder / file;
    const std::string convert = std::string(" -vf scale=in_color_matrix=bt709:out_color_matrix=") +
                                matrix + ":flags=accurate_rnd+full_chroma_int -colorspace " +
                                matrix + " ";
    const std::string log =
        output_of("ffmpeg -v error -y -i " + source.path + convert + options + " " + path);
    if (!std::filesystem::exists(path) || std::filesystem::file_size(path) == 0) {
      std::printf("skipped %s: this ffmpeg cannot write it\n", file);
      continue;
    }
    const ReadVideo video = read_video(path);
    EXPECT_OK(video.status);
    ASSERT_EQ(video.frames.size(), 10U) << file << " " << log;
    EXPECT_EQ(video.info.container, container) << file;
    EXPECT_EQ(video.info.format.fps_num, 16) << file;
    for (size_t i = 0; i < 10; ++i) {
      EXPECT_NEAR(video.times_s[i], static_cast<double>(i) / 16.0, 0.001) << file;
      EXPECT_GT(media_test::psnr(video.frames[i].view(),
                                 moving_pattern(96, 64, static_cast<int64_t>(i)).view()),
                least_psnr)
          << file << " frame " << i << " " << video.info.pixels;
    }
  }
}

TEST(ReaderTest, RotatedVideosStandUpright) {
  UF_REQUIRE_FFMPEG();
  if (!has_ffmpeg_program()) GTEST_SKIP() << "there is no ffmpeg program to make such files";
  const TempFolder folder;
  small_mp4(folder);
  for (const int degrees : {90, 180, 270}) {
    const std::string angle = std::to_string(degrees);
    const std::string path = folder / ("r" + angle + ".mp4");
    output_of("ffmpeg -v error -y -i " + (folder / "small.mp4").string() +
              " -c copy -metadata:s:v rotate=" + angle + " " + path);
    // ffmpeg turns pictures by itself: the answer to compare with.
    output_of("ffmpeg -v error -y -i " + path + " -frames:v 1 -f rawvideo -pix_fmt rgb24 " + path +
              ".rgb");
    const std::vector<uint8_t> expected = read_bytes(path + ".rgb");
    const ReadVideo video = read_video(path);
    ASSERT_OK(video.status);
    const bool turned = degrees != 180;
    EXPECT_EQ(video.info.format.width, turned ? 48 : 64);
    EXPECT_EQ(video.info.format.height, turned ? 64 : 48);
    ASSERT_EQ(expected.size(), video.frames[0].pixels.size());
    EXPECT_GT(
        media_test::psnr(video.frames[0].view(),
                         RgbFrame::contiguous(expected.data(), turned ? 48 : 64, turned ? 64 : 48)),
        35.0)
        << degrees;
  }
}

TEST(ReaderTest, SoundIsIgnored) {
  UF_REQUIRE_FFMPEG();
  if (!has_ffmpeg_program()) GTEST_SKIP() << "there is no ffmpeg program to make such a file";
  const TempFolder folder;
  small_mp4(folder);
  output_of("ffmpeg -v error -y -i " + (folder / "small.mp4").string() +
            " -f lavfi -i sine=duration=2 -c:v copy -c:a aac " + (folder / "sound.mp4").string());
  EXPECT_EQ(read_video(folder / "sound.mp4").frames.size(), 12U);
  output_of("ffmpeg -v error -y -f lavfi -i sine=duration=1 " + (folder / "only.m4a").string());
  const Status status = read_video(folder / "only.m4a").status;
  EXPECT_EQ(status.code(), StatusCode::kMalformed);
  EXPECT_NE(status.message().find("no video stream"), std::string::npos) << status.message();
}

TEST(ReaderTest, ANamedPipeIsReadToItsEnd) {
  const TempFolder folder;
  const std::string pipe = folder / "pipe.y4m";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::thread writer([&] {
    SinkOptions options;
    options.path = pipe;
    EXPECT_OK(media_test::write_pattern(options, {64, 48, 16, 1}, 9));
  });
  const ReadVideo video = read_video(pipe);
  writer.join();
  EXPECT_OK(video.status);
  EXPECT_EQ(video.frames.size(), 9U);
  EXPECT_EQ(video.info.frames, -1);
}

TEST(ReaderTest, OtherVideosNeedAFile) {
  UF_REQUIRE_FFMPEG();
  const TempFolder folder;
  const std::string pipe = folder / "pipe.mp4";
  const std::vector<uint8_t> whole = small_mp4(folder);
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::thread writer([&] { media_test::write_bytes(pipe, whole); });
  const Status status = read_video(pipe).status;
  writer.join();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("only y4m"), std::string::npos) << status.message();
}

TEST(ReaderTest, RealClipsOpenAndDecode) {
  const char* clips = std::getenv("UF_CLIPS_DIR");
  if (clips == nullptr) GTEST_SKIP() << "UF_CLIPS_DIR is not set: no real 2K clip was read";
  UF_REQUIRE_FFMPEG();
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(clips)) {
    if (entry.path().extension() != ".mp4") continue;
    auto reader = VideoReader::open(entry.path().string());
    ASSERT_OK(reader.status());
    int64_t frames = 0;
    while (true) {
      const auto frame = reader->next();
      ASSERT_OK(frame.status());
      if (!frame->has_value()) break;
      ++frames;
    }
    EXPECT_EQ(frames, reader->info().frames) << entry.path();
    ++count;
  }
  EXPECT_GT(count, 0) << clips;
}

}  // namespace
}  // namespace ultraflash

#include "media/y4m.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "media/media_test_util.h"

namespace ultraflash {
namespace {

using media_test::moving_pattern;
using media_test::read_bytes;
using media_test::read_video;
using media_test::ReadVideo;

SinkOptions y4m_options(const std::string& path, const std::string& chroma = "") {
  SinkOptions options;
  options.path = path;
  options.chroma = chroma;
  return options;
}

std::span<const uint8_t> as_bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

ReadVideo read_text(const std::string& text, const ReaderLimits& limits = {}) {
  return media_test::drain(VideoReader::open_memory(as_bytes(text), "test.y4m", limits));
}

TEST(Y4mTest, HeaderIsWrittenInFullAndFitsIntoTheLineThatFfmpegReads) {
  Y4mHeader header;
  header.format = {640, 480, 30000, 1001};
  EXPECT_EQ(y4m_header(header),
            "YUV4MPEG2 W640 H480 F30000:1001 Ip A1:1 C420mpeg2 XCOLORRANGE=LIMITED XBT709 "
            "XYSCSS=420MPEG2\n");
  header.format = {16384, 16384, 2147483647, 2147483647};
  EXPECT_LE(y4m_header(header).size(), 96U);
}

TEST(Y4mTest, SecondGenerationIsTheFirstOneByteForByte) {
  const TempFolder folder;
  const VideoFormat format{62, 33, 16, 1};  // an odd height is fine for 4:4:4
  ASSERT_OK(media_test::write_pattern(y4m_options(folder / "a.y4m"), format, 5));
  const ReadVideo first = read_video(folder / "a.y4m");
  ASSERT_OK(first.status);
  ASSERT_EQ(first.frames.size(), 5U);
  EXPECT_EQ(first.info.frames, 5);
  EXPECT_EQ(first.info.duration_s, 5.0 / 16.0);
  EXPECT_EQ(first.info.format.fps_num, 16);
  EXPECT_EQ(first.info.pixels, "yuv 444, bt709, limited range");
  for (int64_t i = 0; i < 5; ++i) {
    const auto& frame = first.frames[static_cast<size_t>(i)];
    EXPECT_LE(media_test::largest_difference(frame.view(), moving_pattern(62, 33, i).view()), 2);
    EXPECT_EQ(first.times_s[static_cast<size_t>(i)], static_cast<double>(i) / 16.0);
  }
  auto sink = open_sink(y4m_options(folder / "b.y4m"), format);
  ASSERT_OK(sink.status());
  EXPECT_EQ((*sink)->name(), "y4m (4:4:4)");
  for (const RgbImage& frame : first.frames) ASSERT_OK((*sink)->write(frame.view()));
  ASSERT_OK((*sink)->finish());
  EXPECT_EQ(read_bytes(folder / "a.y4m"), read_bytes(folder / "b.y4m"));
  EXPECT_EQ((*sink)->stats().bytes_written,
            static_cast<int64_t>(read_bytes(folder / "b.y4m").size()));
}

TEST(Y4mTest, SubsampledFilesOfOddSizeRoundTrip) {
  const TempFolder folder;
  ASSERT_OK(media_test::write_pattern(y4m_options(folder / "a.y4m", "420"), {61, 35, 25, 1}, 3));
  const ReadVideo video = read_video(folder / "a.y4m");
  ASSERT_OK(video.status);
  ASSERT_EQ(video.frames.size(), 3U);
  EXPECT_GT(media_test::psnr(video.frames[1].view(), moving_pattern(61, 35, 1).view()), 45.0);
}

TEST(Y4mTest, FfmpegReadsWhatWeWrite) {
  if (media_test::output_of("ffmpeg -version").find("ffmpeg version") == std::string::npos) {
    GTEST_SKIP() << "there is no ffmpeg program to compare with";
  }
  const TempFolder folder;
  for (const char* chroma : {"420", "444"}) {
    const std::string path = folder / (std::string(chroma) + ".y4m");
    ASSERT_OK(media_test::write_pattern(y4m_options(path, chroma), {64, 48, 16, 1}, 4));
    const std::string raw = path + ".rgb";
    media_test::output_of("ffmpeg -v error -y -i " + path +
                          " -vf scale=in_color_matrix=bt709:flags=accurate_rnd+full_chroma_int"
                          " -f rawvideo -pix_fmt rgb24 " +
                          raw);
    const std::vector<uint8_t> bytes = read_bytes(raw);
    ASSERT_EQ(bytes.size(), 4U * 64U * 48U * 3U) << chroma;
    const RgbFrame theirs = RgbFrame::contiguous(bytes.data() + 2 * 64 * 48 * 3, 64, 48);
    EXPECT_GT(media_test::psnr(theirs, moving_pattern(64, 48, 2).view()), 42.0) << chroma;
  }
}

TEST(Y4mTest, ReadsEveryColourSpaceOfTheTable) {
  const struct {
    const char* tag;
    size_t bytes;
  } kCases[] = {{"C420jpeg", 6}, {"C420mpeg2", 6}, {"C420paldv", 6}, {"C420", 6},
                {"C422", 8},     {"C444", 12},     {"Cmono", 4},     {"", 6}};
  for (const auto& [tag, bytes] : kCases) {
    const std::string text = std::string("YUV4MPEG2 W2 H2 F16:1 ") + tag + "\nFRAME\n" +
                             std::string(bytes, '\x80') + "FRAME Ix\n" + std::string(bytes, '\x80');
    const ReadVideo video = read_text(text);
    ASSERT_OK(video.status);
    ASSERT_EQ(video.frames.size(), 2U) << tag;
    EXPECT_EQ(video.frames[0].pixels, std::vector<uint8_t>(12, 130)) << tag;
  }
}

TEST(Y4mTest, TagsForRangeAndMatrixCount) {
  const std::string start = "YUV4MPEG2 W1 H1 F0:0 C444 ";
  const std::string frame = "\nFRAME\n\x80\x60\xa0";
  const ReadVideo full = read_text(start + "XCOLORRANGE=FULL" + frame);
  ASSERT_OK(full.status);
  EXPECT_EQ(full.info.pixels, "yuv 444, bt601, full range");
  EXPECT_EQ(full.info.format.fps_num, 0);
  EXPECT_LT(full.times_s[0], 0.0);
  const ReadVideo sd = read_text(start + frame);
  const ReadVideo hd = read_text(start + "XBT709" + frame);
  ASSERT_OK(sd.status);
  ASSERT_OK(hd.status);
  EXPECT_NE(sd.frames[0].pixels, hd.frames[0].pixels);
}

TEST(Y4mTest, DamagedFilesAreNamedWithTheFrame) {
  const std::string good = "YUV4MPEG2 W4 H2 F16:1 Cmono\nFRAME\nabcdefgh";
  ASSERT_OK(read_text(good).status);
  const struct {
    std::string text;
    StatusCode code;
    const char* part;
  } kCases[] = {
      {"YUV4MPEG2", StatusCode::kMalformed, "no end within"},
      {"YUV4MPEG2\n", StatusCode::kMalformed, "no width"},
      {"YUV4MPEG2X W4 H2\n", StatusCode::kMalformed, "a space"},
      {"YUV4MPEG2 W4 H-2\n", StatusCode::kMalformed, "'H-2'"},
      {"YUV4MPEG2 W4 H2x\n", StatusCode::kMalformed, "'H2x'"},
      {"YUV4MPEG2 W0 H2\n", StatusCode::kMalformed, "above zero"},
      {"YUV4MPEG2 W99999999999999999999 H2\n", StatusCode::kMalformed, "above zero"},
      {"YUV4MPEG2 W4 H2 F1\n", StatusCode::kMalformed, "frame rate"},
      {"YUV4MPEG2 W4 H2 F16:0\n", StatusCode::kMalformed, "frame rate"},
      {"YUV4MPEG2 W4 H2 F5000:1\n", StatusCode::kMalformed, "at most 1000"},
      {"YUV4MPEG2 W4 H2 It\n", StatusCode::kUnsupported, "interlaced"},
      {"YUV4MPEG2 W4 H2 C420p10\n", StatusCode::kUnsupported, "420p10"},
      {"YUV4MPEG2 W4 H2 C444alpha\n", StatusCode::kUnsupported, "444alpha"},
      {"YUV4MPEG2 W20000 H2\n", StatusCode::kUnsupported, "20000x2"},
      {"YUV4MPEG2 W16384 H16384\n", StatusCode::kUnsupported, "16384x16384"},
      {"YUV4MPEG2 W9223372036854775807 H9223372036854775807\n", StatusCode::kUnsupported, "limits"},
      {"YUV4MPEG2 W4 H2 " + std::string(2000, 'X') + "\n", StatusCode::kMalformed, "no end within"},
      {good + "FRAMES\nabcdefgh", StatusCode::kMalformed, "frame 1 does not begin"},
      {good + "FRAME\nabcdefg", StatusCode::kMalformed, "frame 1 has 7 of 8 bytes"},
      {good + "FRAME " + std::string(2000, 'x'), StatusCode::kMalformed, "frame 1 has no end"},
      {good + "junk\n", StatusCode::kMalformed, "frame 1"},
  };
  for (const auto& [text, code, part] : kCases) {
    const Status status = read_text(text).status;
    EXPECT_EQ(status.code(), code) << text.substr(0, 60) << ": " << status.to_string();
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
    EXPECT_TRUE(status.message().starts_with("test.y4m: ")) << status.message();
  }
}

TEST(Y4mTest, AFrameOnAPipeDoesNotWaitForTheNextOne) {
  const TempFolder folder;
  const std::string path = folder / "pipe";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const int status = media_test::in_child(
      [&] {
        auto reader = VideoReader::open(path);
        if (!reader.ok()) ::_exit(1);
        for (int64_t i = 0; i < 3; ++i) {
          const auto frame = reader->next();
          if (!frame.ok() || !frame->has_value()) ::_exit(2);
          write_text(folder / ("seen" + std::to_string(i)), "x");
        }
        if (!reader->next().ok()) ::_exit(3);
      },
      [&] {
        std::ofstream pipe(path);
        pipe << "YUV4MPEG2 W8 H2 F16:1 Cmono\n";
        for (int i = 0; i < 3; ++i) {
          pipe << "FRAME\n" << std::string(16, 'a') << std::flush;
          const std::string seen = folder / ("seen" + std::to_string(i));
          for (int wait = 0; wait < 5000 && !std::filesystem::exists(seen); ++wait) {
            ::usleep(1000);
          }
          EXPECT_TRUE(std::filesystem::exists(seen)) << "frame " << i << " was held back";
        }
      });
  EXPECT_EQ(status, 0);
}

TEST(Y4mTest, ErrorsRepeatAndLimitsHold) {
  const std::string text = "YUV4MPEG2 W4 H2 F16:1 Cmono\nFRAME\nabcdefghFRAME\nabcdefghFRAME\nabc";
  auto reader = VideoReader::open_memory(as_bytes(text), "test.y4m");
  ASSERT_OK(reader.status());
  EXPECT_TRUE(reader->next().ok());
  EXPECT_TRUE(reader->next().ok());
  const Status first = reader->next().status();
  EXPECT_EQ(first.code(), StatusCode::kMalformed);
  EXPECT_EQ(reader->next().status().message(), first.message());

  ReaderLimits limits;
  limits.max_frames = 1;
  EXPECT_EQ(read_text(text, limits).status.code(), StatusCode::kUnsupported);
  limits.max_frames = 0;
  EXPECT_EQ(read_text(text, limits).status.code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ultraflash

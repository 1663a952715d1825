#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/output_file.h"
#include "media/frame_sink.h"
#include "media/media_test_util.h"

namespace ultraflash {
namespace {

using media_test::moving_pattern;
using media_test::noise;
using media_test::read_bytes;

constexpr VideoFormat kSmall{32, 16, 16, 1};

SinkOptions to(const std::string& path, const std::string& format = "") {
  SinkOptions options;
  options.path = path;
  options.format = format;
  return options;
}

StatusCode open_code(const SinkOptions& options, const VideoFormat& format = kSmall) {
  return open_sink(options, format).status().code();
}

TEST(SinkTest, RawFramesRoundTripExactlyWithAndWithoutGaps) {
  const TempFolder folder;
  auto sink = open_sink(to(folder / "a.rgb"), {20, 10, 16, 1});
  ASSERT_OK(sink.status());
  EXPECT_EQ((*sink)->name(), "rgb24");
  const RgbImage whole = noise(20, 10, 1);
  const RgbImage wide = noise(30, 10, 2);
  const RgbFrame part{wide.view().row(0) + 3 * 5, 20, 10, wide.view().row_stride};
  ASSERT_OK((*sink)->write(whole.view()));
  ASSERT_OK((*sink)->write(part));
  EXPECT_FALSE(std::filesystem::exists(folder / "a.rgb")) << "the name comes at the end";
  ASSERT_OK((*sink)->finish());
  std::vector<uint8_t> expected = whole.pixels;
  const RgbImage packed = media_test::copy_of(part);
  expected.insert(expected.end(), packed.pixels.begin(), packed.pixels.end());
  EXPECT_EQ(read_bytes(folder / "a.rgb"), expected);
  EXPECT_FALSE(std::filesystem::exists(folder / "a.rgb.part"));
  EXPECT_EQ((*sink)->stats().frames, 2);
  EXPECT_EQ((*sink)->stats().bytes_written, 1200);
}

TEST(SinkTest, FramesAreCheckedAndARefusedOneChangesNothing) {
  const TempFolder folder;
  auto sink = open_sink(to(folder / "a.rgb"), kSmall);
  ASSERT_OK(sink.status());
  const RgbImage good = noise(32, 16, 1);
  ASSERT_OK((*sink)->write(good.view()));
  const Status resized = (*sink)->write(noise(16, 16, 1).view());
  EXPECT_EQ(resized.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(resized.message().find("16x16"), std::string::npos) << resized.message();
  EXPECT_NE(resized.message().find("32x16"), std::string::npos) << resized.message();
  EXPECT_NE(resized.message().find("frame 1"), std::string::npos) << resized.message();
  EXPECT_EQ((*sink)->write(RgbFrame{}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ((*sink)->write(RgbFrame::contiguous(good.pixels.data(), 0, 0)).code(),
            StatusCode::kInvalidArgument);
  RgbFrame overlapping = good.view();
  overlapping.row_stride = 10;
  EXPECT_EQ((*sink)->write(overlapping).code(), StatusCode::kInvalidArgument);
  ASSERT_OK((*sink)->write(good.view()));
  ASSERT_OK((*sink)->finish());
  EXPECT_EQ(read_bytes(folder / "a.rgb").size(), 2U * 32U * 16U * 3U);
  EXPECT_EQ((*sink)->write(good.view()).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ((*sink)->finish().code(), StatusCode::kInvalidArgument);
}

TEST(SinkTest, OptionsAreCheckedBeforeAnythingIsWritten) {
  const TempFolder folder;
  const std::string y4m = folder / "a.y4m";
  EXPECT_EQ(open_code(to("")), StatusCode::kInvalidArgument);
  EXPECT_EQ(open_code(to(std::string("a\0.y4m", 6))), StatusCode::kInvalidArgument);
  EXPECT_EQ(open_code(to(folder / "a.webm")), StatusCode::kInvalidArgument);
  EXPECT_EQ(open_code(to(folder / "noending")), StatusCode::kInvalidArgument);
  EXPECT_EQ(open_code(to(y4m, "avi")), StatusCode::kInvalidArgument);
  for (const VideoFormat& format :
       {VideoFormat{0, 16, 16, 1}, VideoFormat{32, -1, 16, 1}, VideoFormat{20000, 16, 16, 1},
        VideoFormat{32, 16, 0, 1}, VideoFormat{32, 16, 16, 0}, VideoFormat{32, 16, 5000, 1}}) {
    EXPECT_EQ(open_code(to(y4m), format), StatusCode::kInvalidArgument);
  }
  const auto with = [&](const std::function<void(SinkOptions&)>& change) {
    SinkOptions options = to(y4m);
    change(options);
    return open_code(options);
  };
  EXPECT_EQ(with([](SinkOptions& o) { o.codec = "x264"; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(with([](SinkOptions& o) { o.crf = 20; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(with([](SinkOptions& o) { o.preset = "fast"; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(with([](SinkOptions& o) { o.chroma = "422"; }), StatusCode::kInvalidArgument);
  EXPECT_EQ(with([](SinkOptions& o) { o.threads = 0; }), StatusCode::kInvalidArgument);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  EXPECT_EQ(with([](SinkOptions& o) { o.codec = ""; }), StatusCode::kOk);
}

TEST(SinkTest, MetadataRules) {
  const auto code = [](const Metadata& metadata) { return check_metadata(metadata, "x").code(); };
  EXPECT_EQ(code({{"seed", "1"}, {"prompt", "caf\xc3\xa9 \xf0\x9f\x8e\xac"}, {"empty", ""}}),
            StatusCode::kOk);
  EXPECT_EQ(code({{"", "1"}}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"two words", "1"}}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{std::string(129, 'k'), "1"}}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"a", "1"}, {"A", "2"}}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"Encoder", "mine"}}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"a", std::string(2, '\0')}}), StatusCode::kInvalidArgument);
  for (const char* bad : {"\xff", "\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\x80",
                          "\xe0\x80\x80", "\xf0\x80\x80\x80"}) {
    EXPECT_EQ(code({{"a", bad}}), StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(code({{"a", std::string((1 << 20) + 1, 'v')}}), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(Metadata(257)), StatusCode::kInvalidArgument);
}

TEST(SinkTest, PathsThatCannotBeWrittenSayWhy) {
  const TempFolder folder;
  std::vector<std::string> endings = {"y4m", "rgb"};
  if (media_test::has_ffmpeg()) endings.emplace_back("mp4");
  for (const std::string& ending : endings) {
    const Status missing = open_sink(to(folder / ("no/a." + ending)), kSmall).status();
    EXPECT_EQ(missing.code(), StatusCode::kNotFound) << missing.to_string();
    EXPECT_NE(missing.message().find("folder"), std::string::npos) << missing.message();
    std::filesystem::create_directory(folder / ("d." + ending));
    const Status directory = open_sink(to(folder / ("d." + ending)), kSmall).status();
    EXPECT_EQ(directory.code(), StatusCode::kInvalidArgument) << directory.to_string();
    write_text(folder / "file", "x");
    EXPECT_EQ(open_code(to(folder / ("file/a." + ending))), StatusCode::kNotFound);
    EXPECT_EQ(open_code(to(folder / (std::string(300, 'n') + "." + ending))),
              StatusCode::kInvalidArgument);
  }
  if (media_test::has_png()) {
    EXPECT_EQ(open_code(to(folder / "no/%d.png")), StatusCode::kNotFound);
    EXPECT_EQ(open_code(to(folder / "file/%d.png")), StatusCode::kInvalidArgument);
    EXPECT_EQ(open_code(to(folder / "no/no/")), StatusCode::kNotFound);
    EXPECT_EQ(open_code(to(folder / "single.png")), StatusCode::kInvalidArgument);
  }
}

TEST(SinkTest, MissingPermissionIsSaid) {
  const TempFolder folder;
  std::filesystem::create_directory(folder / "locked");
  ASSERT_EQ(::chmod((folder / "locked").c_str(), 0555), 0);
  // The superuser may write everywhere: give that up for the attempt.
  const bool root = ::geteuid() == 0;
  if (root) {
    ASSERT_EQ(::chmod(folder.path().c_str(), 0755), 0);
    ASSERT_EQ(::seteuid(65534), 0);
  }
  const Status status = open_sink(to(folder / "locked/a.y4m"), kSmall).status();
  if (root) {
    ASSERT_EQ(::seteuid(0), 0);
  }
  EXPECT_EQ(status.code(), StatusCode::kIo) << status.to_string();
  EXPECT_NE(status.message().find("ermission"), std::string::npos) << status.message();
}

TEST(SinkTest, FullDeviceIsSaidAndStays) {
  for (const char* format : {"y4m", "raw"}) {
    auto sink = open_sink(to("/dev/full", format), kSmall);
    Status status = sink.status();
    if (sink.ok()) {
      status = (*sink)->write(noise(32, 16, 1).view());
      EXPECT_EQ((*sink)->write(noise(32, 16, 1).view()).message(), status.message());
      EXPECT_EQ((*sink)->finish().code(), StatusCode::kIo);
    }
    EXPECT_EQ(status.code(), StatusCode::kIo) << status.to_string();
    EXPECT_NE(status.message().find("No space left"), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("/dev/full"), std::string::npos) << status.message();
  }
}

TEST(SinkTest, FileSizeLimitIsAnErrorAndLeavesWholeFrames) {
  const TempFolder folder;
  const int status = media_test::in_child([&] {
    const rlimit limit{10'000, 10'000};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(1);
    auto sink = open_sink(to(folder / "a.y4m"), kSmall);
    if (!sink.ok()) ::_exit(2);
    Status written;
    for (uint32_t i = 0; i < 100 && written.ok(); ++i) {
      written = (*sink)->write(noise(32, 16, i).view());
    }
    if (written.code() != StatusCode::kIo) ::_exit(3);
    if (written.message().find("ulimit") == std::string::npos) ::_exit(4);
    if ((*sink)->stats().frames != 6) ::_exit(5);  // 6 * 1542 bytes and the header
  });
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "wait status " << status;
  const auto left = media_test::read_video(folder / "a.y4m.part");
  EXPECT_OK(left.status);
  EXPECT_EQ(left.frames.size(), 6U);
  EXPECT_FALSE(std::filesystem::exists(folder / "a.y4m"));
}

TEST(SinkTest, ClosedPipeIsAnErrorAndNotASignal) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const int status = media_test::in_child(
      [&] {
        ::close(ends[0]);
        ::dup2(ends[1], STDOUT_FILENO);
        ::close(ends[1]);
        std::signal(SIGPIPE, SIG_DFL);
        auto sink = open_sink(to("-"), {64, 64, 16, 1});
        if (!sink.ok()) ::_exit(1);
        Status written;
        for (uint32_t i = 0; i < 1000 && written.ok(); ++i) {
          written = (*sink)->write(noise(64, 64, i).view());
        }
        if (written.code() != StatusCode::kIo) ::_exit(2);
        if (written.message().find("the reader closed the pipe") == std::string::npos) ::_exit(3);
        sigset_t pending;
        sigpending(&pending);
        if (sigismember(&pending, SIGPIPE) == 1) ::_exit(4);
        sigset_t mask;
        pthread_sigmask(SIG_BLOCK, nullptr, &mask);
        if (sigismember(&mask, SIGPIPE) == 1) ::_exit(5);
      },
      [&] {  // the child fills the pipe and waits until it has no reader
        char first = 0;
        EXPECT_EQ(::read(ends[0], &first, 1), 1);
        ::close(ends[1]);
        ::close(ends[0]);
      });
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "wait status " << status;
}

TEST(SinkTest, StandardOutputCarriesY4mThatReadsBack) {
  const TempFolder folder;
  const std::string path = folder / "out.y4m";
  const int status = media_test::in_child([&] {
    const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    ::dup2(file, STDOUT_FILENO);
    for (const char* name : {"-", "/dev/stdout"}) {
      auto sink = open_sink(to(name, name[0] == '-' ? "" : "raw"), kSmall);
      if (!sink.ok() || !(*sink)->write(moving_pattern(32, 16, 0).view()).ok()) ::_exit(1);
      if (!(*sink)->finish().ok()) ::_exit(2);
    }
  });
  EXPECT_EQ(status, 0);
  std::vector<uint8_t> bytes = read_bytes(path);
  const size_t raw_bytes = 32 * 16 * 3;
  ASSERT_GT(bytes.size(), raw_bytes);
  bytes.resize(bytes.size() - raw_bytes);
  const auto video = media_test::drain(VideoReader::open_memory(bytes, "stdout"));
  EXPECT_OK(video.status);
  EXPECT_EQ(video.frames.size(), 1U);
  EXPECT_EQ(open_code(to("-", "mp4")),
            media_test::has_ffmpeg() ? StatusCode::kInvalidArgument : StatusCode::kUnsupported);
  EXPECT_EQ(open_code(to("-", "png")), StatusCode::kInvalidArgument);
}

TEST(SinkTest, TwoWritersOfOneFileAreKeptApart) {
  const TempFolder folder;
  auto first = open_sink(to(folder / "a.y4m"), kSmall);
  ASSERT_OK(first.status());
  const Status second = open_sink(to(folder / "a.y4m"), kSmall).status();
  EXPECT_EQ(second.code(), StatusCode::kBusy) << second.to_string();
  ASSERT_OK((*first)->write(moving_pattern(32, 16, 0).view()));
  ASSERT_OK((*first)->finish());
  EXPECT_EQ(open_code(to(folder / "a.y4m")), StatusCode::kOk);
}

TEST(SinkTest, AnUnfinishedSinkLeavesThePartAndNotTheName) {
  const TempFolder folder;
  write_text(folder / "a.y4m", "old");
  {
    auto sink = open_sink(to(folder / "a.y4m"), kSmall);
    ASSERT_OK(sink.status());
    ASSERT_OK((*sink)->write(moving_pattern(32, 16, 0).view()));
  }
  EXPECT_EQ(read_bytes(folder / "a.y4m").size(), 3U);
  EXPECT_EQ(media_test::read_video(folder / "a.y4m.part").frames.size(), 1U);
}

TEST(SinkTest, LinksAreFollowed) {
  const TempFolder folder;
  write_text(folder / "real.y4m", "old");
  std::filesystem::create_symlink("real.y4m", folder / "link.y4m");
  ASSERT_OK(media_test::write_pattern(to(folder / "link.y4m"), kSmall, 2));
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link.y4m"));
  EXPECT_EQ(media_test::read_video(folder / "real.y4m").frames.size(), 2U);
}

}  // namespace
}  // namespace ultraflash

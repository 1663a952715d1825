#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>

#include "media/frame_sink.h"
#include "train/data/clip_source.h"
#include "train/data/tar_index.h"
#include "train/world/render.h"

namespace ultraflash {
namespace {

namespace fs = std::filesystem;

class FileClips : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("uf_data_" + std::to_string(getpid()));
    fs::create_directories(folder_ / "in" / "deep");
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Frame f of the video is grey level 10 * number + f.
  void write_video(const fs::path& path, int number, int64_t width, int64_t height,
                   int64_t frames) {
    SinkOptions options;
    options.path = path.string();
    const auto sink = open_sink(options, {width, height, 16, 1});
    ASSERT_TRUE(sink.ok()) << sink.status().message();
    for (int64_t f = 0; f < frames; ++f) {
      const std::vector<uint8_t> pixels(static_cast<size_t>(width * height * 3),
                                        static_cast<uint8_t>(10 * number + f));
      ASSERT_TRUE((*sink)->write(RgbFrame::contiguous(pixels.data(), width, height)).ok());
    }
    ASSERT_TRUE((*sink)->finish().ok());
  }
  void write_text(const fs::path& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
  }
  void fill(int count) {
    for (int i = 0; i < count; ++i) {
      const fs::path base = folder_ / "in" / (i % 2 == 0 ? "deep" : ".") / std::to_string(i);
      write_video(base.string() + ".y4m", i, 40, 32, 6);
      if (i % 3 == 0) {
        write_text(base.string() + ".json",
                   R"({"id": 7, "caption": "clip )" + std::to_string(i) + R"("})");
      } else {
        write_text(base.string() + ".txt", "clip " + std::to_string(i) + "\n");
      }
    }
    write_video(folder_ / "in" / "lonely.y4m", 0, 40, 32, 6);
  }
  void check_epochs(const ClipSource& source, int count) {
    ASSERT_EQ(source.size(), count);
    std::vector<std::string> orders;
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      std::set<std::string> captions;
      std::string order;
      for (int64_t i = 0; i < count; ++i) {
        const Result<Clip> clip = source.clip(epoch * count + i, {4, 20, 16});
        ASSERT_TRUE(clip.ok()) << clip.status().message();
        ASSERT_EQ(clip->pixels.size(), 4U * 20 * 16 * 3);
        const int number = std::stoi(clip->caption.substr(5));
        const int start = clip->pixels[0] - 10 * number;  // within a rounding of the colour coding
        EXPECT_GE(start, -1) << clip->name;
        EXPECT_LE(start, 3) << clip->name;
        EXPECT_NEAR(clip->pixels.back(), clip->pixels[0] + 3, 1);
        captions.insert(clip->caption);
        order += clip->caption + ",";
        const Result<Clip> again = source.clip(epoch * count + i, {4, 20, 16});
        ASSERT_TRUE(again.ok());
        EXPECT_EQ(again->pixels, clip->pixels);
      }
      EXPECT_EQ(captions.size(), static_cast<size_t>(count));
      orders.push_back(order);
    }
    EXPECT_FALSE(orders[0] == orders[1] && orders[1] == orders[2]);
  }
  fs::path folder_;
};

TEST_F(FileClips, ReadsAFolder) {
  fill(7);
  const auto source = open_file_clips((folder_ / "in").string(), {.seed = 3});
  ASSERT_TRUE(source.ok()) << source.status().message();
  check_epochs(**source, 7);
  EXPECT_EQ((*source)->clip(0, {7, 20, 16}).status().code(), StatusCode::kInvalidArgument)
      << "the videos have six frames";
}

// Archives of the system's tar, in the formats that are about.
TEST_F(FileClips, ReadsArchives) {
  if (std::system("tar --version > /dev/null 2>&1") != 0) GTEST_SKIP() << "no tar on this machine";
  fill(7);
  // A name that does not fit into the header.
  const std::string deep = std::string(90, 'a') + "/" + std::string(120, 'b');
  fs::create_directories(folder_ / "in" / fs::path(deep).parent_path());
  write_video(folder_ / "in" / (deep + ".y4m"), 7, 40, 32, 6);
  write_text(folder_ / "in" / (deep + ".txt"), "clip 7");
  for (const std::string format : {"gnu", "pax"}) {
    const fs::path archive = folder_ / (format + ".tar");
    const std::string command = "tar --format=" + format + " -cf " + archive.string() + " -C " +
                                (folder_ / "in").string() + " .";
    ASSERT_EQ(std::system(command.c_str()), 0);
    const auto source = open_file_clips(archive.string(), {.seed = 3});
    ASSERT_TRUE(source.ok()) << source.status().message();
    check_epochs(**source, 8);
  }
}

TEST_F(FileClips, RefusesWhatCannotBe) {
  EXPECT_EQ(open_file_clips((folder_ / "none").string(), {.seed = 1}).status().code(),
            StatusCode::kNotFound);
  EXPECT_EQ(open_file_clips((folder_ / "in").string(), {.seed = 1}).status().code(),
            StatusCode::kInvalidArgument);
  write_text(folder_ / "a.tar", std::string(1024, 'x'));
  EXPECT_EQ(open_file_clips((folder_ / "a.tar").string(), {.seed = 1}).status().code(),
            StatusCode::kMalformed);
  // A right header of a member that is longer than the file.
  std::string header(512, '\0');
  header.replace(0, 5, "a.txt");
  header.replace(124, 11, "00000002000");
  header[156] = '0';
  int sum = 8 * ' ';
  for (const char c : header) sum += static_cast<unsigned char>(c);
  header.replace(148, 6, fmt::format("{:06o}", sum));
  write_text(folder_ / "b.tar", header + std::string(1024, 'x'));
  EXPECT_TRUE(read_tar_index((folder_ / "b.tar").string()).ok());
  write_text(folder_ / "b.tar", header + std::string(1023, 'x'));
  EXPECT_EQ(read_tar_index((folder_ / "b.tar").string()).status().code(), StatusCode::kMalformed);
  header[0] = 'b';
  write_text(folder_ / "b.tar", header + std::string(1024, 'x'));
  EXPECT_EQ(read_tar_index((folder_ / "b.tar").string()).status().code(), StatusCode::kMalformed);
}

// What is wrong with a file is told once, and the others take its place.
TEST_F(FileClips, PassesOverWhatCannotBeUsed) {
  fill(5);
  const fs::path in = folder_ / "in";
  write_video(in / "stub.y4m", 9, 40, 32, 3);
  write_text(in / "stub.txt", "stub");
  write_text(in / "noise.y4m", "YUV4MPEG2 nothing of the kind");
  write_text(in / "noise.txt", "noise");
  write_video(in / "halved.y4m", 9, 40, 32, 6);
  fs::resize_file(in / "halved.y4m", fs::file_size(in / "halved.y4m") - 100);
  write_text(in / "halved.txt", "halved");
  write_video(in / "mute.y4m", 9, 40, 32, 6);
  write_text(in / "mute.txt", " \n");
  write_video(in / "latin.y4m", 9, 40, 32, 6);
  write_text(in / "latin.txt", "\xff\xfe");
  std::vector<std::string> lines;
  FileClipOptions options;
  options.seed = 3;
  options.log = Logger([&](LogLevel level, std::string_view line) {
    if (level == LogLevel::kWarning) lines.emplace_back(line);
  });
  const auto source = open_file_clips(in.string(), options);
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ((*source)->size(), 10);
  const ClipShape shape{4, 20, 16};
  std::set<std::string> captions;
  for (int64_t i = 0; i < 30; ++i) {
    const Result<Clip> clip = (*source)->clip(i, shape);
    ASSERT_TRUE(clip.ok()) << clip.status().message();
    EXPECT_EQ(clip->caption.substr(0, 5), "clip ");
    captions.insert(clip->caption);
    const Result<std::string> caption = (*source)->caption(i, shape, 0);
    ASSERT_TRUE(caption.ok());
    EXPECT_EQ(*caption, clip->caption);
  }
  EXPECT_EQ(captions.size(), 5U);
  ASSERT_EQ(lines.size(), 5U);
  for (const char* name : {"stub", "noise", "halved", "mute", "latin"}) {
    EXPECT_EQ(std::count_if(
                  lines.begin(), lines.end(),
                  [&](const std::string& line) { return line.find(name) != std::string::npos; }),
              1)
        << name;
  }
}

TEST_F(FileClips, HoldsOutByName) {
  fill(9);
  FileClipOptions options{.seed = 3, .hold_out = 0.3};
  const auto captions = [&](const std::string& path) {
    std::set<std::string> found;
    const auto source = open_file_clips(path, options);
    EXPECT_TRUE(source.ok()) << source.status().message();
    for (int64_t i = 0; i < (*source)->size(); ++i) {
      found.insert(*(*source)->caption(i, {4, 20, 16}, 0));
    }
    return found;
  };
  const std::string in = (folder_ / "in").string();
  const std::set<std::string> seen = captions(in);
  options.unseen = true;
  const std::set<std::string> unseen = captions(in);
  EXPECT_EQ(seen.size() + unseen.size(), 9U);
  EXPECT_FALSE(seen.empty());
  EXPECT_FALSE(unseen.empty());
  for (const std::string& caption : unseen) EXPECT_FALSE(seen.contains(caption));
  // Neither the seed nor the place of the folder matters.
  fs::rename(folder_ / "in", folder_ / "moved");
  options.seed = 4;
  EXPECT_EQ(captions((folder_ / "moved").string()), unseen);
  // However small the share, somebody is held out; of more files the same stay so.
  options.hold_out = 1e-6;
  EXPECT_EQ(captions((folder_ / "moved").string()).size(), 1U);
}

TEST_F(FileClips, AFolderMayBeSetApart) {
  fs::create_directories(folder_ / "in" / "held-out");
  for (int i = 0; i < 6; ++i) {
    const fs::path base = folder_ / "in" / (i < 2 ? "held-out" : "deep") / std::to_string(i);
    write_video(base.string() + ".y4m", i, 40, 32, 6);
    write_text(base.string() + ".txt", "clip " + std::to_string(i));
  }
  FileClipOptions options{.seed = 3, .hold_out = 0.01};
  for (const bool unseen : {false, true}) {
    options.unseen = unseen;
    const auto source = open_file_clips((folder_ / "in").string(), options);
    ASSERT_TRUE(source.ok()) << source.status().message();
    ASSERT_EQ((*source)->size(), unseen ? 2 : 4);
    for (int64_t i = 0; i < (*source)->size(); ++i) {
      EXPECT_EQ(*(*source)->caption(i, {4, 20, 16}, 0) < "clip 2", unseen);
    }
  }
}

// Pictures whose grey level is their column, with a damaged small clip beside each.
TEST_F(FileClips, GivePartsAndPreparedClips) {
  constexpr int64_t kSide = 64;
  const auto write = [&](const fs::path& path, int64_t side, int64_t add) {
    SinkOptions options;
    options.path = path.string();
    const auto sink = open_sink(options, {side, side, 16, 1});
    ASSERT_TRUE(sink.ok()) << sink.status().message();
    for (int64_t f = 0; f < 8; ++f) {
      std::vector<uint8_t> pixels;
      for (int64_t i = 0; i < side * side * 3; ++i) {
        pixels.push_back(static_cast<uint8_t>(i / 3 % side * (2 * kSide / side) + 10 * f + add));
      }
      ASSERT_TRUE((*sink)->write(RgbFrame::contiguous(pixels.data(), side, side)).ok());
    }
    ASSERT_TRUE((*sink)->finish().ok());
  };
  write(folder_ / "in" / "a.y4m", kSide, 0);
  write(folder_ / "in" / "a.2x.y4m", kSide / 2, 3);
  write_text(folder_ / "in" / "a.txt", "columns");
  const auto source = open_file_clips((folder_ / "in").string(), {.seed = 5});
  ASSERT_TRUE(source.ok()) << source.status().message();
  ASSERT_EQ((*source)->size(), 1) << "the small one is no video of its own";

  std::set<int> lefts;
  for (int64_t index = 0; index < 12; ++index) {
    const ClipShape part{3, 16, 16, 0.0, 0.5};
    const Result<Clip> clip = (*source)->clip(index, part);
    ASSERT_TRUE(clip.ok()) << clip.status().message();
    // Half of 128 levels over 16 pixels; the last one is 15 steps of 4 from the first.
    EXPECT_NEAR(clip->pixels[15 * 3] - clip->pixels[0], 60, 2);
    lefts.insert(clip->pixels[0]);
    EXPECT_EQ((*source)->clip(index, part)->pixels, clip->pixels);
    EXPECT_EQ((*source)->damaged(index, {3, 32, 32, 0.0, 0.5}, 2).status().code(),
              StatusCode::kInvalidArgument);

    // Frame for frame the stretch of the large clip.
    const ClipShape whole{3, kSide, kSide};
    const Result<Clip> large = (*source)->clip(index, whole);
    const Result<std::optional<Clip>> small = (*source)->damaged(index, whole, 2);
    ASSERT_TRUE(large.ok() && small.ok()) << small.status().message();
    ASSERT_TRUE(small->has_value());
    ASSERT_EQ((*small)->pixels.size(), 3U * 32 * 32 * 3);
    for (size_t frame = 0; frame < 3; ++frame) {
      EXPECT_NEAR((*small)->pixels[frame * 32 * 32 * 3],
                  large->pixels[frame * kSide * kSide * 3] + 3, 2);
    }
    const Result<std::optional<Clip>> none = (*source)->damaged(index, whole, 3);
    ASSERT_TRUE(none.ok());
    EXPECT_FALSE(none->has_value());
  }
  EXPECT_GT(lefts.size(), 4U);
}

TEST_F(FileClips, KeepsTheRateAndChoosesCaptions) {
  write_video(folder_ / "in" / "a.y4m", 2, 40, 32, 12);  // 16 frames a second
  write_text(folder_ / "in" / "a.json", R"({"caption": ["one", "two"]})");
  const auto source = open_file_clips((folder_ / "in").string(), {});
  ASSERT_TRUE(source.ok()) << source.status().message();
  // From the first frame of a clip to its last, by the grey level that grows by one a frame.
  const auto rises = [&](double fps, int64_t frames) {
    const Result<Clip> clip = (*source)->clip(0, {frames, 20, 16, fps});
    return clip.ok() ? clip->pixels.back() - clip->pixels.front() : -1;
  };
  EXPECT_NEAR(rises(0.0, 5), 4, 1);
  EXPECT_NEAR(rises(16.0, 5), 4, 1);
  EXPECT_NEAR(rises(8.0, 5), 8, 1);   // every second frame
  EXPECT_NEAR(rises(32.0, 9), 4, 1);  // every frame twice
  EXPECT_EQ(rises(8.0, 7), -1) << "needs 13 frames";
  const ClipShape shape{4, 20, 16};
  EXPECT_EQ(*(*source)->caption(0, shape, 0), "one");
  EXPECT_EQ(*(*source)->caption(0, shape, 1), "two");
  EXPECT_EQ(*(*source)->caption(0, shape, 2), "one");
}

TEST(WorldClips, AreTheWorld) {
  const auto source = make_world_clips(4, world::Split::kTraining);
  EXPECT_EQ(source->size(), -1);
  const Result<Clip> clip = source->clip(99, {8, 320, 192});
  ASSERT_TRUE(clip.ok());
  EXPECT_EQ(clip->pixels,
            world::render(world::sample_scene(4, 99), world::RenderWindow::whole(2, 0, 8)));
  EXPECT_FALSE(source->clip(0, {8, 100, 100}).ok());
}

}  // namespace
}  // namespace ultraflash

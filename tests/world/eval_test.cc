// The evaluator on clips whose truth is known: as rendered, through H.264, through the errors of an
// autoencoder, and with captions of other scenes.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "media/frame_sink.h"
#include "media/image.h"
#include "train/eval/comparison.h"
#include "train/eval/evaluate.h"
#include "train/world/render.h"

namespace ultraflash::world {
namespace {

constexpr uint64_t kSeed = 21;

MeasuredScene measure_truth(const Scene& scene, int64_t scale, int64_t first,
                            const std::function<void(std::vector<uint8_t>&)>& spoil = {}) {
  const RenderWindow window = RenderWindow::whole(scale, first, kClipFrames);
  std::vector<uint8_t> pixels = render(scene, window);
  if (spoil) spoil(pixels);
  return measure({pixels.data(), kClipFrames, window.width, window.height}, scene.object_count);
}

void expect_share(const ScoreTable& table, std::string_view name, double low, double high) {
  const Tally tally = table.row(name).all;
  ASSERT_GT(tally.total, 0) << name;
  const double share = static_cast<double>(tally.right) / static_cast<double>(tally.total);
  EXPECT_GE(share, low) << name << ": " << tally.right << " of " << tally.total;
  EXPECT_LE(share, high) << name << ": " << tally.right << " of " << tally.total;
}

// As an autoencoder at about 30 dB: a 3 x 3 blur, and noise of deviation 8.
void blur_and_noise(std::vector<uint8_t>& pixels) {
  const std::vector<uint8_t> sharp = pixels;
  const auto at = [&](int64_t f, int64_t y, int64_t x, int64_t c) {
    y = std::clamp<int64_t>(y, 0, kBaseHeight - 1);
    x = std::clamp<int64_t>(x, 0, kBaseWidth - 1);
    return static_cast<int>(
        sharp[static_cast<size_t>(((f * kBaseHeight + y) * kBaseWidth + x) * 3 + c)]);
  };
  Draw draw(make_random_stream(3, RandomPurpose::kTest, 0));
  size_t i = 0;
  for (int64_t f = 0; f < kClipFrames; ++f) {
    for (int64_t y = 0; y < kBaseHeight; ++y) {
      for (int64_t x = 0; x < kBaseWidth; ++x) {
        for (int64_t c = 0; c < 3; ++c, ++i) {
          int sum = 0;
          for (int64_t dy = -1; dy <= 1; ++dy) {
            for (int64_t dx = -1; dx <= 1; ++dx) {
              sum += (dy == 0 ? 2 : 1) * (dx == 0 ? 2 : 1) * at(f, y + dy, x + dx, c);
            }
          }
          // A sum of three uniform numbers has deviation 0.5.
          const double noise =
              16.0 * (draw.uniform(-0.5, 0.5) + draw.uniform(-0.5, 0.5) + draw.uniform(-0.5, 0.5));
          pixels[i] = static_cast<uint8_t>(std::clamp(sum / 16.0 + noise, 0.0, 255.0));
        }
      }
    }
  }
}

TEST(Eval, SeesTheTruth) {
  ScoreTable table;
  for (uint64_t i = 0; i < 20; ++i) {
    const Scene scene = sample_scene(kSeed, i, Split::kHeldOut);
    table.add(name_scene(scene), compare(name_scene(scene), measure_truth(scene, 1, 0)));
  }
  for (const std::string_view name : {"colour", "background", "motion", "shape", "size", "speed",
                                      "spin", "gradient", "whole clip"}) {
    expect_share(table, name, 0.98, 1.0);
  }
  EXPECT_EQ(table.row("texture").all.total, 0) << "textures cannot be seen at 160 x 96";
}

TEST(Eval, SeesTexturesAtThreeTimesTheSize) {
  ScoreTable table;
  for (uint64_t i = 0; i < 10; ++i) {
    const Scene scene = sample_scene(kSeed + 1, i, Split::kHeldOut);
    table.add(name_scene(scene), compare(name_scene(scene), measure_truth(scene, 3, 7)));
  }
  expect_share(table, "texture", 0.97, 1.0);
  expect_share(table, "whole clip", 0.97, 1.0);
}

TEST(Eval, HoldsAfterTenMinutes) {
  ScoreTable table;
  for (uint64_t i = 0; i < 8; ++i) {
    const Scene scene = sample_scene(kSeed + 2, i, Split::kHeldOut);
    table.add(name_scene(scene),
              compare(name_scene(scene), measure_truth(scene, 1, 600 * kFramesPerSecond)));
  }
  expect_share(table, "whole clip", 0.97, 1.0);
}

TEST(Eval, HoldsThroughTheErrorsOfAnAutoencoder) {
  ScoreTable table;
  for (uint64_t i = 0; i < 10; ++i) {
    const Scene scene = sample_scene(kSeed + 3, i, Split::kHeldOut);
    table.add(name_scene(scene),
              compare(name_scene(scene), measure_truth(scene, 1, 0, blur_and_noise)));
  }
  expect_share(table, "whole clip", 0.95, 1.0);
  expect_share(table, "spin", 0.9, 1.0);
}

TEST(Eval, CaptionsOfOtherScenesScoreAtChance) {
  ScoreTable table;
  for (uint64_t i = 0; i < 40; ++i) {
    const Scene scene = sample_scene(kSeed, i, Split::kHeldOut);
    const Scene other = sample_scene(kSeed + 9, i, Split::kHeldOut);
    const NamedScene wanted = name_scene(other);
    const RenderWindow window = RenderWindow::whole(1, 0, kClipFrames);
    const std::vector<uint8_t> pixels = render(scene, window);
    table.add(wanted, compare(wanted, measure({pixels.data(), kClipFrames, 160, 96},
                                              std::ssize(wanted.objects))));
  }
  // One in nine, five, seven, six and two; missing second objects and the free pairing of two move
  // that a little.
  expect_share(table, "colour", 0.02, 0.28);
  expect_share(table, "background", 0.05, 0.38);
  expect_share(table, "motion", 0.02, 0.28);
  expect_share(table, "shape", 0.02, 0.32);
  expect_share(table, "size", 0.3, 0.7);
  expect_share(table, "whole clip", 0.0, 0.05);
}

TEST(Eval, NoObjectIsNothingRight) {
  const std::vector<uint8_t> grey(static_cast<size_t>(10 * 96 * 160 * 3), 96);
  const MeasuredScene seen = measure({grey.data(), 10, 160, 96}, 2);
  EXPECT_TRUE(seen.objects.empty());
  EXPECT_EQ(seen.ground, Ground::kGrey);
  for (const Check& c : compare(name_scene(sample_scene(kSeed, 0)), seen)) {
    if (c.measure != "background" && c.measure != "gradient") {
      EXPECT_FALSE(c.right) << c.measure;
    }
  }
}

class EvalFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("uf_eval_" + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void write_lines(const std::string& text) const {
    std::ofstream(folder_ / "captions.jsonl") << text;
  }
  std::filesystem::path folder_;
};

TEST_F(EvalFolder, MeasuresFilesOfOurEncoder) {
  if (available_video_encoders().empty()) GTEST_SKIP() << "this build writes no MP4 files";
  EvalSetOptions set;
  set.folder = folder_.string();
  set.count = 8;
  set.seed = 5;
  set.render_scale = 2;
  const Status written = write_eval_set(set);
  ASSERT_TRUE(written.ok()) << written.message();
  EvalOptions options;
  options.folder = folder_.string();
  options.at = {0.0, 1.0, 100.0};
  options.seconds = 4.0;
  options.sheet_frames = true;
  int64_t told = 0;
  options.progress = [&told](int64_t done, int64_t all) {
    EXPECT_EQ(all, 8);
    told = std::max(told, done);
  };
  const Result<EvalReport> report = evaluate(options);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(told, 8);
  ASSERT_EQ(report->windows.size(), 3U);
  for (size_t w = 0; w < 2; ++w) {
    const ScoreTable& table = report->windows[w].table;
    EXPECT_EQ(table.clips(), 8);
    expect_share(table, "whole clip", 1.0, 1.0);
    expect_share(table, "texture", 0.9, 1.0);
  }
  EXPECT_EQ(report->windows[2].table.clips(), 0) << "the files end before";

  const nlohmann::json json = nlohmann::json::parse(report_json(*report));
  EXPECT_EQ(json["windows"][0]["measures"]["colour"]["all"]["total"],
            report->windows[0].table.row("colour").all.total);
  EXPECT_EQ(json["windows"][0]["results"].size(), 8U);
  EXPECT_NE(report_table(*report).find("100.0 %"), std::string::npos);
  const Result<RgbImage> sheet = report_sheet(*report, 5);
  ASSERT_TRUE(sheet.ok()) << sheet.status().message();
  EXPECT_EQ(sheet->width, 6 * 320 + 7 * 4);
  EXPECT_EQ(sheet->height, 5 * 192 + 6 * 4);
}

// The same scenes at 160x96 and at 480x288: an object in each cell, and only the large pictures
// have fine detail.
TEST_F(EvalFolder, ComparesFoldersSideBySide) {
  if (available_video_encoders().empty()) GTEST_SKIP() << "this build writes no MP4 files";
  EvalSetOptions set;
  set.count = 8;
  set.seed = 5;
  set.frames = 32;
  ComparisonOptions options;
  for (const int64_t scale : {1, 3}) {
    set.folder = (folder_ / std::to_string(scale)).string();
    set.render_scale = scale;
    const Status written = write_eval_set(set);
    ASSERT_TRUE(written.ok()) << written.message();
    options.folders.push_back(set.folder);
  }
  options.at = 1.0;
  options.clips = 3;
  const Result<RgbImage> sheet = comparison_sheet(options);
  ASSERT_TRUE(sheet.ok()) << sheet.status().message();
  const int64_t side = 56 * 3;
  ASSERT_EQ(sheet->width, 2 * side + 3 * 4);
  ASSERT_EQ(sheet->height, 3 * side + 4 * 4);
  const auto detail = [&](int64_t column, int64_t row) {
    double sum = 0.0;
    for (int64_t y = 0; y < side; ++y) {
      const uint8_t* const line =
          sheet->pixels.data() +
          3 * ((4 + row * (side + 4) + y) * sheet->width + 4 + column * (side + 4));
      for (int64_t x = 0; x < 3 * (side - 1); ++x) {
        sum += std::abs(static_cast<double>(line[x + 3]) - static_cast<double>(line[x]));
      }
    }
    return sum;
  };
  for (int64_t row = 0; row < 3; ++row) {
    EXPECT_GT(detail(1, row), 1.5 * detail(0, row)) << row;
    EXPECT_GT(detail(1, row), 1e4) << "there is no object";
  }
  options.at = 100.0;
  EXPECT_EQ(comparison_sheet(options).status().code(), StatusCode::kNotFound);
}

// One video is missing and one is none: both are named and have nothing right.
TEST_F(EvalFolder, VideosThatCannotBeReadCountAsWrong) {
  EvalOptions options;
  options.folder = folder_.string();
  options.seconds = 1.0;
  const auto line = [](const char* file) {
    return fmt::format(R"({{"file": "{}", "caption": "a red ring on a grey backdrop"}})", file);
  };
  write_lines(line("missing.y4m") + "\n" + line("broken.y4m"));
  std::ofstream(folder_ / "broken.y4m") << "YUV4MPEG2 nothing";
  EXPECT_FALSE(evaluate(options).ok()) << "there is nothing to measure";
  const Scene scene = sample_scene(kSeed, 3);
  const RenderWindow window = RenderWindow::whole(1, 0, 20);
  const std::vector<uint8_t> pixels = render(scene, window);
  SinkOptions sink_options;
  sink_options.path = (folder_ / "good.y4m").string();
  const auto sink = open_sink(sink_options, {window.width, window.height, kFramesPerSecond, 1});
  ASSERT_TRUE(sink.ok());
  for (int64_t f = 0; f < 20; ++f) {
    ASSERT_TRUE((*sink)
                    ->write(RgbFrame::contiguous(pixels.data() + f * window.bytes() / 20,
                                                 window.width, window.height))
                    .ok());
  }
  ASSERT_TRUE((*sink)->finish().ok());
  write_lines(line("missing.y4m") + "\n" + line("broken.y4m") + "\n" + line("good.y4m"));
  const Result<EvalReport> report = evaluate(options);
  ASSERT_TRUE(report.ok()) << report.status().message();
  const EvalWindow& first = report->windows[0];
  EXPECT_EQ(first.table.clips(), 3);
  EXPECT_EQ(first.table.row("colour").all.total, 3);
  EXPECT_EQ(first.table.row("whole clip").all.total, 3);
  EXPECT_LE(first.table.row("background").all.right, 1);
  EXPECT_TRUE(first.clips[2].failure.empty() && first.clips[2].measured);
  for (size_t i = 0; i < 2; ++i) EXPECT_FALSE(first.clips[i].failure.empty());
  const std::string table = report_table(*report);
  EXPECT_NE(table.find("missing.y4m"), std::string::npos) << table;
  EXPECT_NE(table.find("broken.y4m"), std::string::npos) << table;
  EXPECT_NE(report_json(*report).find("failure"), std::string::npos);
}

TEST_F(EvalFolder, CaptionLinesSurviveTheFile) {
  std::string text;
  for (uint64_t i = 0; i < 50; ++i) {
    CaptionLine line;
    line.file = "a/b.mp4";
    const Scene scene = sample_scene(7, i);
    line.caption = caption(scene, 7, i, 0, CaptionDetail::kFull);
    line.scene = name_scene(scene);
    text += caption_line_json(line) + "\n";
  }
  text += R"({"file": "c.mp4", "caption": "a red ring on a brown backdrop"})";
  write_lines(text);
  const auto lines = read_captions((folder_ / "captions.jsonl").string());
  ASSERT_TRUE(lines.ok()) << lines.status().message();
  ASSERT_EQ(lines->size(), 51U);
  for (uint64_t i = 0; i < 50; ++i) {
    EXPECT_EQ((*lines)[i].scene, name_scene(sample_scene(7, i)));
  }
  EXPECT_EQ(lines->back().scene.objects[0].shape, Shape::kRing);
  EXPECT_FALSE(lines->back().scene.objects[0].motion.has_value());
}

TEST_F(EvalFolder, RefusesWhatIsNoCaptionsFile) {
  const auto code = [this](const std::string& text) {
    write_lines(text);
    return read_captions((folder_ / "captions.jsonl").string()).status().code();
  };
  EXPECT_EQ(code(""), StatusCode::kMalformed);
  EXPECT_EQ(code("[]"), StatusCode::kMalformed);
  EXPECT_EQ(code(R"({"file": "a.mp4"})"), StatusCode::kMalformed);
  EXPECT_EQ(code(R"({"file": "a.mp4", "caption": 3})"), StatusCode::kMalformed);
  EXPECT_EQ(code(R"({"file": "../a.mp4", "caption": "a ring"})"), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(R"({"file": "/a.mp4", "caption": "a ring"})"), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(R"({"file": "a.mp4", "caption": "a quiet evening"})"),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code(R"({"file": "a.mp4", "caption": "a", "scene": {"objects": []}})"),
            StatusCode::kMalformed);
  EXPECT_EQ(code(R"({"file": "a", "caption": "a", "scene": {"objects": [{"shape": "blob"}]}})"),
            StatusCode::kMalformed);
  EXPECT_EQ(read_captions((folder_ / "none.jsonl").string()).status().code(),
            StatusCode::kNotFound);
}

}  // namespace
}  // namespace ultraflash::world

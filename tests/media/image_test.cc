#include "media/image.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "media/media_test_util.h"
#include "media/picture_names.h"

namespace ultraflash {
namespace {

using media_test::noise;

TEST(PngTest, RoundTripIsExactAtEveryLevelAndStride) {
  UF_REQUIRE_PNG();
  const TempFolder folder;
  for (const int level : {0, kFastPng, 6, kSmallPng}) {
    const RgbImage image = noise(37, 21, 4);
    ASSERT_OK(write_png(folder / "a.png", image.view(), level));
    const Result<RgbImage> back = read_png(folder / "a.png");
    ASSERT_OK(back.status());
    EXPECT_EQ(back->width, 37);
    EXPECT_EQ(back->height, 21);
    EXPECT_EQ(back->pixels, image.pixels);
    EXPECT_FALSE(std::filesystem::exists(folder / "a.png.part"));
  }
  const RgbImage wide = noise(40, 10, 9);
  const RgbFrame part{wide.view().row(2) + 3, 20, 5, wide.view().row_stride};
  const auto bytes = encode_png(part);
  ASSERT_OK(bytes.status());
  EXPECT_EQ(decode_png(*bytes, "part")->pixels, media_test::copy_of(part).pixels);
}

TEST(PngTest, ReadsGreyPalettesDeepAndTransparentPictures) {
  UF_REQUIRE_PNG();
  if (media_test::output_of("ffmpeg -version").find("ffmpeg version") == std::string::npos) {
    GTEST_SKIP() << "there is no ffmpeg program to make such files";
  }
  const TempFolder folder;
  const RgbImage image = media_test::moving_pattern(32, 16, 0);
  ASSERT_OK(write_png(folder / "in.png", image.view()));
  for (const char* format :
       {"gray", "gray16be", "ya8", "rgba", "rgb48be", "rgba64be", "monob", "pal8"}) {
    const std::string out = folder / (std::string(format) + ".png");
    media_test::output_of("ffmpeg -v error -y -i " + (folder / "in.png").string() + " -pix_fmt " +
                          format + " " + out);
    const auto back = read_png(out);
    ASSERT_OK(back.status());
    EXPECT_EQ(back->width, 32) << format;
    EXPECT_EQ(back->pixels.size(), image.pixels.size());
    if (std::string_view(format).starts_with("rgb")) {
      EXPECT_LE(media_test::largest_difference(back->view(), image.view()), 1) << format;
    }
  }
}

TEST(PngTest, DamagedAndHugeFilesAreRefused) {
  UF_REQUIRE_PNG();
  const auto good = encode_png(noise(16, 16, 1).view());
  ASSERT_OK(good.status());
  for (size_t size = 0; size < good->size(); size += 7) {
    const auto cut = decode_png(std::span(*good).first(size), "cut.png");
    ASSERT_EQ(cut.status().code(), StatusCode::kMalformed) << size;
    ASSERT_TRUE(cut.status().message().starts_with("cut.png: "));
  }
  for (size_t i = 0; i < good->size(); ++i) {
    std::vector<uint8_t> damaged = *good;
    damaged[i] ^= 0x55;
    (void)decode_png(damaged, "damaged.png");  // any answer, no crash
  }
  ImageLimits limits;
  limits.max_side = 15;
  const auto large = decode_png(*good, "large.png", limits);
  EXPECT_EQ(large.status().code(), StatusCode::kUnsupported);
  EXPECT_NE(large.status().message().find("16x16"), std::string::npos);
  limits = {};
  limits.max_pixels = 255;
  EXPECT_EQ(decode_png(*good, "large.png", limits).status().code(), StatusCode::kUnsupported);
}

TEST(PngTest, WithoutLibpngTheSentenceSaysWhatToInstall) {
  if (media_test::has_png()) GTEST_SKIP() << "this build has libpng";
  const Status status = encode_png(noise(2, 2, 1).view()).status();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("libpng-dev"), std::string::npos);
}

TEST(PictureSequenceTest, FolderAndPatternRoundTripExactly) {
  UF_REQUIRE_PNG();
  const TempFolder folder;
  for (const std::filesystem::path& path : {folder / "frames/", folder / "x_%03d.png"}) {
    SinkOptions options;
    options.path = path;
    auto sink = open_sink(options, {24, 18, 16, 1});
    ASSERT_OK(sink.status());
    std::vector<RgbImage> written;
    for (uint32_t i = 0; i < 12; ++i) {
      written.push_back(noise(24, 18, i));
      ASSERT_OK((*sink)->write(written.back().view()));
    }
    ASSERT_OK((*sink)->finish());
    EXPECT_EQ((*sink)->stats().frames, 12);
    const media_test::ReadVideo video = media_test::read_video(path);
    ASSERT_OK(video.status);
    ASSERT_EQ(video.frames.size(), 12U);
    EXPECT_EQ(video.info.frames, 12);
    for (size_t i = 0; i < 12; ++i) EXPECT_EQ(video.frames[i].pixels, written[i].pixels) << i;
  }
  EXPECT_TRUE(std::filesystem::exists(folder / "frames/frame_00011.png"));
  EXPECT_TRUE(std::filesystem::exists(folder / "x_011.png"));
}

TEST(PictureSequenceTest, BadFoldersAndMixedSizesAreNamed) {
  UF_REQUIRE_PNG();
  const TempFolder folder;
  EXPECT_EQ(media_test::read_video(folder.path()).status.code(), StatusCode::kNotFound);
  EXPECT_EQ(media_test::read_video(folder / "no_%d.png").status.code(), StatusCode::kNotFound);
  ASSERT_OK(write_png(folder / "1.png", noise(8, 8, 1).view()));
  ASSERT_OK(write_png(folder / "2.png", noise(9, 8, 1).view()));
  const auto mixed = media_test::read_video(folder.path());
  EXPECT_EQ(mixed.frames.size(), 1U);
  EXPECT_EQ(mixed.status.code(), StatusCode::kUnsupported);
  EXPECT_NE(mixed.status.message().find("2.png"), std::string::npos) << mixed.status.message();
  write_text(folder / "2.png", "not a picture");
  EXPECT_EQ(media_test::read_video(folder.path()).status.code(), StatusCode::kMalformed);
  ReaderLimits limits;
  limits.max_frames = 1;
  EXPECT_EQ(media_test::read_video(folder.path(), limits).status.code(), StatusCode::kUnsupported);
}

TEST(PictureNamesTest, NumbersSortAsNumbers) {
  const TempFolder folder;
  for (const char* name : {"f10.png", "f9.png", "f010.PNG", "a.png", "f9b2.png", "f9b10.png",
                           "f.txt", ".png", "f99999999999999999999999.png"}) {
    write_text(folder / name, "");
  }
  const auto paths = list_pictures(folder.path(), 100);
  ASSERT_OK(paths.status());
  std::vector<std::string> names;
  for (const std::string& path : *paths) {
    names.push_back(path.substr(folder.path().string().size() + 1));
  }
  EXPECT_EQ(names, (std::vector<std::string>{"a.png", "f9.png", "f9b2.png", "f9b10.png", "f010.PNG",
                                             "f10.png", "f99999999999999999999999.png"}));
}

TEST(PictureNamesTest, PatternsAreParsedByHand) {
  EXPECT_EQ(PicturePattern::parse("a_%05d.png")->path(42), "a_00042.png");
  EXPECT_EQ(PicturePattern::parse("a_%d.png")->path(123456), "a_123456.png");
  EXPECT_EQ(PicturePattern::parse("50%%_%2d.png")->path(7), "50%_07.png");
  EXPECT_EQ(PicturePattern::parse("/x/y/%d.png")->folder(), "/x/y");
  EXPECT_EQ(PicturePattern::parse("/%d.png")->folder(), "/");
  EXPECT_EQ(PicturePattern::parse("%d.png")->folder(), ".");
  for (const char* bad : {"a.png", "%s.png", "%d_%d.png", "%n", "%", "%999999999999d.png", "%5",
                          "%d/a.png", "%-5d.png", "%ld.png"}) {
    EXPECT_EQ(PicturePattern::parse(bad).status().code(), StatusCode::kInvalidArgument) << bad;
  }
}

TEST(ResizeTest, SameSizeIsIdentityAndFlatStaysFlat) {
  const RgbImage image = noise(23, 17, 2);
  EXPECT_EQ(resize(image.view(), 23, 17)->pixels, image.pixels);
  RgbImage flat = RgbImage::black(40, 30);
  std::fill(flat.pixels.begin(), flat.pixels.end(), uint8_t{77});
  for (const auto& [width, height] : {std::pair<int64_t, int64_t>{1, 1}, {7, 91}, {100, 3}}) {
    const auto resized = resize(flat.view(), width, height);
    ASSERT_OK(resized.status());
    EXPECT_EQ(resized->pixels,
              std::vector<uint8_t>(static_cast<size_t>(3 * width * height), uint8_t{77}));
  }
}

TEST(ResizeTest, ShrinkingAveragesAreasAndGrowingInterpolates) {
  const uint8_t pixels[] = {0, 0, 0, 100, 50, 10, 200, 100, 20, 100, 50, 10};
  EXPECT_EQ(resize(RgbFrame::contiguous(pixels, 4, 1), 2, 1)->pixels,
            (std::vector<uint8_t>{50, 25, 5, 150, 75, 15}));
  EXPECT_EQ(resize(RgbFrame::contiguous(pixels, 2, 1), 4, 1)->pixels,
            (std::vector<uint8_t>{0, 0, 0, 25, 13, 3, 75, 38, 8, 100, 50, 10}));
  // 3 to 2: every target covers one and a half source pixels.
  const uint8_t thirds[] = {0, 0, 0, 90, 90, 90, 180, 180, 180};
  EXPECT_EQ(resize(RgbFrame::contiguous(thirds, 3, 1), 2, 1)->pixels,
            (std::vector<uint8_t>{30, 30, 30, 150, 150, 150}));
  const RgbImage image = noise(64, 48, 6);
  const auto one = resize(image.view(), 1, 1);
  ASSERT_OK(one.status());
  double sum = 0.0;
  for (size_t i = 0; i < image.pixels.size(); i += 3) sum += image.pixels[i];
  EXPECT_NEAR(one->pixels[0], sum / (64.0 * 48.0), 0.51);
  EXPECT_EQ(resize(image.view(), 0, 5).status().code(), StatusCode::kInvalidArgument);
}

TEST(ContactSheetTest, LaysFramesOutInAGridWithMargins) {
  std::vector<RgbImage> images;
  std::vector<RgbFrame> frames;
  for (uint32_t i = 0; i < 5; ++i) images.push_back(noise(10, 6, i));
  for (const RgbImage& image : images) frames.push_back(image.view());
  SheetOptions options;
  options.margin = 2;
  const auto sheet = contact_sheet(frames, options);
  ASSERT_OK(sheet.status());
  EXPECT_EQ(sheet->width, 3 * 10 + 4 * 2);
  EXPECT_EQ(sheet->height, 2 * 6 + 3 * 2);
  const RgbFrame fourth{sheet->view().row(2 + 6 + 2) + 3 * 2, 10, 6, 3 * sheet->width};
  EXPECT_EQ(media_test::copy_of(fourth).pixels, images[3].pixels);
  EXPECT_EQ(sheet->pixels.back(), options.background) << "the sixth place is empty";

  options.max_width = 20;
  options.columns = 2;
  const auto small = contact_sheet(frames, options);
  ASSERT_OK(small.status());
  EXPECT_EQ(small->width, 2 * 7 + 3 * 2);
  EXPECT_EQ(small->height, 3 * 4 + 4 * 2);
}

TEST(ContactSheetTest, RefusesWhatCannotBeLaidOut) {
  const RgbImage a = noise(10, 6, 1);
  const RgbImage b = noise(10, 7, 1);
  EXPECT_EQ(contact_sheet({}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(contact_sheet(std::vector<RgbFrame>{a.view(), b.view()}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(contact_sheet(std::vector<RgbFrame>{RgbFrame{}}).status().code(),
            StatusCode::kInvalidArgument);
  SheetOptions options;
  options.max_width = 10;
  EXPECT_EQ(contact_sheet(std::vector<RgbFrame>(4, a.view()), options).status().code(),
            StatusCode::kInvalidArgument);
  options = {};
  options.columns = 2000;
  EXPECT_EQ(contact_sheet(std::vector<RgbFrame>(2000, a.view()), options).status().code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ultraflash

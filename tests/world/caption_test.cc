#include "train/world/caption.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <set>

#include "text/prompt_cleaning.h"
#include "text/tokenizer.h"

namespace ultraflash::world {
namespace {

// What a full caption can say: it does not say that a thing does not turn, or that a ground is
// even.
NamedScene sayable(const Scene& scene) {
  NamedScene named = name_scene(scene);
  for (NamedObject& object : named.objects) {
    if (!*object.spinning) object.spinning.reset();
  }
  if (!*named.gradient) named.gradient.reset();
  if (!*named.starry) named.starry.reset();
  return named;
}

TEST(Caption, FullOnesSayEverything) {
  for (uint64_t i = 0; i < 5000; ++i) {
    const Scene scene = sample_scene(1, i, i % 2 == 0 ? Split::kTraining : Split::kHeldOut);
    const std::string text = caption(scene, 9, i, 0, CaptionDetail::kFull);
    const Result<NamedScene> parsed = parse_caption(text);
    ASSERT_TRUE(parsed.ok()) << text << ": " << parsed.status().message();
    ASSERT_EQ(*parsed, sayable(scene)) << text;
  }
}

template <typename T>
bool agrees(const std::optional<T>& said, const std::optional<T>& truth) {
  return !said.has_value() || said == truth;
}

TEST(Caption, AnyCaptionSaysNothingWrong) {
  int64_t colours = 0;
  int64_t textures = 0;
  int64_t objects = 0;
  for (uint64_t i = 0; i < 5000; ++i) {
    const Scene scene = sample_scene(2, i);
    const std::string text = caption(scene, 9, i, 3);
    const Result<NamedScene> parsed = parse_caption(text);
    ASSERT_TRUE(parsed.ok()) << text << ": " << parsed.status().message();
    const NamedScene truth = name_scene(scene);
    ASSERT_EQ(parsed->objects.size(), truth.objects.size()) << text;
    for (size_t k = 0; k < truth.objects.size(); ++k) {
      const NamedObject& said = parsed->objects[k];
      const NamedObject& is = truth.objects[k];
      ASSERT_TRUE(agrees(said.shape, is.shape) && agrees(said.colour, is.colour) &&
                  agrees(said.texture, is.texture) && agrees(said.size, is.size) &&
                  agrees(said.motion, is.motion) && agrees(said.speed, is.speed) &&
                  agrees(said.spinning, is.spinning))
          << text;
      ++objects;
      colours += said.colour.has_value() ? 1 : 0;
      textures += said.texture.has_value() ? 1 : 0;
    }
    ASSERT_TRUE(agrees(parsed->ground, truth.ground) && agrees(parsed->gradient, truth.gradient) &&
                agrees(parsed->starry, truth.starry))
        << text;
  }
  // 0.3 + 0.7 * 0.9, and 0.3 + 0.7 * 0.5.
  EXPECT_NEAR(static_cast<double>(colours) / static_cast<double>(objects), 0.93, 0.02);
  EXPECT_NEAR(static_cast<double>(textures) / static_cast<double>(objects), 0.65, 0.03);
}

TEST(Caption, VariantsDifferAndRepeat) {
  const Scene scene = sample_scene(4, 77);
  std::set<std::string> texts;
  for (uint32_t variant = 0; variant < 600; ++variant) {
    const std::string text = caption(scene, 4, 77, variant);
    EXPECT_EQ(text, caption(scene, 4, 77, variant));
    texts.insert(text);
  }
  EXPECT_GT(texts.size(), 500U);
}

// The text encoder reads 48 tokens, </s> included.
TEST(Caption, TokenisesWhole) {
  const char* root = std::getenv("UF_SOURCE_DIR");
  ASSERT_NE(root, nullptr) << "set UF_SOURCE_DIR to the source tree";
  const Result<Tokenizer> tokenizer =
      Tokenizer::load(std::filesystem::path(root) / "models/pocket/spiece.model");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  int64_t cut = 0;
  int64_t tokens = 0;
  constexpr uint64_t kCaptions = 10000;
  for (uint64_t i = 0; i < kCaptions; ++i) {
    const std::string text = caption(sample_scene(3, i), 3, i, 0,
                                     i % 2 == 0 ? CaptionDetail::kAny : CaptionDetail::kFull);
    const Result<TokenIds> ids = encode_prompt(*tokenizer, text, 128);
    ASSERT_TRUE(ids.ok()) << ids.status().message();
    for (int64_t k = 0; k < ids->length; ++k) {
      ASSERT_NE(ids->ids[static_cast<size_t>(k)], tokenizer->unknown_id()) << text;
    }
    tokens += ids->length;
    if (ids->length > 48) {
      if (cut == 0) ADD_FAILURE() << ids->length << " tokens: " << text;
      ++cut;
    }
  }
  EXPECT_EQ(cut, 0) << "captions longer than 48 tokens of " << kCaptions;
  RecordProperty("tokens_per_caption", std::to_string(tokens / static_cast<int64_t>(kCaptions)));
}

TEST(CaptionParser, ReadsWhatPeopleWrite) {
  const Result<NamedScene> one = parse_caption(
      "A big slowly spinning purple checkered cross, which drifts upwards, on navy blue");
  ASSERT_TRUE(one.ok());
  ASSERT_EQ(one->objects.size(), 1U);
  EXPECT_EQ(one->objects[0].shape, Shape::kCross);
  EXPECT_EQ(one->objects[0].colour, Colour::kPurple);
  EXPECT_EQ(one->objects[0].texture, Texture::kCheckered);
  EXPECT_EQ(one->objects[0].motion, Motion::kUp);
  EXPECT_EQ(one->objects[0].spinning, true);
  EXPECT_EQ(one->ground, Ground::kNavy);
  EXPECT_FALSE(one->starry.has_value());

  const Result<NamedScene> two = parse_caption(
      "on a starry black sky, a small plain yellow star circles while a large blue ring stays "
      "still");
  ASSERT_TRUE(two.ok());
  ASSERT_EQ(two->objects.size(), 2U);
  EXPECT_EQ(two->objects[0].motion, Motion::kCircling);
  EXPECT_EQ(two->objects[0].texture, Texture::kPlain);
  EXPECT_EQ(two->objects[1].shape, Shape::kRing);
  EXPECT_EQ(two->objects[1].motion, Motion::kStill);
  EXPECT_EQ(two->starry, true);

  const Result<NamedScene> swapped = parse_caption("red square in front of a white disc");
  ASSERT_TRUE(swapped.ok());
  EXPECT_EQ(swapped->objects[1].colour, Colour::kRed);

  EXPECT_FALSE(parse_caption("a quiet evening").ok());
  EXPECT_FALSE(parse_caption("").ok());
  EXPECT_FALSE(parse_caption("a ring, a star and a ball").ok());
  EXPECT_FALSE(parse_caption(std::string(5000, 'a')).ok());
}

}  // namespace
}  // namespace ultraflash::world

#include "train/world/scene.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <set>
#include <tuple>

namespace ultraflash::world {
namespace {

bool same(const Scene& a, const Scene& b) {
  if (a.object_count != b.object_count || a.ground != b.ground || a.star_seed != b.star_seed) {
    return false;
  }
  for (size_t i = 0; i < static_cast<size_t>(a.object_count); ++i) {
    if (!(a.objects[i].traits == b.objects[i].traits) ||
        a.objects[i].path.x != b.objects[i].path.x) {
      return false;
    }
  }
  return true;
}

TEST(Scene, FollowsFromSeedAndIndex) {
  const Scene a = sample_scene(5, 1234567);
  EXPECT_TRUE(same(a, sample_scene(5, 1234567)));
  EXPECT_FALSE(same(a, sample_scene(6, 1234567)));
  EXPECT_FALSE(same(a, sample_scene(5, 1234568)));
  EXPECT_FALSE(same(a, sample_scene(5, 1234567, Split::kHeldOut)));
}

TEST(Scene, HeldOutTriplesNeverTrain) {
  using Triple = std::tuple<Shape, Colour, Texture>;
  std::set<Triple> training;
  std::set<Triple> held_out;
  for (uint64_t i = 0; i < 4000; ++i) {
    for (const Split split : {Split::kTraining, Split::kHeldOut}) {
      const Scene scene = sample_scene(1, i, split);
      for (size_t k = 0; k < static_cast<size_t>(scene.object_count); ++k) {
        const ObjectTraits& t = scene.objects[k].traits;
        const int sum =
            static_cast<int>(t.shape) + static_cast<int>(t.colour) + static_cast<int>(t.texture);
        ASSERT_EQ(sum % 7 == 0, split == Split::kHeldOut);
        (split == Split::kTraining ? training : held_out).insert({t.shape, t.colour, t.texture});
      }
    }
  }
  // 6 * 9 * 4 triples in all, and every one of them turns up.
  EXPECT_EQ(training.size() + held_out.size(), 216U);
  EXPECT_GT(held_out.size(), 25U);
}

TEST(Scene, EveryValueOccurs) {
  std::array<int, 7> motions = {};
  int two = 0;
  int spinning = 0;
  int starry = 0;
  int gradient = 0;
  constexpr int kScenes = 3000;
  for (uint64_t i = 0; i < kScenes; ++i) {
    const Scene scene = sample_scene(2, i);
    const SceneObject& object = scene.objects[0];
    ++motions[static_cast<size_t>(object.traits.motion)];
    two += scene.object_count == 2 ? 1 : 0;
    spinning += object.traits.spinning ? 1 : 0;
    starry += scene.starry ? 1 : 0;
    gradient += scene.gradient ? 1 : 0;
    if (scene.object_count == 2) {
      EXPECT_NE(scene.objects[0].traits.colour, scene.objects[1].traits.colour);
    }
    if (object.traits.shape == Shape::kCircle || object.traits.shape == Shape::kRing) {
      EXPECT_FALSE(object.traits.spinning);
    }
  }
  for (const int count : motions) EXPECT_NEAR(count, kScenes / 7.0, 80);
  EXPECT_NEAR(two, 0.35 * kScenes, 100);
  EXPECT_NEAR(starry, 0.25 * kScenes, 100);
  EXPECT_NEAR(gradient, 0.35 * kScenes, 100);
  EXPECT_NEAR(spinning, 0.25 * 4.0 / 6.0 * kScenes, 100);
}

TEST(Scene, ObjectsMoveAsNamedForHours) {
  constexpr int64_t kHour = 3600 * kFramesPerSecond;
  for (uint64_t i = 0; i < 400; ++i) {
    const SceneObject object = sample_scene(3, i).objects[0];
    double left = 0.0;
    double up = 0.0;
    double path = 0.0;
    for (int64_t frame = kHour; frame < kHour + 60; ++frame) {
      const Pose a = pose_at(object, frame);
      const Pose b = pose_at(object, frame + 1);
      ASSERT_GE(a.x, 0.0);
      ASSERT_LE(a.x, kCanvasWidth);
      ASSERT_GE(a.y, 0.0);
      ASSERT_LE(a.y, kCanvasHeight);
      const double dx = std::remainder(b.x - a.x, static_cast<double>(kCanvasWidth));
      const double dy = std::remainder(b.y - a.y, static_cast<double>(kCanvasHeight));
      left -= dx;
      up -= dy;
      path += std::hypot(dx, dy);
    }
    const bool fast = object.traits.speed == Speed::kFast;
    switch (object.traits.motion) {
      case Motion::kStill:
        EXPECT_NEAR(path, 0.0, 1e-6);
        break;
      case Motion::kLeft:
      case Motion::kRight:
        EXPECT_NEAR(left * (object.traits.motion == Motion::kLeft ? 1.0 : -1.0),
                    60.0 * (fast ? 10.0 : 3.75), fast ? 80.0 : 30.0);
        EXPECT_NEAR(up, 0.0, 1e-6);
        break;
      case Motion::kUp:
      case Motion::kDown:
        EXPECT_NEAR(up * (object.traits.motion == Motion::kUp ? 1.0 : -1.0),
                    60.0 * (fast ? 6.0 : 2.25), fast ? 48.0 : 18.0);
        EXPECT_NEAR(left, 0.0, 1e-6);
        break;
      case Motion::kCircling:
      case Motion::kBouncing:
        EXPECT_GT(path, 60.0);
        break;
    }
  }
}

TEST(Draws, AreEvenAndInRange) {
  Draw draw(make_random_stream(1, RandomPurpose::kTest, 0));
  std::array<int, 5> counts = {};
  for (int i = 0; i < 10000; ++i) ++counts[static_cast<size_t>(draw.below(5))];
  for (const int count : counts) EXPECT_NEAR(count, 2000, 200);
  for (int i = 0; i < 1000; ++i) {
    const double value = draw.uniform(-2.0, 3.0);
    EXPECT_GE(value, -2.0);
    EXPECT_LT(value, 3.0);
  }
}

}  // namespace
}  // namespace ultraflash::world

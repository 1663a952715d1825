#include "stream/chunk_plan.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace ultraflash {
namespace {

constexpr PictureRate kTiny{4, 4, 3};
constexpr PictureRate kReleased{4, 4, 6};
constexpr PictureRate kVae{4, 1, 0};

TEST(ChunkPlanTest, CountsOfThePublishedModes) {
  // Ultra Flash, short mode: 21 latent frames in 7 chunks; long mode: 1 + 39 x 3.
  EXPECT_EQ(kReleased.pictures(21), 78);
  EXPECT_EQ(kTiny.pictures(21), 81);
  EXPECT_EQ(kVae.pictures(21), 81);
  const Result<ChunkPlan> long_mode = ChunkPlan::make(3, true, 40, 0, kReleased);
  ASSERT_TRUE(long_mode.ok());
  EXPECT_EQ(long_mode->latent_frames(40), 118);
  EXPECT_EQ(long_mode->pictures, 466);
}

TEST(ChunkPlanTest, FirstChunkMayBeOneFrame) {
  const Result<ChunkPlan> plan = ChunkPlan::make(3, true, 3, 0, kTiny);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->chunk_frames(0), 1);
  EXPECT_EQ(plan->chunk_frames(1), 3);
  EXPECT_EQ(plan->latent_frames(3), 7);
}

TEST(ChunkPlanTest, ImpossibleCountsAreRefused) {
  EXPECT_EQ(ChunkPlan::make(3, false, -1, 0, kTiny).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ChunkPlan::make(3, false, 0, -5, kTiny).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ChunkPlan::make(3, false, int64_t{1} << 62, 0, kTiny).status().code(),
            StatusCode::kInvalidArgument);
  // One latent frame gives 4 pictures, all of which the released rule drops.
  EXPECT_EQ(ChunkPlan::make(1, false, 1, 0, kReleased).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(ChunkPlanTest, ZeroMeansEndless) {
  const Result<ChunkPlan> plan = ChunkPlan::make(3, false, 0, 0, kTiny);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->chunks, 0);
  EXPECT_EQ(plan->pictures, 0);
}

RC_GTEST_PROP(ChunkPlanTest, PicturesAreMetByTheFewestChunks, ()) {
  const auto pictures = *rc::gen::inRange<int64_t>(1, 5000);
  const auto per_chunk = *rc::gen::inRange<int64_t>(1, 9);
  const bool single = *rc::gen::arbitrary<bool>();
  const PictureRate rate = *rc::gen::element(kTiny, kReleased, kVae);
  const Result<ChunkPlan> plan = ChunkPlan::make(per_chunk, single, 0, pictures, rate);
  RC_ASSERT(plan.ok());
  RC_ASSERT(plan->pictures == pictures);
  RC_ASSERT(rate.pictures(plan->latent_frames(plan->chunks)) >= pictures);
  RC_ASSERT(plan->chunks == 1 || rate.pictures(plan->latent_frames(plan->chunks - 1)) < pictures);
}

}  // namespace
}  // namespace ultraflash

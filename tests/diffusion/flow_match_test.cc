#include "diffusion/flow_match.h"

#include <gtest/gtest.h>

#include <bit>
#include <vector>

namespace ultraflash {
namespace {

// Bits of the specification (Self-Forcing, scheduler tables).
TEST(FlowMatchTest, WarpedStepsHaveTheReferenceBits) {
  const FlowMatchSchedule schedule(5.0F);
  const std::vector<int64_t> steps = {1000, 750, 500, 250};
  const Result<std::vector<float>> warped = schedule.warp(steps);
  ASSERT_TRUE(warped.ok());
  const std::vector<uint32_t> timesteps = {0x447a0000, 0x446a6000, 0x44505555, 0x441c4000};
  const std::vector<uint32_t> sigmas = {0x3f800000, 0x3f700000, 0x3f555555, 0x3f200000};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(std::bit_cast<uint32_t>((*warped)[i]), timesteps[i]);
    EXPECT_EQ(std::bit_cast<uint32_t>(schedule.sigma_at((*warped)[i])), sigmas[i]);
  }
}

TEST(FlowMatchTest, TablesOfBothShifts) {
  const FlowMatchSchedule five(5.0F);
  EXPECT_FLOAT_EQ(five.sigmas()[1], 0.99979979F);
  EXPECT_FLOAT_EQ(five.sigmas()[900], 0.35714287F);
  EXPECT_FLOAT_EQ(five.timesteps()[999], 4.98008F);
  const FlowMatchSchedule eight(8.0F);
  EXPECT_FLOAT_EQ(eight.sigmas()[250], 0.95999998F);
  EXPECT_FLOAT_EQ(eight.timesteps()[750], 727.27277F);
}

TEST(FlowMatchTest, StepZeroIsTheCleanEnd) {
  const FlowMatchSchedule schedule;
  const std::vector<int64_t> steps = {1000, 0};
  EXPECT_EQ((*schedule.warp(steps))[1], 0.0F);
  // The nearest table entry of t = 0 is the last one, not zero.
  EXPECT_FLOAT_EQ(schedule.sigma_at(0.0F), 0.00498008F);
}

TEST(FlowMatchTest, ListsThatCannotBeAreRefused) {
  const FlowMatchSchedule schedule;
  for (const std::vector<int64_t>& steps :
       {std::vector<int64_t>{}, {1001}, {-1}, {500, 500}, {250, 500}}) {
    EXPECT_EQ(schedule.warp(steps).status().code(), StatusCode::kInvalidArgument);
  }
}

TEST(FlowMatchTest, ReducedStepsOfDynamicCacheManagement) {
  EXPECT_EQ(reduced_steps(4, 0), (std::vector<int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(reduced_steps(4, 4), (std::vector<int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(reduced_steps(4, 3), (std::vector<int64_t>{0, 2, 3}));  // 1.5 rounds to even
  EXPECT_EQ(reduced_steps(4, 2), (std::vector<int64_t>{0, 3}));
  EXPECT_EQ(reduced_steps(4, 1), (std::vector<int64_t>{0}));
}

}  // namespace
}  // namespace ultraflash

// The plan against what sessions take, and its numbers at full size.
#include "stream/memory_plan.h"

#include <gtest/gtest.h>

#include <string>

#include "stream/tiny_recipe.h"
#include "ultraflash/engine.h"

namespace ultraflash {
namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;

double gib(uint64_t bytes) { return static_cast<double>(bytes) / kGib; }

MemoryPlan full_size(const std::string& name, int64_t scale) {
  const Result<Recipe> recipe = Recipe::find(name);
  if (!recipe.ok()) throw std::runtime_error(recipe.status().message());
  MemoryQuestion question;
  question.scale = scale;
  question.compute = DType::kBF16;
  question.gpu = true;
  return plan_memory(recipe->data(), question);
}

TEST(MemoryPlanTest, FullSizeByHand) {
  const MemoryPlan plan = full_size("ultra-flash-1k", 2);
  // 30 layers, k and v, 21 frames of 1560 tokens of 1536 in bf16.
  EXPECT_EQ(plan.generator_cache, 30ULL * 2 * 21 * 1560 * 1536 * 2);
  // 60 x 104 patches are 8 x 13 windows of 8 x 8; 30 layers keep 3 temporal blocks each in one ring
  // with room for a group of 3; 128 tokens of k and of v and one pooled k a block.
  EXPECT_EQ(plan.refiner_cache, (30ULL * 3 + 3) * 8 * 13 * 1536 * 2 * (128 + 128 + 1));
  EXPECT_NEAR(gib(plan.weights), 5.3, 0.3);
  EXPECT_LT(gib(plan.total()), 22.0);
  EXPECT_LT(gib(full_size("ultra-flash-2k", 3).total()), 33.0);
}

TEST(MemoryPlanTest, CachesOfASessionAreThePlans) {
  // Two windows that differ in the cache alone: what the arena holds differs by what the plan says.
  const auto measure = [](int64_t frames) {
    EngineOptions options;
    options.device = "cpu";
    options.threads = 2;
    options.window_frames = frames;
    Result<Engine> engine = Engine::load(testing::tiny_recipe(), options);
    if (!engine.ok()) throw std::runtime_error(engine.status().message());
    SessionOptions stream;
    stream.prompt = "a red circle";
    stream.chunks = 2;
    Result<Session> session = engine->start(stream);
    while (session->next().ok()) {
    }
    return session->stats().arena_peak_bytes;
  };
  const auto planned = [](int64_t frames) {
    RecipeData data = testing::tiny_recipe().data();
    data.generator.cache_frames = frames;
    MemoryQuestion question;
    question.scale = data.default_scale;
    return plan_memory(data, question).generator_cache;
  };
  const auto measured = static_cast<int64_t>(measure(90) - measure(9));
  const auto expected = static_cast<int64_t>(planned(90) - planned(9));
  EXPECT_NEAR(static_cast<double>(measured), static_cast<double>(expected),
              0.01 * static_cast<double>(expected));
}

TEST(MemoryPlanTest, RefusalSaysWhatIsNeeded) {
  const Result<Recipe> recipe = Recipe::find("ultra-flash-1k");
  ASSERT_TRUE(recipe.ok());
  const MemoryPlan plan = full_size("ultra-flash-1k", 2);
  EXPECT_TRUE(require_memory(recipe->data(), plan, plan.total(), "GPU 0 has").ok());
  const Status status = require_memory(recipe->data(), plan, uint64_t{8} << 30,
                                       "of 139.80 GiB on cuda:0 other "
                                       "programs leave");
  EXPECT_EQ(status.code(), StatusCode::kOutOfMemory);
  EXPECT_NE(status.message().find("weights 5."), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("other programs leave 8.00 GiB"), std::string::npos);
}

}  // namespace
}  // namespace ultraflash

// Measuring clips while training: true clips that pass through the autoencoder must score as true,
// and clips of other captions must not.
#include "train/samples.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <string>

#include "ops/autograd/autograd_executor.h"
#include "ultraflash/recipe.h"

namespace ultraflash {
namespace {

class SamplesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* source = std::getenv("UF_SOURCE_DIR");
    if (source == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
    const Result<Recipe> recipe = Recipe::find("pocket");
    ASSERT_TRUE(recipe.ok()) << recipe.status().message();
    context_.recipe = recipe->data();
    context_.compute = DType::kF32;
    context_.executor = make_autograd_executor({});
    context_.config.init.autoencoder = std::string(source) + "/models/pocket";
    context_.config.evaluate.captions = 8;
    context_.config.evaluate.batch = 4;  // two batches
    context_.config.bank.latent_frames = 13;
    context_.config.data.seed = 3;
    context_.config.data.workers = 2;
  }

  std::map<std::string, double> measure(const Samples& samples, int64_t offset) {
    Result<FrozenAutoencoder> autoencoder = FrozenAutoencoder::open(context_);
    Result<std::unique_ptr<TrainingClips>> clips = TrainingClips::open(context_, /*unseen=*/true);
    EXPECT_TRUE(autoencoder.ok() && clips.ok());
    const Measures measures = samples.measure([&](const SampleRequest& request) {
      const int64_t count = request.noise.size(0);
      ClipWindow window;
      window.frames = 4 * request.noise.size(1);
      at::Tensor pixels =
          at::empty({count, window.frames, window.height, window.width, 3}, at::kByte);
      for (int64_t i = 0; i < count; ++i) {
        (*clips)->render(request.first + i + offset, window,
                         pixels.mutable_data_ptr<uint8_t>() + i * window.bytes());
      }
      return autoencoder->encode(context_, pixels);
    });
    return {measures.begin(), measures.end()};
  }

  TrainContext context_;
};

TEST_F(SamplesTest, TrueClipsScoreHighAndOthersDoNot) {
  Result<std::unique_ptr<Samples>> samples = Samples::open(context_);
  ASSERT_TRUE(samples.ok()) << samples.status().message();
  std::map<std::string, double> right = measure(**samples, 0);
  // What is lost is the autoencoder's and the evaluator's part.
  for (const char* name : {"colour", "background", "motion", "shape"}) {
    EXPECT_GE(right[name], 85.0) << name;
    EXPECT_LE(right[name], 100.0) << name;
  }
  EXPECT_GT(right.count("colour_one"), 0U);
  EXPECT_GT(right.count("colour_two"), 0U);
  std::map<std::string, double> wrong = measure(**samples, 1000);
  for (const char* name : {"colour", "background", "motion", "shape"}) {
    EXPECT_LT(wrong[name], 60.0) << name;
  }
}

TEST_F(SamplesTest, NoiseDependsOnTheClipAlone) {
  context_.config.evaluate.captions = 6;
  context_.config.bank.latent_frames = 3;
  Result<std::unique_ptr<Samples>> samples = Samples::open(context_);
  ASSERT_TRUE(samples.ok()) << samples.status().message();
  std::map<int64_t, at::Tensor> first;
  for (int turn = 0; turn < 2; ++turn) {
    (void)(*samples)->measure([&](const SampleRequest& request) {
      if (turn == 0) first[request.first] = request.noise;
      EXPECT_TRUE(at::equal(first[request.first], request.noise));
      return at::zeros_like(request.noise);
    });
  }
  ASSERT_EQ(first.size(), 2U);
  EXPECT_EQ(first[4].size(0), 2);
  EXPECT_FALSE(at::equal(first[0].narrow(0, 0, 2), first[4]));
}

TEST_F(SamplesTest, SaysWhatCannotBeMeasured) {
  context_.recipe.generator.latent_height = 6;
  const StatusCode too_small = Samples::open(context_).status().code();
  EXPECT_EQ(too_small, StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ultraflash

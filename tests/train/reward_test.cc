// The learned reward: where it looks, what its scores mean, and what keeps it from being cheated.
#include "train/reward.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>

#include "tiny_training.h"
#include "train/pictures.h"
#include "training_context.h"

namespace ultraflash {
namespace {

using testing::TrainingFolder;

TrainContext small_context(const TrainingFolder& folder) {
  TrainContext context = testing::make_context((folder / "recipe.json").string());
  context.config.reward.widths = {8, 16};
  context.config.reward.crop = 32;
  return context;
}

TEST(MsSsim, IsOneForEqualPicturesAndFallsWithDamage) {
  at::manual_seed(1);
  const at::Tensor x = at::rand({2, 96, 112, 3});
  EXPECT_NEAR(ms_ssim(x, x).min().item<double>(), 1.0, 1e-5);
  const at::Tensor noise = at::randn_like(x);
  const at::Tensor little = ms_ssim(x, x + 0.05 * noise);
  const at::Tensor much = ms_ssim(x, x + 0.2 * noise);
  EXPECT_TRUE((little > much).all().item<bool>());
  EXPECT_LT(little.max().item<double>(), 1.0);
  EXPECT_NEAR((ms_ssim(x + 0.2 * noise, x) - much).abs().max().item<double>(), 0.0, 1e-6);
  // Of two constants the luminance of the coarsest size alone differs: 2 a b + c over a^2 + b^2 +
  // c, with the last weight of those that fit 48 pixels (three sizes).
  const at::Tensor grey = at::full({1, 48, 48, 3}, 0.5);
  const at::Tensor dark = at::full({1, 48, 48, 3}, 0.25);
  const double luminance = (2.0 * 0.125 + 1e-4) / (0.25 + 0.0625 + 1e-4);
  EXPECT_NEAR(ms_ssim(grey, dark).item<double>(),
              std::pow(luminance, 0.3001 / (0.0448 + 0.2856 + 0.3001)), 1e-4);
}

TEST(SpectrumDistance, MeasuresWavesWhereverTheyBegin) {
  const auto wave = [](double period, double begin, int64_t axis) {
    const at::Tensor line =
        0.5 + 0.2 * (at::arange(64, at::kFloat) * (2.0 * M_PI / period) + begin).sin();
    return (axis == 1 ? line.view({1, 64, 1, 1}) : line.view({1, 1, 64, 1}))
        .expand({1, 64, 64, 3})
        .contiguous();
  };
  const at::Tensor flat = at::full({1, 64, 64, 3}, 0.5);
  const auto distance = [](const at::Tensor& a, const at::Tensor& b) {
    return spectrum_distance(a, b).item<double>();
  };
  for (const int64_t axis : {1, 2}) {
    const double missing = distance(wave(8.0, 0.0, axis), flat);
    EXPECT_GT(missing, 2.0 * 0.2 * 0.9);
    EXPECT_LT(missing, 3.0 * 0.2 * 1.1);
    EXPECT_LT(distance(wave(8.0, 0.0, axis), wave(8.0, 1.3, axis)), 0.05 * missing);
    EXPECT_GT(distance(wave(8.0, 0.0, axis), wave(4.0, 0.0, axis)), 1.5 * missing);
  }
  EXPECT_GT(distance(wave(8.0, 0.0, 1), wave(8.0, 0.0, 2)), 0.6);
  at::Tensor weak = flat + 0.1 * (wave(8.0, 0.4, 2) - 0.5);
  weak.set_requires_grad(true);
  spectrum_distance(weak, wave(8.0, 0.0, 2)).backward();
  // Down the slope the weak wave grows.
  EXPECT_LT((weak.grad() * (wave(8.0, 0.4, 2) - 0.5)).sum().item<double>(), 0.0);
  EXPECT_EQ(distance(flat.narrow(1, 0, 10), flat.narrow(1, 0, 10)), 0.0);  // smaller than a window
}

TEST(Windows, LieAroundTheDetail) {
  at::Tensor x = at::zeros({2, 64, 96, 3});
  at::manual_seed(2);
  x[0].narrow(0, 32, 16).narrow(1, 64, 16).copy_(at::rand({16, 16, 3}));
  x[1].narrow(0, 0, 16).narrow(1, 8, 16).copy_(at::rand({16, 16, 3}));
  const Windows windows = busiest_windows(x, 24);
  const at::Tensor crops = cropped(x, windows);
  EXPECT_EQ(crops.sizes(), (std::vector<int64_t>{2, 24, 24, 3}));
  EXPECT_NEAR(crops[0].sum().item<double>(), x[0].sum().item<double>(), 1e-3);
  EXPECT_NEAR(crops[1].sum().item<double>(), x[1].sum().item<double>(), 1e-3);
  const int64_t top = windows.top[0].item<int64_t>();
  const int64_t left = windows.left[0].item<int64_t>();
  EXPECT_TRUE(at::equal(crops[0], x[0].narrow(0, top, 24).narrow(1, left, 24)));
  // Small pictures are taken as far as they go.
  EXPECT_EQ(cropped(x, busiest_windows(x, 500)).size(1), 64);
}

TEST(RewardNetwork, StandardisesByItsReferenceAndMeasuresDistance) {
  const TrainingFolder folder("reward_network");
  const TrainContext context = small_context(folder);
  const Result<RewardNetwork> fresh = RewardNetwork::open(context, "", /*trainable=*/false);
  ASSERT_TRUE(fresh.ok()) << fresh.status().message();
  const std::filesystem::path path = folder / "reward.safetensors";
  ASSERT_TRUE(fresh
                  ->save(context, path, fresh->parameters()->leaves(), at::full({1}, 0.5),
                         at::full({1}, 0.25))
                  .ok());
  const Result<RewardNetwork> opened =
      RewardNetwork::open(context, folder.operator/("").string(), /*trainable=*/false);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const at::Tensor x = at::rand({3, 32, 40, 3});
  const at::Tensor y = at::rand({3, 32, 40, 3});
  const at::Tensor scores = fresh->scores(context, x);
  EXPECT_EQ(scores.sizes(), (std::vector<int64_t>{3}));
  EXPECT_TRUE(at::allclose(opened->standardised(context, x), (scores - 0.5) / 0.25, 1e-5, 1e-5));
  EXPECT_EQ(fresh->distance(context, x, x).abs().max().item<double>(), 0.0);
  const at::Tensor near = fresh->distance(context, x, at::lerp(x, y, 0.1));
  EXPECT_TRUE((near > 0.0).all().item<bool>());
  EXPECT_TRUE((fresh->distance(context, x, y) > near).all().item<bool>());
}

TEST(RewardTerm, GrowsIsLimitedAndStopsWhenPicturesLeaveTheTruth) {
  const TrainingFolder folder("reward_term");
  TrainContext context = small_context(folder);
  RewardTermConfig& c = context.config.reward_term;
  c.weight = 2.0;
  c.from = 0.2;
  c.full = 0.6;
  c.limit = 1e3;
  const Result<std::unique_ptr<RewardTerm>> opened = RewardTerm::open(context);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  RewardTerm& term = **opened;
  Meter meter;
  const at::Tensor truth = at::rand({2, 48, 48, 3});
  const auto make = [&](double noise) {
    return at::lerp(truth, at::rand_like(truth), noise).requires_grad_(true);
  };
  context.progress = 0.1;
  EXPECT_EQ(term.loss(make(0.2), truth, meter).item<double>(), 0.0);
  for (int i = 0; i < 5; ++i) (void)term.loss(make(0.2), truth, meter);
  const double before = term.state().parameters->leaf("distance.before").item<double>();
  EXPECT_GT(before, 0.0);

  // Half of the weight half way.
  const at::Tensor x = make(0.2);
  context.progress = 0.4;
  const at::Tensor half = term.loss(x, truth, meter);
  context.progress = 0.6;
  const at::Tensor whole = term.loss(x, truth, meter);
  EXPECT_NEAR(2.0 * half.item<double>(), whole.item<double>(), 1e-5);
  EXPECT_NE(whole.item<double>(), 0.0);
  whole.backward();
  EXPECT_GT(x.grad().abs().max().item<double>(), 0.0);
  EXPECT_FLOAT_EQ(term.state().parameters->leaf("distance.before").item<float>(),
                  static_cast<float>(before));

  // A score above the limit asks for nothing more.
  c.limit = -1e3;
  const at::Tensor y = make(0.2);
  const at::Tensor limited = term.loss(y, truth, meter);
  EXPECT_NEAR(limited.item<double>(), 2e3, 1e-2);
  limited.backward();
  EXPECT_EQ(y.grad().abs().max().item<double>(), 0.0);
  c.limit = 1e3;

  // Pictures that leave the truth get no reward, until they are back.
  for (int i = 0; i < 40; ++i) (void)term.loss(make(0.9), truth, meter);
  EXPECT_EQ(term.loss(make(0.9), truth, meter).item<double>(), 0.0);
  for (int i = 0; i < 300; ++i) (void)term.loss(make(0.1), truth, meter);
  EXPECT_NE(term.loss(make(0.1), truth, meter).item<double>(), 0.0);

  // A run whose first step comes when the reward counts already.
  const Result<std::unique_ptr<RewardTerm>> late = RewardTerm::open(context);
  ASSERT_TRUE(late.ok()) << late.status().message();
  EXPECT_NE((*late)->loss(make(0.2), truth, meter).item<double>(), 0.0);
  for (int i = 0; i < 40; ++i) (void)(*late)->loss(make(0.9), truth, meter);
  EXPECT_EQ((*late)->loss(make(0.9), truth, meter).item<double>(), 0.0);
}

}  // namespace
}  // namespace ultraflash

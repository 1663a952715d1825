// Each degradation by what it promises, and the pipeline by its numbers.
#include "train/degrade/degrade.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "ops/autograd/autograd_executor.h"
#include "ops/autograd/torch_tensor.h"
#include "tiny_training.h"
#include "train/degrade/colour.h"
#include "train/degrade/filters.h"
#include "train/degrade/motion.h"
#include "train/generator.h"
#include "train/pictures.h"
#include "ultraflash/recipe.h"

namespace ultraflash::degrade {
namespace {

constexpr int64_t kFrames = 14;
constexpr int64_t kHeight = 48;
constexpr int64_t kWidth = 64;

// A soft pattern that moves by (vx, vy) pixels a frame.
at::Tensor moving_clip(double vx, double vy) {
  at::Tensor clip = at::empty({kFrames, 3, kHeight, kWidth}, at::kFloat);
  auto values = clip.accessor<float, 4>();
  for (int64_t t = 0; t < kFrames; ++t) {
    for (int64_t c = 0; c < 3; ++c) {
      for (int64_t y = 0; y < kHeight; ++y) {
        for (int64_t x = 0; x < kWidth; ++x) {
          const double u = static_cast<double>(x) - vx * static_cast<double>(t);
          const double v = static_cast<double>(y) - vy * static_cast<double>(t);
          values[t][c][y][x] = static_cast<float>(
              0.5 + 0.2 * std::sin(0.35 * u + 0.5 * static_cast<double>(c)) * std::cos(0.3 * v) +
              0.15 * std::sin(0.17 * u - 0.23 * v));
        }
      }
    }
  }
  return clip;
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().mean().item<double>();
}

at::Tensor inner(const at::Tensor& x) { return x.narrow(2, 12, 24).narrow(3, 12, 40); }

TEST(Filters, KernelsHaveSumOneAndTheirFamilysForm) {
  for (int family = 0; family < 7; ++family) {
    Kernel k;
    k.family = static_cast<KernelFamily>(family);
    k.size = 11;
    k.sigma_x = 1.3;
    k.sigma_y = 2.4;
    k.angle = 0.6;
    k.beta = 1.5;
    k.cutoff = 1.6;
    const at::Tensor kernel = make_kernel(k);
    EXPECT_NEAR(kernel.sum().item<double>(), 1.0, 1e-5) << family;
    EXPECT_LE((kernel - kernel.flip({0, 1})).abs().max().item<double>(), 1e-7) << family;
    EXPECT_EQ(kernel.argmax().item<int64_t>(), 60) << family;
    if (k.family == KernelFamily::kSinc) {
      EXPECT_LT(kernel.min().item<double>(), 0.0);
    } else {
      EXPECT_GE(kernel.min().item<double>(), 0.0);
    }
  }
  Kernel k;
  k.size = 21;
  k.sigma_x = k.sigma_y = 2.0;
  const at::Tensor gaussian = make_kernel(k);
  const at::Tensor x = at::arange(-10, 11).to(at::kFloat);
  EXPECT_NEAR((gaussian.sum(0) * x.square()).sum().item<double>(), 4.0, 0.01);
}

TEST(Filters, FilterAndDownsampleKeepTheMeanAndLoseTheFine) {
  const at::Tensor flat = at::full({2, 3, 24, 32}, 0.3);
  Kernel k;
  k.sigma_x = k.sigma_y = 1.5;
  EXPECT_LE(distance(filtered(flat, make_kernel(k)), flat), 1e-6);
  const at::Tensor fine = at::rand({2, 3, 24, 32});
  EXPECT_LT(filtered(fine, make_kernel(k)).std().item<double>(), 0.5 * fine.std().item<double>());
  for (const double between : {1.0, 0.7, 1.1}) {
    for (const ResizeFilter filter :
         {ResizeFilter::kArea, ResizeFilter::kBilinear, ResizeFilter::kBicubic}) {
      const at::Tensor small = downsampled(flat, 8, 16, {filter, between});
      EXPECT_EQ(small.sizes(), (std::vector<int64_t>{2, 3, 8, 16}));
      EXPECT_NEAR(small.mean().item<double>(), 0.3, 1e-5);
    }
  }
}

TEST(Motion, FlowFindsAMovement) {
  const at::Tensor clip = moving_clip(1.5, -0.8);
  const at::Tensor flow = inner(optical_flow(clip));
  EXPECT_EQ(flow.size(0), kFrames - 1);
  EXPECT_NEAR(flow.select(1, 0).mean().item<double>(), 1.5, 0.1);
  EXPECT_NEAR(flow.select(1, 1).mean().item<double>(), -0.8, 0.1);
  EXPECT_LT(flow.std(0).mean().item<double>(), 0.3);
  // Read along it, the next frame is this one.
  const int64_t pairs = kFrames - 1;
  const at::Tensor back = warped(clip.narrow(0, 1, pairs), optical_flow(clip));
  EXPECT_LT(distance(inner(back), inner(clip.narrow(0, 0, pairs))),
            0.2 * distance(inner(clip.narrow(0, 1, pairs)), inner(clip.narrow(0, 0, pairs))));
  EXPECT_LT(optical_flow(at::full({3, 3, 40, 40}, 0.5)).abs().max().item<double>(), 1e-3);
}

TEST(Motion, MorphMixesOnlyItsRun) {
  const at::Tensor clip = moving_clip(2.0, 0.0);
  const at::Tensor flow = optical_flow(clip);
  Morph run;
  run.first = 3;
  run.frames = 2;
  run.mix = 0.4;
  run.way = 0.0;
  const at::Tensor mixed = temporal_morph(clip, flow, {run});
  for (int64_t t = 0; t < kFrames; ++t) {
    const at::Tensor expected =
        t == 3 || t == 4 ? at::lerp(clip[t], clip[t + 1], 0.4) : clip.select(0, t);
    EXPECT_LE(distance(mixed[t], expected), 1e-5) << t;
  }
  // Brought the whole way, the neighbour is the frame itself.
  run.way = 1.0;
  EXPECT_LT(distance(inner(temporal_morph(clip, flow, {run})), inner(clip)),
            0.3 * distance(inner(mixed), inner(clip)));
  run.forward = false;
  EXPECT_LT(distance(inner(temporal_morph(clip, flow, {run})), inner(clip)),
            0.3 * distance(inner(mixed), inner(clip)));
}

TEST(Motion, LostFramesAreHeldOrBlended) {
  const at::Tensor clip = moving_clip(1.0, 0.0).narrow(0, 0, 4);
  const at::Tensor y = frame_drop(clip, {Loss::kNone, Loss::kHold, Loss::kBlend, Loss::kBlend});
  EXPECT_TRUE(at::equal(y[0], clip[0]));
  EXPECT_TRUE(at::equal(y[1], clip[0]));
  EXPECT_LE(distance(y[2], at::lerp(clip[0], clip[3], 0.5)), 1e-6);
  EXPECT_TRUE(at::equal(y[3], y[2])) << "the last frame has no next one to blend with";
  world::Draw draw({1, 2});
  int lost = 0;
  int in_a_row = 0;
  for (const Loss loss : draw_losses(draw, 2000)) {
    in_a_row = loss == Loss::kNone ? 0 : in_a_row + 1;
    EXPECT_LE(in_a_row, 2);
    lost += loss == Loss::kNone ? 0 : 1;
  }
  EXPECT_GT(lost, 40);
  EXPECT_LT(lost, 280);
}

TEST(Motion, BlurGoesAlongTheMovement) {
  // Vertical lines blur under horizontal movement, horizontal ones do not.
  const at::Tensor wave = (at::arange(kWidth, at::kFloat) * 1.2).sin() * 0.4 + 0.5;
  const at::Tensor lines =
      wave.view({1, 1, 1, kWidth}).expand({3, 3, kHeight, kWidth}).contiguous();
  const at::Tensor across = motion_blur(lines, line_blur(lines, 6.0, 0.0, 0.0));
  const at::Tensor along = motion_blur(lines, line_blur(lines, 6.0, M_PI / 2, 0.0));
  EXPECT_LT(inner(across).std().item<double>(), 0.3 * inner(lines).std().item<double>());
  EXPECT_LE(distance(inner(along), inner(lines)), 1e-4);
  // The direction drifts from frame to frame.
  const at::Tensor turning = line_blur(lines, 2.0, 0.0, M_PI / 2);
  EXPECT_NEAR(turning[1][1][0][0].item<double>(), 2.0, 1e-5);
  const at::Tensor flow = at::zeros({2, 2, kHeight, kWidth});
  flow.narrow(3, 0, 32).select(1, 0).fill_(4.0);
  const at::Tensor streaks = blur_from_flow(flow, 16, 1.5, 5.0);
  EXPECT_EQ(streaks.size(0), 3);
  EXPECT_NEAR(streaks[0][0][20][4].item<double>(), 5.0, 1e-4) << "no longer than the longest";
  EXPECT_EQ(streaks[0][0][20][60].item<double>(), 0.0) << "nothing moves here";
}

TEST(Motion, RegionsWaverAndTheRestStays) {
  const at::Tensor clip = moving_clip(0.0, 0.0);
  Ellipse e;
  e.x = e.y = 0.5;
  e.radius_x = e.radius_y = 0.15;
  const at::Tensor mask = ellipse_mask(clip, {e});
  EXPECT_EQ(mask[0][0][24][32].item<double>(), 1.0);
  EXPECT_EQ(mask[0][0][2][2].item<double>(), 0.0);
  const at::Tensor field = smooth_field(clip, 2.0, 6.0);
  EXPECT_NEAR(field.square().sum(1).mean().sqrt().item<double>(), 2.0, 1e-3);
  EXPECT_LT(difference(field, 3).abs().mean().item<double>(), 0.5) << "smooth in space";
  const double between_frames = distance(field.narrow(0, 1, 13), field.narrow(0, 0, 13));
  EXPECT_LT(between_frames, 0.6 * field.abs().mean().item<double>() * 1.5) << "and in time";
  const at::Tensor y = roi_warp(clip, {e}, field);
  EXPECT_LE(distance(y.narrow(2, 0, 4), clip.narrow(2, 0, 4)), 1e-5);
  EXPECT_GT(distance(y.narrow(2, 20, 8).narrow(3, 28, 8), clip.narrow(2, 20, 8).narrow(3, 28, 8)),
            1e-3);
}

TEST(Motion, ColourBleedsFromTheFrameBefore) {
  at::Tensor clip = at::full({2, 3, kHeight, kWidth}, 0.5);
  clip.select(0, 0).select(0, 0).fill_(0.8);  // the first frame is reddish
  clip =
      from_ycc(at::cat({at::full({2, 1, kHeight, kWidth}, 0.5), to_ycc(clip).narrow(1, 1, 2)}, 1));
  Ellipse e;
  e.radius_x = e.radius_y = 0.2;
  const at::Tensor y = to_ycc(colour_bleeding(clip, {e}, 0.5));
  const at::Tensor x = to_ycc(clip);
  EXPECT_NEAR(y[1][2][24][32].item<double>(), 0.5 * x[0][2][24][32].item<double>(), 1e-4);
  EXPECT_NEAR(y[1][2][1][1].item<double>(), 0.0, 1e-5);
  EXPECT_LE(distance(y.select(1, 0), x.select(1, 0)), 1e-5) << "brightness stays";
}

TEST(Motion, ChunksJumpTogether) {
  const at::Tensor clip = moving_clip(0.0, 0.0);
  Jump none;
  Jump right;
  right.x = 1.0;
  right.gain = 0.9;
  const at::Tensor y = chunk_jitter(clip, {none, right});
  EXPECT_LE(distance(y.narrow(0, 0, 12), clip.narrow(0, 0, 12)), 1e-5);
  EXPECT_LE(distance(y[12].narrow(2, 1, 63), 0.9 * clip[12].narrow(2, 0, 63)), 1e-5);
  world::Draw draw({1, 3});
  EXPECT_EQ(draw_jumps(draw, kFrames, 1.0).size(), 2U);
}

TEST(Colour, FlickerAndDrift) {
  const at::Tensor clip = moving_clip(0.5, 0.0);
  const std::vector<Flicker> still(kFrames);
  EXPECT_LE(distance(flicker(clip, still), clip), 1e-5);
  std::vector<Flicker> one = still;
  one[3].gain = 1.1;
  one[4].gamma = 1.05;
  one[5].bias = 0.02;
  one[6].saturation = 0.5;
  const at::Tensor y = flicker(clip, one);
  EXPECT_LE(distance(y[3], 1.1 * clip[3]), 1e-4);
  EXPECT_LE(distance(y[4], clip[4].pow(1.05)), 1e-4);
  EXPECT_LE(distance(y[5], clip[5] + 0.02), 1e-4);
  EXPECT_NEAR(to_ycc(y)[6][2].abs().mean().item<double>(),
              0.5 * to_ycc(clip)[6][2].abs().mean().item<double>(), 1e-3);
  EXPECT_LE(distance(y[7], clip[7]), 1e-5);
  const at::Tensor drifted = colour_drift(clip, 1.2, 1.1);
  EXPECT_LE(distance(drifted[0], clip[0]), 1e-5);
  EXPECT_GT(drifted[kFrames - 1].std().item<double>(),
            1.05 * clip[kFrames - 1].std().item<double>());
  EXPECT_LE(distance(from_ycc(to_ycc(clip)), clip), 1e-5);
}

TEST(Colour, NoiseHasItsDeviation) {
  const at::Tensor flat = at::full({8, 3, kHeight, kWidth}, 0.5);
  const at::Tensor y = gaussian_noise(flat, 0.02, false) - flat;
  EXPECT_NEAR(y.std().item<double>(), 0.02, 5e-4);
  const at::Tensor grey = gaussian_noise(flat, 0.02, true) - flat;
  EXPECT_TRUE(at::equal(grey.select(1, 0), grey.select(1, 2)));
  // 127.5 counts deviate by their square root.
  const at::Tensor light = poisson_noise(flat, 1.0, false) - flat;
  EXPECT_NEAR(light.std().item<double>(), std::sqrt(127.5) / 255.0, 1e-3);
  EXPECT_NEAR(light.mean().item<double>(), 0.0, 2e-3);
}

TEST(Colour, CodecsLoseMoreAtLowerQuality) {
  const at::Tensor clip = moving_clip(0.7, 0.3);
  double last = 0.0;
  for (const double quality : {98.0, 85.0, 60.0, 20.0}) {
    const double lost = distance(jpeg(clip, quality), clip);
    EXPECT_GT(lost, last) << quality;
    last = lost;
  }
  EXPECT_LT(distance(jpeg(clip, 98.0), clip), 0.01);
  last = 0.0;
  for (const double crf : {10.0, 20.0, 28.0, 35.0}) {
    const double lost = distance(predictive_blocks(clip, crf, 12), clip);
    EXPECT_GT(lost, last) << crf;
    last = lost;
  }
  // A still picture costs nothing after the first frame of a group.
  const at::Tensor still = clip.narrow(0, 0, 1).expand({5, -1, -1, -1});
  const at::Tensor coded = predictive_blocks(still, 30.0, 3);
  EXPECT_LE(distance(coded[1], coded[0]), 1e-6);
  // Sizes that are no multiples of a block.
  EXPECT_EQ(jpeg(clip.narrow(2, 0, 13).narrow(3, 0, 21), 50.0).sizes(),
            (std::vector<int64_t>{kFrames, 3, 13, 21}));
}

TEST(Pipeline, EveryOperationDamagesWithinBounds) {
  const at::Tensor clip = moving_clip(1.2, 0.4);
  std::set<std::string> names;
  for (const Operation& operation : operations()) {
    names.emplace(operation.name);
    double most = 0.0;
    for (uint64_t i = 0; i < 4; ++i) {
      world::Draw draw({9, i});
      const at::Tensor y = operation.apply(clip, draw, {});
      ASSERT_EQ(y.sizes(), clip.sizes()) << operation.name;
      EXPECT_TRUE(at::isfinite(y).all().item<bool>()) << operation.name;
      most = std::max(most, distance(y, clip));
    }
    EXPECT_GT(most, 1e-4) << operation.name;
    EXPECT_LT(most, 0.2) << operation.name;
  }
  EXPECT_EQ(names.size(), operations().size());
}

TEST(Pipeline, DependsOnTheClipsNumberAlone) {
  TrainContext context;
  const Result<Recipe> recipe = Recipe::find("pocket");
  ASSERT_TRUE(recipe.ok());
  context.recipe = recipe->data();
  context.executor = make_autograd_executor({});
  context.config.degrade.share = 0.8;
  context.config.degrade.amplitude = 0.5;
  const at::Tensor pictures = moving_clip(1.0, 0.0).permute({0, 2, 3, 1});
  const auto made = [&](int64_t index, int64_t step) {
    context.seed_step(step);  // whatever was drawn before
    return damaged_clip(context, pictures, kHeight / 2, kWidth / 2, index);
  };
  const at::Tensor one = made(7, 5);
  EXPECT_EQ(one.sizes(), (std::vector<int64_t>{kFrames, kHeight / 2, kWidth / 2, 3}));
  EXPECT_TRUE(at::equal(made(7, 6), one));
  EXPECT_FALSE(at::equal(made(8, 5), one));
  int64_t damaged = 0;
  for (int64_t index = 0; index < 400; ++index) damaged += chosen(context, index) ? 1 : 0;
  EXPECT_NEAR(static_cast<double>(damaged), 320.0, 30.0);
  context.config.degrade.share = 0.0;
  EXPECT_FALSE(chosen(context, 7));
}

// Both forms of K1, or the sentence that says what is missing.
TEST(Codec, H264LosesMoreAtHigherCrfAndStillsAreCheap) {
  DegradeConfig config;
  config.codec = DegradeCodec::kH264;
  const Result<std::string> what = describe(config);
  if (!what.ok()) {
    EXPECT_EQ(what.status().code(), StatusCode::kUnsupported);
    GTEST_SKIP() << what.status().message();
  }
  EXPECT_NE(what->find("libx264"), std::string::npos);
  const at::Tensor clip = moving_clip(0.7, 0.3);
  double last = 0.0;
  for (const int crf : {12, 20, 28, 38}) {
    const double lost = distance(h264(clip, crf, 12, "fast"), clip);
    EXPECT_GT(lost, last) << crf;
    last = lost;
  }
  EXPECT_LT(distance(h264(clip, 12, 12, "fast"), clip), 0.015);
  EXPECT_TRUE(at::equal(h264(clip, 30, 12, "medium"), h264(clip, 30, 12, "medium")));
  // Every frame comes back at its own place, also from odd sides.
  const at::Tensor odd = h264(clip.narrow(2, 0, 47).narrow(3, 0, 63), 18, 24, "medium");
  ASSERT_EQ(odd.sizes(), (std::vector<int64_t>{kFrames, 3, 47, 63}));
  for (int64_t t = 0; t < kFrames; ++t) {
    const at::Tensor same = clip[t].narrow(1, 0, 47).narrow(2, 0, 63);
    const at::Tensor next = clip[(t + 3) % kFrames].narrow(1, 0, 47).narrow(2, 0, 63);
    EXPECT_LT(distance(odd[t], same), distance(odd[t], next)) << t;
  }
  // The operation takes it, and with the same draws the stand-in something else.
  const Operation& k1 = operations()[10];
  ASSERT_EQ(k1.name, "K1");
  const auto coded = [&](DegradeCodec codec) {
    world::Draw draw({4, 1});
    config.codec = codec;
    return k1.apply(clip, draw, config);
  };
  EXPECT_FALSE(at::equal(coded(DegradeCodec::kH264), coded(DegradeCodec::kBlocks)));
}

// The dense flow finds what the other one does, and movements that it cannot follow.
TEST(Motion, DenseFlowFindsLargeMovements) {
  DegradeConfig config;
  config.flow = DegradeFlow::kOpencv;
  const Result<std::string> what = describe(config);
  if (!what.ok()) {
    EXPECT_EQ(what.status().code(), StatusCode::kUnsupported);
    GTEST_SKIP() << what.status().message();
  }
  EXPECT_NE(what->find("OpenCV"), std::string::npos);
  const at::Tensor slow = moving_clip(1.5, -0.8);
  const at::Tensor flow = flow_of(slow, config);
  ASSERT_EQ(flow.sizes(), (std::vector<int64_t>{kFrames - 1, 2, kHeight, kWidth}));
  EXPECT_NEAR(inner(flow).select(1, 0).mean().item<double>(), 1.5, 0.1);
  EXPECT_NEAR(inner(flow).select(1, 1).mean().item<double>(), -0.8, 0.1);
  EXPECT_TRUE(at::equal(flow_of(slow, config), flow));
  // A picture without repetition that moves by 7 pixels a frame.
  at::manual_seed(3);
  const at::Tensor wide = at::upsample_bicubic2d(at::rand({1, 3, 16, 30}), {96, 180}, false);
  std::vector<at::Tensor> frames;
  for (int64_t t = 0; t < 4; ++t) frames.push_back(wide[0].narrow(2, 40 - 7 * t, 128));
  const at::Tensor fast = at::stack(frames).clamp(0.0, 1.0).contiguous();
  const at::Tensor found = flow_of(fast, config).narrow(2, 16, 64).narrow(3, 24, 80);
  EXPECT_NEAR(found.select(1, 0).mean().item<double>(), 7.0, 0.3);
  EXPECT_NEAR(found.select(1, 1).mean().item<double>(), 0.0, 0.3);
}

// P7: any number of frames, nothing at sigma 0, and something at another one.
TEST(Latents, RenoisedByTheGenerator) {
  const testing::TrainingFolder folder("renoised");
  TrainContext context;
  const Result<Recipe> recipe = Recipe::find((folder / "recipe.json").string());
  ASSERT_TRUE(recipe.ok());
  context.recipe = recipe->data();
  context.compute = DType::kF32;
  context.executor = make_autograd_executor({});
  const Result<GeneratorNetwork> generator = GeneratorNetwork::open(context, "", false);
  ASSERT_TRUE(generator.ok());
  context.seed_step(3);
  const at::Tensor x = at::randn({2, 5, 6, 8, 16});
  const Tensor embeddings = from_torch(at::randn({2, 32, 32}));
  const at::Tensor y = renoised(context, *generator, x, std::vector<double>{0.0, 0.5}, embeddings);
  ASSERT_EQ(y.sizes(), x.sizes());
  EXPECT_LE(distance(y[0], x[0]), 1e-6);
  EXPECT_GT(distance(y[1], x[1]), 0.1);
}

TEST(Pipeline, SheetShowsEveryOperation) {
  TrainContext context;
  const Result<Recipe> recipe = Recipe::find("pocket");
  ASSERT_TRUE(recipe.ok());
  context.recipe = recipe->data();
  context.executor = make_autograd_executor({});
  const Result<RgbImage> sheet = degradation_sheet(context);
  ASSERT_TRUE(sheet.ok()) << sheet.status().message();
  const auto rows = static_cast<int64_t>(operations().size()) + 3;
  EXPECT_EQ(sheet->height, rows * (96 + 4) - 4);
  EXPECT_EQ(sheet->width, 9 * (160 + 4) - 4);
}

}  // namespace
}  // namespace ultraflash::degrade

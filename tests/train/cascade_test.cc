// The networks above the generator in training: the upsampler's memories, the beginning of the
// super-resolution transformer, and the report on held-out clips.
#include "train/cascade.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "models/wan_dit_training.h"
#include "ops/autograd/torch_tensor.h"
#include "tiny_training.h"
#include "train/cascade_report.h"
#include "train/encoder_check.h"
#include "train/generator.h"
#include "train/pictures.h"
#include "training_context.h"
#include "weights/convert.h"

namespace ultraflash {
namespace {

using testing::make_context;
using testing::relative;
using testing::TrainingFolder;

// Values and gradients of an upsampler that saw a clip in one call, in two with the state between
// them, and in part, after the frames that its memories reach back to.
TEST(Upsampler, MemoriesCarryValuesAndGradients) {
  const TrainingFolder folder("upsampler");
  const TrainContext context = make_context((folder / "recipe.json").string());
  const Result<UpsamplerNetwork> opened =
      UpsamplerNetwork::open(context, "", 2, /*trainable=*/true);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const UpsamplerNetwork& upsampler = *opened;
  const at::Tensor x = at::randn({2, 7, 6, 8, 16});
  {
    const at::NoGradGuard no_grad;
    EXPECT_EQ(upsampler.run_window(context, x, 0).abs().max().item<double>(), 0.0);
    upsampler.parameters->leaf("final.weight").normal_(0.0, 0.1);
  }
  const at::Tensor weight = at::randn({2, 7, 12, 16, 16});
  const auto gradients = [&](const at::Tensor& y) {
    (y * weight).sum().backward();
    std::map<std::string, at::Tensor> result;
    for (const std::string& name : upsampler.parameters->names()) {
      at::Tensor& gradient = upsampler.parameters->leaf(name).mutable_grad();
      result[name] = gradient.clone();
      gradient = at::Tensor();
    }
    return result;
  };
  const at::Tensor whole = upsampler.run_window(context, x, 0);
  const std::map<std::string, at::Tensor> whole_gradients = gradients(whole);
  UpsamplerState state;
  const at::Tensor first = upsampler.run(context, x.narrow(1, 0, 3), state);
  const at::Tensor second = upsampler.run(context, x.narrow(1, 3, 4), state);
  const at::Tensor streamed = at::cat({first, second}, 1);
  EXPECT_LE(relative(streamed, whole), 1e-5);
  for (const auto& [name, gradient] : gradients(streamed)) {
    EXPECT_LE(relative(gradient, whole_gradients.at(name)), 1e-4) << name;
  }
  EXPECT_EQ(upsampler.reach(), 2);
  const int64_t begin = 4;
  const at::Tensor window = upsampler.run_window(
      context, x.narrow(1, begin - upsampler.reach(), 3 + upsampler.reach()), upsampler.reach());
  EXPECT_LE(relative(window, whole.narrow(1, begin, 3)), 1e-5);
}

TEST(Refiner, BeginsAsTheGeneratorWhateverTheCondition) {
  const TrainingFolder folder("refiner");
  TrainContext context = make_context((folder / "recipe.json").string());
  const Result<GeneratorNetwork> generator =
      GeneratorNetwork::open(context, "", /*trainable=*/false);
  ASSERT_TRUE(generator.ok()) << generator.status().message();
  const std::filesystem::path file = folder / "generator.safetensors";
  ASSERT_TRUE(save_parameters(file, generator->parameters->names(), generator->parameters->leaves(),
                              DType::kF32, {})
                  .ok());
  context.config.init.generator = file.string();
  const Result<Refiner> refiner = Refiner::open(context, "", /*trainable=*/true);
  ASSERT_TRUE(refiner.ok()) << refiner.status().message();
  const RefinerNetwork& network = refiner->at(2);
  EXPECT_EQ(refiner->parameters->parameter_count(),
            generator->parameters->parameter_count() + 48 * 16 * 4);

  const at::Tensor x = at::randn({2, 4, 12, 16, 16});
  const at::Tensor y = at::randn({2, 4, 12, 16, 16});
  const Tensor embeddings = from_torch(at::randn({2, 32, 32}));
  const std::vector<double> sigmas = {0.3, 1.0};
  const at::Tensor v = network.dense(context, x, y, sigmas, network.text(context, embeddings));
  const WanDit& base = generator->network;
  const at::Tensor expected =
      to_torch(run_chunk_causal(context.ops(), base, from_torch(x), 2,
                                base.time(context.ops(), std::vector<double>{300.0, 1000.0}, 2),
                                base.text(context.ops(), embeddings)));
  EXPECT_LE(relative(v, expected), 1e-6);
  // It can learn to look at the condition, of which the generator's columns get a gradient too.
  v.square().sum().backward();
  const at::Tensor gradient = refiner->parameters->leaf("patch_embedding.weight").grad();
  EXPECT_GT(gradient.narrow(1, 16, 16).norm().item<double>(), 0.0);
  EXPECT_GT(gradient.narrow(1, 0, 16).norm().item<double>(), 0.0);
  // Another scale computes with the same parameters.
  const at::Tensor wide = at::randn({1, 2, 18, 24, 16});
  const TextKv text = refiner->at(3).text(context, from_torch(at::randn({1, 32, 32})));
  const at::Tensor before = refiner->at(3).dense(context, wide, wide, std::vector{0.5}, text);
  {
    const at::NoGradGuard no_grad;
    refiner->parameters->leaf("head.head.weight").mul_(2.0);
  }
  const at::Tensor after = refiner->at(3).dense(context, wide, wide, std::vector{0.5}, text);
  EXPECT_GT(relative(after, before), 0.1);
}

// With a budget that keeps every block and windows that divide the picture, the sparse form is the
// dense one, and so are its gradients.
TEST(Refiner, SparseWithEveryBlockIsDense) {
  const TrainingFolder folder("sparse");
  TrainContext context = make_context((folder / "recipe.json").string());
  for (CascadeSpec& cascade : context.recipe.cascades) {
    if (cascade.refiner) cascade.refiner->network.local_range = 99;
  }
  context.config.cascade.scales = {2};
  const Result<Refiner> refiner = Refiner::open(context, "", /*trainable=*/true);
  ASSERT_TRUE(refiner.ok()) << refiner.status().message();
  const RefinerNetwork& network = refiner->at(2);
  const at::Tensor x = at::randn({2, 8, 16, 16, 16});  // 8 x 8 patches, windows of 4 x 4
  const at::Tensor y = at::randn({2, 8, 16, 16, 16});
  const at::Tensor weight = at::randn({2, 8, 16, 16, 16});
  const Tensor embeddings = from_torch(at::randn({2, 32, 32}));
  const std::vector<double> sigmas = {0.4, 1.0};
  const auto gradients = [&](const at::Tensor& v) {
    (v * weight).sum().backward();
    std::map<std::string, at::Tensor> result;
    for (const std::string& name : refiner->parameters->names()) {
      at::Tensor& gradient = refiner->parameters->leaf(name).mutable_grad();
      result[name] = gradient.clone();
      gradient = at::Tensor();
    }
    return result;
  };
  const at::Tensor dense = network.dense(context, x, y, sigmas, network.text(context, embeddings));
  const std::map<std::string, at::Tensor> expected = gradients(dense);
  SparseSrState state = network.make_state(context, x, 8, /*kv_len=*/1);
  const at::Tensor sparse =
      network.sparse(context, x, y, sigmas, network.text(context, embeddings), state, {1, 1e5});
  EXPECT_LE(relative(sparse, dense), 1e-5);
  for (const auto& [name, gradient] : gradients(sparse)) {
    if (expected.at(name).norm().item<double>() < 1e-6) continue;
    EXPECT_LE(relative(gradient, expected.at(name)), 1e-4) << name;
  }
}

TEST(Windows, BeginAtTheBeginningOrAfterTheirLead) {
  TrainContext context = make_context("pocket");
  context.config.bank.latent_frames = 12;
  int beginnings = 0;
  for (int64_t step = 0; step < 200; ++step) {
    const StreamWindow window = StreamWindow::draw(context, step, 1, /*reach=*/4, /*frames=*/6);
    EXPECT_EQ(window.frames, 6);
    EXPECT_GE(window.first, 0);
    EXPECT_LE(window.first + window.lead + window.frames, 12);
    EXPECT_TRUE(window.lead == 4 || window.first == 0);
    beginnings += window.lead == 0 ? 1 : 0;
  }
  EXPECT_GT(beginnings, 50);  // a quarter, and one in seven of the rest
  EXPECT_LT(beginnings, 110);
}

TEST(Pictures, AreaIsTheMeanAndBicubicKeepsASlope) {
  const at::Tensor x = at::rand({1, 2, 12, 18, 3});
  const at::Tensor small = resized(x, 4, 6, ResizeFilter::kArea);
  EXPECT_NEAR(small[0][1][2][3][1].item<double>(),
              x[0][1].narrow(0, 6, 3).narrow(1, 9, 3).select(2, 1).mean().item<double>(), 1e-6);
  const at::Tensor slope = at::arange(6, at::kFloat).view({1, 1, 1, 6, 1}).expand({1, 1, 4, 6, 3});
  const at::Tensor large = resized(slope, 8, 12, ResizeFilter::kBicubic);
  EXPECT_NEAR(large[0][0][4][6][0].item<double>(), 2.75, 1e-4);
  EXPECT_NEAR(psnr(0.01), 20.0, 1e-9);
}

// Latents of pictures that latents decode to are close to them, the first frame included, whose
// pictures the decoder does not show.
TEST(Latents, SurviveARoundTrip) {
  const char* source = std::getenv("UF_SOURCE_DIR");
  if (source == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
  TrainContext context = make_context("pocket");
  context.config.init.autoencoder = (std::filesystem::path(source) / "models/pocket").string();
  const Result<FrozenAutoencoder> autoencoder = FrozenAutoencoder::open(context);
  ASSERT_TRUE(autoencoder.ok()) << autoencoder.status().message();
  const Result<std::unique_ptr<TrainingClips>> clips = TrainingClips::open(context, true);
  ASSERT_TRUE(clips.ok()) << clips.status().message();
  const at::Tensor pictures =
      first_clips(context, **clips, /*scale=*/1, /*frames=*/16, /*count=*/2);
  const at::Tensor latents = autoencoder->encode(context, pictures.to(at::kFloat));
  const at::Tensor again = autoencoder->round_trip(context, latents);
  ASSERT_EQ(again.sizes(), latents.sizes());
  EXPECT_LT(relative(again, latents), 0.35);
  EXPECT_LT(relative(again.narrow(1, 0, 1), latents.narrow(1, 0, 1)), 0.5);
  EXPECT_GT(relative(again, latents), 1e-4);
  const at::Tensor shown = autoencoder->show(context, latents);
  EXPECT_EQ(shown.size(1), 13);
  EXPECT_GT(psnr((shown - pictures.narrow(1, 3, 13) / 255.0).square().mean().item<double>()), 24.0);
}

// The shipped autoencoder on one held-out clip.
TEST(CascadeReport, MeasuresAgainstTheTruth) {
  const char* source = std::getenv("UF_SOURCE_DIR");
  if (source == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
  TrainContext context = make_context("pocket");
  context.config.init.autoencoder = (std::filesystem::path(source) / "models/pocket").string();
  context.config.cascade.eval_clips = 1;
  context.config.cascade.eval_frames = 3;
  const Result<PairAutoencoders> autoencoders = PairAutoencoders::open(context, 2);
  ASSERT_TRUE(autoencoders.ok()) << autoencoders.status().message();
  Result<std::unique_ptr<CascadeReport>> opened = CascadeReport::open(context, *autoencoders, 2);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  CascadeReport& report = **opened;
  const PairLatents& latents = report.latents();
  EXPECT_EQ(latents.high.sizes(), (std::vector<int64_t>{1, 3, 24, 40, 16}));
  EXPECT_EQ(latents.low.sizes(), (std::vector<int64_t>{1, 3, 12, 20, 16}));
  report.add("same", latents.high);
  report.add("noise", at::randn_like(latents.high));
  std::map<std::string, double> values;
  for (const auto& [name, value] : report.measures()) values[name] = value;
  EXPECT_DOUBLE_EQ(values.at("psnr_same_2x"), values.at("psnr_autoencoder_2x"));
  EXPECT_GT(values.at("psnr_autoencoder_2x"), 20.0);
  EXPECT_LT(values.at("psnr_noise_2x"), values.at("psnr_bicubic_2x"));
  EXPECT_LT(values.at("sharpness_bicubic_2x"), 1.0);
  EXPECT_TRUE(values.contains("texture_autoencoder_2x"));
  EXPECT_EQ(values.at("colour_bicubic_2x"), 100.0);
  EXPECT_EQ(values.at("shape_bicubic_2x"), 100.0);
  EXPECT_EQ(values.at("shape_noise_2x"), 0.0);
  const RgbImage sheet = report.sheet(3);
  EXPECT_EQ(sheet.height, 112);
  EXPECT_EQ(sheet.width, 5 * 112 + 4 * 4);  // bicubic, same, noise, autoencoder, truth
}

// A file as models are shipped: the decoder alone.
TEST(RequireEncoder, NamesAFileWithoutOne) {
  const char* source = std::getenv("UF_SOURCE_DIR");
  if (source == nullptr) GTEST_SKIP() << "UF_SOURCE_DIR is not set";
  const std::filesystem::path whole =
      std::filesystem::path(source) / "models/pocket/tiny_autoencoder.safetensors";
  const TrainingFolder folder("decoder_alone");
  ConvertOptions options;
  options.dropped = {"encoder."};
  const std::filesystem::path part = folder / "tiny_autoencoder.safetensors";
  ASSERT_TRUE(convert_checkpoint(whole, part, options).ok());
  TrainContext context = make_context("pocket");
  const DecoderSpec& spec = context.recipe.cascade(1)->decoder;
  EXPECT_TRUE(require_encoder(context, whole.string(), spec).ok());
  EXPECT_TRUE(require_encoder(context, "", spec).ok());
  const Status missing = require_encoder(context, part.string(), spec);
  EXPECT_EQ(missing.code(), StatusCode::kNotFound);
  EXPECT_NE(missing.message().find(part.string()), std::string::npos) << missing.message();
  EXPECT_NE(missing.message().find("without the encoder"), std::string::npos) << missing.message();
  // What a stage above the generator says.
  context.config.init.autoencoder = whole.string();
  context.config.init.decoder = part.string();
  EXPECT_EQ(PairAutoencoders::open(context, 2).status().message(), missing.message());
}

}  // namespace
}  // namespace ultraflash

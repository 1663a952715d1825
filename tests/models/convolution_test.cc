#include <gtest/gtest.h>

#include <vector>

#include "models/latent_upsampler.h"
#include "models/model_fixture.h"
#include "models/tiny_decoder.h"
#include "models/wan_vae.h"

namespace ultraflash {
namespace {

using testing::cpu_executor;
using testing::joined;
using testing::normal;
using testing::part;
using testing::relative_error;
using testing::with_random_weights;

constexpr double kSame = 2e-6;

// run(piece) applied to pieces of x along the frames, the state inside `run`, then joined.
template <typename Run>
Tensor in_pieces(Executor& ops, const Tensor& x, const std::vector<int64_t>& sizes,
                 const Run& run) {
  std::vector<Tensor> outputs;
  int64_t at = 0;
  for (const int64_t size : sizes) {
    outputs.push_back(run(part(ops, x, 1, at, at + size)));
    at += size;
  }
  EXPECT_EQ(at, x.dim(1));
  return joined(ops, outputs, 1);
}

LatentUpsamplerConfig upsampler_v1(int64_t scale, bool residual, MemoryInit init) {
  LatentUpsamplerConfig config;
  config.scale = scale;
  config.mid_channels = 16;
  config.num_blocks = 3;
  config.residual = residual;
  config.residual_scale = 0.5;
  config.memory_init = init;
  return config;
}

LatentUpsamplerConfig upsampler_v3(int64_t scale, int64_t temporal, bool residual) {
  LatentUpsamplerConfig config;
  config.version = 3;
  config.scale = scale;
  config.temporal_scale = temporal;
  config.stage_channels = {16, 12, 8};
  config.blocks_per_stage = {2, 1, 2};
  config.residual = residual;
  return config;
}

class UpsamplerTest : public ::testing::TestWithParam<LatentUpsamplerConfig> {};

TEST_P(UpsamplerTest, PiecesEqualTheWhole) {
  const LatentUpsamplerConfig& config = GetParam();
  ASSERT_TRUE(config.validate().ok());
  const std::unique_ptr<Executor> ops = cpu_executor();
  const LatentUpsampler network = with_random_weights(
      *ops, 2, [&](Loader loader) { return LatentUpsampler::bind(std::move(loader), config); });
  const Tensor x = normal(*ops, {2, 7, 4, 6, 16}, 1);
  UpsamplerState whole;
  const Tensor expected = network.run(*ops, x, whole);
  EXPECT_EQ(expected.shape(),
            (Shape{2, 7 * config.temporal_scale, 4 * config.scale, 6 * config.scale, 16}));
  UpsamplerState state;
  const auto run = [&](const Tensor& piece) { return network.run(*ops, piece, state); };
  EXPECT_LT(relative_error(in_pieces(*ops, x, {1, 3, 2, 1}, run), expected), kSame);
  state.reset();
  EXPECT_LT(relative_error(in_pieces(*ops, x, {4, 3}, run), expected), kSame) << "after a reset";
}

INSTANTIATE_TEST_SUITE_P(Configs, UpsamplerTest,
                         ::testing::Values(upsampler_v1(1, false, MemoryInit::kReplicate),
                                           upsampler_v1(2, false, MemoryInit::kReplicate),
                                           upsampler_v1(3, true, MemoryInit::kZero),
                                           upsampler_v1(4, false, MemoryInit::kZero),
                                           upsampler_v1(5, true, MemoryInit::kReplicate),
                                           upsampler_v1(6, false, MemoryInit::kReplicate),
                                           upsampler_v3(1, 1, true), upsampler_v3(2, 1, false),
                                           upsampler_v3(8, 4, true)));

TEST(UpsamplerTest, ConfigsThatCannotBeAreNamed) {
  EXPECT_FALSE(upsampler_v3(3, 1, false).validate().ok()) << "v3 has powers of two only";
  EXPECT_FALSE(upsampler_v1(0, false, MemoryInit::kZero).validate().ok());
  LatentUpsamplerConfig version_2;
  version_2.version = 2;
  EXPECT_FALSE(version_2.validate().ok());
}

TinyDecoderConfig decoder_config(DecoderLayout layout, MemoryInit init) {
  TinyDecoderConfig config;
  config.layout = layout;
  config.widths = layout == DecoderLayout::kNet ? std::vector<int64_t>{16, 12, 8}
                                                : std::vector<int64_t>{16, 12, 8, 8};
  config.memory_init = init;
  return config;
}

class DecoderTest : public ::testing::TestWithParam<TinyDecoderConfig> {};

TEST_P(DecoderTest, PiecesEqualTheWhole) {
  const std::unique_ptr<Executor> ops = cpu_executor();
  const TinyDecoder decoder = with_random_weights(
      *ops, 4, [&](Loader loader) { return TinyDecoder::bind(std::move(loader), GetParam()); });
  const Tensor x = normal(*ops, {1, 6, 3, 4, 16}, 1);
  DecoderState whole;
  const Tensor expected = decoder.run(*ops, x, whole);
  EXPECT_EQ(expected.shape(), (Shape{1, 24, 24, 32, 3}));
  DecoderState state;
  const auto run = [&](const Tensor& piece) { return decoder.run(*ops, piece, state); };
  EXPECT_LT(relative_error(in_pieces(*ops, x, {1, 1, 3, 1}, run), expected), kSame);
}

TEST_P(DecoderTest, InputsKeptInPlaceGiveTheSameBits) {
  const std::unique_ptr<Executor> ops = cpu_executor();
  const TinyDecoder decoder = with_random_weights(
      *ops, 4, [&](Loader loader) { return TinyDecoder::bind(std::move(loader), GetParam()); });
  const Tensor x = normal(*ops, {1, 7, 3, 4, 16}, 1);
  DecoderState copying;
  const auto copy = [&](const Tensor& piece) { return decoder.run(*ops, piece, copying); };
  const Tensor expected = in_pieces(*ops, x, {1, 1, 2, 1, 1, 1}, copy);
  DecoderState keeping;
  int64_t call = 0;
  const auto keep = [&](const Tensor& piece) {
    ++call;
    keeping.net.more_follows = call != 3 && call != 6;  // two rows of three calls
    return decoder.run(*ops, piece, keeping);
  };
  EXPECT_EQ(relative_error(in_pieces(*ops, x, {1, 1, 2, 1, 1, 1}, keep), expected), 0.0);
  for (const Tensor& kept : keeping.net.kept) EXPECT_FALSE(kept.defined());
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, DecoderTest,
    ::testing::Values(decoder_config(DecoderLayout::kTiny, MemoryInit::kZero),
                      decoder_config(DecoderLayout::kUltra, MemoryInit::kReplicate),
                      decoder_config(DecoderLayout::kNet, MemoryInit::kReplicate),
                      decoder_config(DecoderLayout::kNet, MemoryInit::kZero)));

TEST(DecoderTest, WeightsOfALargerTemporalFactorUseTheirLastRows) {
  const std::unique_ptr<Executor> ops = cpu_executor();
  TinyDecoderConfig full = decoder_config(DecoderLayout::kTiny, MemoryInit::kZero);
  TinyDecoderConfig half = full;
  half.time_upscale = {2, 1};
  EXPECT_EQ(half.frames_per_latent(), 2);
  EXPECT_EQ(half.frames_to_trim(), 1);
  const auto run = [&](const TinyDecoderConfig& config) {
    const TinyDecoder decoder = with_random_weights(
        *ops, 4, [&](Loader loader) { return TinyDecoder::bind(std::move(loader), config); });
    DecoderState state;
    return decoder.run(*ops, normal(*ops, {1, 2, 3, 4, 16}, 1), state);
  };
  // The last temporal growth has no memory behind it, so keeping its last rows keeps every second
  // picture of the full decoder.
  const Tensor all = run(full);
  const Tensor some = run(half);
  ASSERT_EQ(some.dim(1), 4);
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_LT(
        relative_error(part(*ops, some, 1, i, i + 1), part(*ops, all, 1, 2 * i + 1, 2 * i + 2)),
        kSame);
  }
}

TEST(EncoderTest, PiecesEqualTheWholeWhateverTheirLength) {
  const std::unique_ptr<Executor> ops = cpu_executor();
  TinyEncoderConfig config;
  config.width = 12;
  const TinyEncoder encoder = with_random_weights(*ops, 4, [&](Loader loader) {
    return TinyEncoder::bind(std::move(loader), config, MemoryInit::kZero);
  });
  const Tensor video = normal(*ops, {1, 12, 16, 24, 3}, 1);
  MemoryState whole;
  const Tensor expected = encoder.run(*ops, video, whole);
  EXPECT_EQ(expected.shape(), (Shape{1, 3, 2, 3, 16}));
  MemoryState state;
  const auto run = [&](const Tensor& piece) { return encoder.run(*ops, piece, state); };
  EXPECT_LT(relative_error(in_pieces(*ops, video, {1, 2, 3, 5, 1}, run), expected), kSame);
}

TEST(ConvolutionTest, BatchEqualsSingles) {
  const std::unique_ptr<Executor> ops = cpu_executor();
  const TinyDecoder decoder = with_random_weights(*ops, 4, [&](Loader loader) {
    return TinyDecoder::bind(std::move(loader),
                             decoder_config(DecoderLayout::kTiny, MemoryInit::kZero));
  });
  const Tensor x = normal(*ops, {2, 3, 3, 4, 16}, 1);
  DecoderState both_state;
  const Tensor both = decoder.run(*ops, x, both_state);
  for (int64_t b = 0; b < 2; ++b) {
    DecoderState state;
    EXPECT_LT(relative_error(part(*ops, both, 0, b, b + 1),
                             decoder.run(*ops, part(*ops, x, 0, b, b + 1), state)),
              kSame);
  }
}

WanVaeConfig vae_config() {
  WanVaeConfig config;
  config.dim = 8;
  config.num_res_blocks = 1;
  return config;
}

TEST(WanVaeTest, PiecesEqualTheWhole) {
  const std::unique_ptr<Executor> ops = cpu_executor();
  const WanVaeConfig config = vae_config();
  const WanVae vae = with_random_weights(
      *ops, 9, [&](Loader loader) { return WanVae::bind(std::move(loader), config, {}); });
  const Tensor latent = normal(*ops, {1, 6, 2, 3, 16}, 1);
  VaeState whole;
  const Tensor expected = vae.decode(*ops, latent, whole);
  EXPECT_EQ(expected.shape(), (Shape{1, 21, 16, 24, 3}));
  VaeState state;
  EXPECT_LT(relative_error(in_pieces(*ops, latent, {1, 2, 1, 2},
                                     [&](const Tensor& z) { return vae.decode(*ops, z, state); }),
                           expected),
            kSame);
  const Tensor video = normal(*ops, {1, 17, 16, 24, 3}, 2);
  VaeState encode_whole;
  const Tensor encoded = vae.encode(*ops, video, encode_whole);
  EXPECT_EQ(encoded.shape(), (Shape{1, 5, 2, 3, 16}));
  VaeState encode_state;
  EXPECT_LT(
      relative_error(in_pieces(*ops, video, {5, 4, 8},
                               [&](const Tensor& v) { return vae.encode(*ops, v, encode_state); }),
                     encoded),
      kSame);
  encode_state.reset();
  EXPECT_THROW(vae.encode(*ops, part(*ops, video, 1, 0, 4), encode_state), Error);
}

template <typename Bind>
int64_t parameters(const Bind& bind) {
  SpecSource source;
  Binder binder(source, "spec");
  bind(Loader(binder, {}));
  int64_t total = 0;
  for (const ParameterSpec& spec : binder.specs()) total += spec.shape.numel();
  return total;
}

// Parameter counts of the published networks, from the specification.
TEST(ConvolutionTest, PublishedParameterCounts) {
  LatentUpsamplerConfig v1;
  EXPECT_EQ(parameters([&](Loader l) { LatentUpsampler::bind(std::move(l), v1); }), 4'814'352);
  v1.scale = 3;
  EXPECT_EQ(parameters([&](Loader l) { LatentUpsampler::bind(std::move(l), v1); }), 4'907'152);
  LatentUpsamplerConfig v3;
  v3.version = 3;
  EXPECT_EQ(parameters([&](Loader l) { LatentUpsampler::bind(std::move(l), v3); }), 12'155'088);
  TinyDecoderConfig tiny;
  EXPECT_EQ(parameters([&](Loader l) { TinyDecoder::bind(std::move(l), tiny); }), 9'844'611);
  EXPECT_EQ(parameters([&](Loader l) {
              TinyEncoder::bind(std::move(l), TinyEncoderConfig{}, MemoryInit::kZero);
            }),
            1'470'928);
  TinyDecoderConfig ultra;
  ultra.layout = DecoderLayout::kUltra;
  EXPECT_EQ(parameters([&](Loader l) { TinyDecoder::bind(std::move(l), ultra); }), 12'942'979);
  TinyDecoderConfig net;
  net.layout = DecoderLayout::kNet;
  net.widths = {256, 128, 64};
  EXPECT_EQ(parameters([&](Loader l) { TinyDecoder::bind(std::move(l), net); }), 12'906'115);
  EXPECT_EQ(parameters([](Loader l) { WanVae::bind(std::move(l), WanVaeConfig{}, {}); }),
            126'892'531);
}

}  // namespace
}  // namespace ultraflash

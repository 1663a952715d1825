// Configs found from names and shapes alone: every network's own parameter list, written to a file
// and read back.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "models/latent_upsampler.h"
#include "models/loader.h"
#include "models/tiny_decoder.h"
#include "models/umt5.h"
#include "models/wan_dit.h"
#include "models/wan_vae.h"
#include "weights/safetensors_writer.h"

namespace ultraflash {
namespace {

// The parameters that `bind` asks for, as a checkpoint; one name may be left out.
template <typename Bind>
Checkpoint checkpoint_of(const Bind& bind, const std::string& without = {}) {
  SpecSource no_data;
  Binder binder(no_data, "spec");
  bind(Loader(binder, {}));
  RandomSource source(1, DType::kBF16);
  std::vector<NamedTensor> tensors;
  for (const ParameterSpec& spec : binder.specs()) {
    if (spec.name != without) tensors.push_back({spec.name, *source.find(spec)});
  }
  const std::filesystem::path path = std::filesystem::temp_directory_path() /
                                     ("uf-detect-" + std::to_string(getpid()) + ".safetensors");
  if (const Status status = save_safetensors(path, tensors); !status.ok()) {
    throw std::runtime_error(status.message());
  }
  Result<Checkpoint> checkpoint = Checkpoint::open(path);
  std::filesystem::remove(path);
  if (!checkpoint.ok()) throw std::runtime_error(checkpoint.status().message());
  return *checkpoint;
}

TEST(DetectTest, WanDit) {
  WanDitConfig config;
  config.dim = 128;
  config.num_heads = 1;
  config.ffn_dim = 96;
  config.num_layers = 3;
  config.in_dim = 32;
  config.freq_dim = 64;
  config.text_dim = 40;
  const auto bind = [&](Loader l) { WanDit::bind(std::move(l), config, DType::kF32); };
  const Result<WanDitConfig> found = WanDitConfig::detect(checkpoint_of(bind));
  ASSERT_TRUE(found.ok()) << found.status().message();
  EXPECT_EQ(found->dim, 128);
  EXPECT_EQ(found->num_heads, 1);
  EXPECT_EQ(found->ffn_dim, 96);
  EXPECT_EQ(found->num_layers, 3);
  EXPECT_EQ(found->in_dim, 32);
  EXPECT_EQ(found->out_dim, 16);
  EXPECT_EQ(found->freq_dim, 64);
  EXPECT_EQ(found->text_dim, 40);
  const Status missing =
      WanDitConfig::detect(checkpoint_of(bind, "text_embedding.0.weight")).status();
  EXPECT_EQ(missing.code(), StatusCode::kMalformed);
  EXPECT_NE(missing.message().find("text_embedding.0.weight"), std::string::npos);
}

TEST(DetectTest, Upsamplers) {
  for (const int64_t scale : {1, 2, 3, 4, 6}) {
    LatentUpsamplerConfig config;
    config.scale = scale;
    config.mid_channels = 24;
    config.num_blocks = 3;
    config.residual = scale % 2 == 0;
    const Result<LatentUpsamplerConfig> found = LatentUpsamplerConfig::detect(
        checkpoint_of([&](Loader l) { LatentUpsampler::bind(std::move(l), config); }));
    ASSERT_TRUE(found.ok()) << found.status().message();
    EXPECT_EQ(found->version, 1);
    EXPECT_EQ(found->scale, scale);
    EXPECT_EQ(found->mid_channels, 24);
    EXPECT_EQ(found->num_blocks, 3);
    EXPECT_EQ(found->residual, config.residual);
  }
  for (const int64_t scale : {1, 2, 8}) {
    LatentUpsamplerConfig config;
    config.version = 3;
    config.scale = scale;
    config.temporal_scale = scale == 8 ? 4 : 1;
    config.stage_channels = {16, 12, 8};
    config.blocks_per_stage = {2, 1, 3};
    const Result<LatentUpsamplerConfig> found = LatentUpsamplerConfig::detect(
        checkpoint_of([&](Loader l) { LatentUpsampler::bind(std::move(l), config); }));
    ASSERT_TRUE(found.ok()) << found.status().message();
    EXPECT_EQ(found->version, 3);
    EXPECT_EQ(found->scale, scale);
    EXPECT_EQ(found->temporal_scale, config.temporal_scale);
    EXPECT_EQ(found->stage_channels, config.stage_channels);
    EXPECT_EQ(found->blocks_per_stage, config.blocks_per_stage);
  }
}

TEST(DetectTest, Decoders) {
  for (const DecoderLayout layout :
       {DecoderLayout::kTiny, DecoderLayout::kUltra, DecoderLayout::kNet}) {
    TinyDecoderConfig config;
    config.layout = layout;
    config.widths = layout == DecoderLayout::kNet ? std::vector<int64_t>{16, 12, 8}
                                                  : std::vector<int64_t>{16, 12, 10, 8};
    const Result<TinyDecoderConfig> found = TinyDecoderConfig::detect(
        checkpoint_of([&](Loader l) { TinyDecoder::bind(std::move(l), config); }));
    ASSERT_TRUE(found.ok()) << found.status().message();
    EXPECT_EQ(found->layout, layout);
    EXPECT_EQ(found->widths, config.widths);
    EXPECT_EQ(found->memory_init,
              layout == DecoderLayout::kTiny ? MemoryInit::kZero : MemoryInit::kReplicate);
  }
}

TEST(DetectTest, Umt5AndVae) {
  Umt5Config text;
  text.vocab_size = 77;
  text.dim = 24;
  text.dim_attn = 32;
  text.dim_ffn = 40;
  text.num_heads = 4;
  text.num_layers = 2;
  const Result<Umt5Config> found_text =
      Umt5Config::detect(checkpoint_of([&](Loader l) { Umt5Encoder::bind(std::move(l), text); }));
  ASSERT_TRUE(found_text.ok()) << found_text.status().message();
  EXPECT_EQ(found_text->vocab_size, 77);
  EXPECT_EQ(found_text->dim_attn, 32);
  EXPECT_EQ(found_text->num_heads, 4);
  EXPECT_EQ(found_text->num_layers, 2);
  WanVaeConfig vae;
  vae.dim = 8;
  vae.dim_mult = {1, 2, 2, 4};
  vae.num_res_blocks = 2;
  vae.temporal_downsample = {1, 0, 1};
  const Result<WanVaeConfig> found_vae =
      WanVaeConfig::detect(checkpoint_of([&](Loader l) { WanVae::bind(std::move(l), vae, {}); }));
  ASSERT_TRUE(found_vae.ok()) << found_vae.status().message();
  EXPECT_EQ(found_vae->dim, 8);
  EXPECT_EQ(found_vae->dim_mult, vae.dim_mult);
  EXPECT_EQ(found_vae->num_res_blocks, 2);
  EXPECT_EQ(found_vae->temporal_downsample, vae.temporal_downsample);
}

}  // namespace
}  // namespace ultraflash

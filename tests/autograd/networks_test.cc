// Whole networks on the executor of training: recorded outputs, and the masked forms of the
// transformer against the cached one, with gradients.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "models/umt5.h"
#include "models/wan_dit_training.h"
#include "ops/autograd/autograd_executor.h"
#include "ops/autograd/torch_tensor.h"
#include "small_network.h"
#include "verify/verify.h"
#include "weights/parameter_source.h"

namespace ultraflash::testing {
namespace {

namespace fs = std::filesystem;

TEST(Golden, FilesReplayWithTheExecutorOfTraining) {
  const char* source = std::getenv("UF_SOURCE_DIR");
  ASSERT_NE(source, nullptr);
  const auto executor = make_autograd_executor({});
  at::NoGradGuard no_graph;
  int replayed = 0;
  for (const fs::directory_entry& entry :
       fs::directory_iterator(fs::path(source) / "tests/golden")) {
    if (entry.path().extension() != ".safetensors") continue;
    VerifyOptions options;
    const Result<VerifyReport> report = verify_file(entry.path(), *executor, options);
    ASSERT_TRUE(report.ok()) << report.status().message();
    for (const VerifyRow& row : report->rows) {
      EXPECT_TRUE(row.ok) << report->file << " " << row.output << ": " << row.measure << " "
                          << row.value << ", limit " << row.limit;
    }
    ++replayed;
  }
  EXPECT_GE(replayed, 5);
}

constexpr int64_t kFrames = 6;
constexpr int64_t kChunk = 2;
constexpr int64_t kPerFrame = 6;                                         // tokens of a 4 x 6 latent
const std::vector<double> kFrameTimes = {900, 900, 500, 500, 250,  250,  // first sample
                                         100, 100, 700, 700, 1000, 1000};

void expect_near(const at::Tensor& got, const at::Tensor& expected, double limit,
                 const std::string& what) {
  const double error = (got - expected).norm().item<double>();
  EXPECT_LE(error, limit * expected.norm().item<double>() + 1e-7) << what;
}

// Rolls the clip out chunk by chunk; the keys of earlier chunks come from `history`, a clip of its
// own pass (the clean one) or the same latent.
at::Tensor through_the_cache(Network& n, const Tensor& latent, const Tensor* clean) {
  KvState state = make_kv_state(*n.ops, n.dit, 2, kFrames, kPerFrame);
  std::vector<at::Tensor> flows;
  for (int64_t begin = 0; begin < kFrames; begin += kChunk) {
    std::vector<double> times;
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t f = begin; f < begin + kChunk; ++f) {
        times.push_back(kFrameTimes[static_cast<size_t>(b * kFrames + f)]);
      }
    }
    const TimeModulation time = n.dit.time(*n.ops, times, 2);
    CausalPass pass;
    pass.time = &time;
    pass.text = &n.text;
    pass.place = {begin, begin, 0, kFrames, begin + kChunk, 0, {}};
    const auto chunk = [&](const Tensor& x) {
      return from_torch(to_torch(x).narrow(1, begin, kChunk).contiguous());
    };
    flows.push_back(to_torch(run_causal(*n.ops, n.dit, chunk(latent), state, pass)));
    if (clean == nullptr) continue;
    const TimeModulation zero = n.dit.time(*n.ops, std::vector<double>{0.0, 0.0}, 2);
    pass.time = &zero;
    pass.cache_only = true;
    static_cast<void>(run_causal(*n.ops, n.dit, chunk(*clean), state, pass));
  }
  return at::cat(flows, 1);
}

TEST(MaskedPasses, ChunkCausalEqualsTheCache) {
  Network n;
  const Tensor latent = n.normal({2, kFrames, 4, 6, 4}, 1);
  const Tensor weight = n.normal({2, kFrames, 4, 6, 4}, 2);
  const Tensor embeddings = n.normal({2, 5, 12}, 3);
  const auto pass = [&](bool cached) {
    n.text = n.dit.text(*n.ops, embeddings);
    const at::Tensor flow =
        cached ? through_the_cache(n, latent, nullptr)
               : to_torch(run_chunk_causal(*n.ops, n.dit, latent, kChunk,
                                           n.dit.time(*n.ops, kFrameTimes, 2), n.text));
    torch::autograd::backward({(flow * to_torch(weight)).sum()}, {});
    return std::pair(flow.detach(), n.source.take_gradients());
  };
  const auto [cached, cached_gradients] = pass(true);
  const auto [masked, masked_gradients] = pass(false);
  expect_near(masked, cached, 2e-5, "flow");
  for (const auto& [name, gradient] : cached_gradients) {
    EXPECT_GT(gradient.norm().item<double>(), 0.0) << name;
    expect_near(masked_gradients.at(name), gradient, 1e-4, name);
  }
}

TEST(MaskedPasses, TeacherForcingEqualsCleanKeysInTheCache) {
  Network n;
  const Tensor clean = n.normal({2, kFrames, 4, 6, 4}, 1);
  const Tensor noisy = n.normal({2, kFrames, 4, 6, 4}, 4);
  const Tensor weight = n.normal({2, kFrames, 4, 6, 4}, 2);
  const Tensor embeddings = n.normal({2, 5, 12}, 3);
  std::vector<double> times;
  for (int64_t b = 0; b < 2; ++b) {
    times.insert(times.end(), kFrames, 0.0);
    times.insert(times.end(), kFrameTimes.begin() + b * kFrames,
                 kFrameTimes.begin() + (b + 1) * kFrames);
  }
  const auto pass = [&](bool cached) {
    n.text = n.dit.text(*n.ops, embeddings);
    const at::Tensor flow =
        cached ? through_the_cache(n, noisy, &clean)
               : to_torch(run_teacher_forcing(*n.ops, n.dit, clean, noisy, kChunk,
                                              n.dit.time(*n.ops, times, 2), n.text));
    torch::autograd::backward({(flow * to_torch(weight)).sum()}, {});
    return std::pair(flow.detach(), n.source.take_gradients());
  };
  const auto [cached, cached_gradients] = pass(true);
  const auto [masked, masked_gradients] = pass(false);
  expect_near(masked, cached, 2e-5, "flow");
  for (const auto& [name, gradient] : cached_gradients) {
    expect_near(masked_gradients.at(name), gradient, 1e-4, name);
  }
}

TEST(TextEncoder, EveryParameterGetsAGradient) {
  const auto ops = make_autograd_executor({});
  LeafSource source(7);
  Umt5Config config;
  config.vocab_size = 20;
  config.dim = 24;
  config.dim_attn = 16;
  config.dim_ffn = 32;
  config.num_heads = 2;
  config.num_layers = 2;
  Binder binder(source, "leaves");
  LoadTarget target;
  target.executor = ops.get();
  const Umt5Encoder encoder = Umt5Encoder::bind(Loader(binder, target), config);
  ASSERT_TRUE(binder.finish().ok());
  const Tensor ids = Tensor::of<int64_t>(std::vector<int64_t>{1, 5, 9, 0, 2, 3, 4, 6}, {2, 4});
  const Tensor lengths = Tensor::of<int64_t>(std::vector<int64_t>{3, 4}, {2});
  const at::Tensor y = to_torch(encoder.run(*ops, ids, lengths));
  torch::autograd::backward({(y * at::randn(y.sizes())).sum()}, {});
  for (const auto& [name, gradient] : source.take_gradients()) {
    EXPECT_GT(gradient.norm().item<double>(), 0.0) << name;
  }
}

}  // namespace
}  // namespace ultraflash::testing

// Recomputation changes when things are computed, and nothing else.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <vector>

#include "models/wan_dit_training.h"
#include "ops/recompute_region.h"
#include "small_network.h"

namespace ultraflash::testing {
namespace {

constexpr int64_t kFrames = 6;
constexpr int64_t kChunk = 2;
constexpr int64_t kPerFrame = 6;                                    // tokens of a 4 x 6 latent
const std::vector<double> kTimes = {900, 900, 500, 500, 250,  250,  // first sample
                                    100, 100, 700, 700, 1000, 1000};

AutogradOptions with(bool recompute) {
  AutogradOptions options;
  options.recompute = recompute;
  return options;
}

using Pass = std::function<at::Tensor(Network&, const at::Tensor& latent)>;

at::Tensor bidirectional(Network& n, const at::Tensor& latent) {
  const TimeModulation time = n.dit.time(*n.ops, std::vector<double>{300, 600}, 2);
  return to_torch(run_bidirectional(*n.ops, n.dit, from_torch(latent), time, n.text));
}

at::Tensor chunk_causal(Network& n, const at::Tensor& latent) {
  return to_torch(run_chunk_causal(*n.ops, n.dit, from_torch(latent), kChunk,
                                   n.dit.time(*n.ops, kTimes, 2), n.text));
}

at::Tensor teacher_forcing(Network& n, const at::Tensor& latent) {
  std::vector<double> times = kTimes;
  times.insert(times.end(), kTimes.begin(), kTimes.end());
  return to_torch(run_teacher_forcing(*n.ops, n.dit, from_torch(latent * 0.5), from_torch(latent),
                                      kChunk, n.dit.time(*n.ops, times, 2), n.text));
}

// Chunk by chunk, with gradients through the keys and values of earlier chunks.
at::Tensor cached(Network& n, const at::Tensor& latent) {
  KvState state = make_kv_state(*n.ops, n.dit, 2, kFrames, kPerFrame);
  const TimeModulation time = n.dit.time(*n.ops, std::vector<double>{300, 600}, 2);
  std::vector<at::Tensor> flows;
  for (int64_t begin = 0; begin < kFrames; begin += kChunk) {
    CausalPass pass;
    pass.time = &time;
    pass.text = &n.text;
    pass.place = {begin, begin, 0, kFrames, begin + kChunk, 0, {}};
    const Tensor x = from_torch(latent.narrow(1, begin, kChunk).contiguous());
    flows.push_back(to_torch(run_causal(*n.ops, n.dit, x, state, pass)));
  }
  return at::cat(flows, 1);
}

struct Outcome {
  at::Tensor flow;
  at::Tensor latent_gradient;
  std::map<std::string, at::Tensor> gradients;
};

Outcome run(const Pass& pass, bool recompute) {
  Network n(with(recompute));
  const at::Tensor latent =
      to_torch(n.normal({2, kFrames, 4, 6, 4}, 1)).clone().requires_grad_(true);
  n.text = n.dit.text(*n.ops, n.normal({2, 5, 12}, 3));
  const at::Tensor flow = pass(n, latent);
  const at::Tensor weight = to_torch(n.normal({2, kFrames, 4, 6, 4}, 2));
  torch::autograd::backward({(flow * weight).sum()}, {});
  return {flow.detach(), latent.grad(), n.source.take_gradients()};
}

void expect_same(const Pass& pass) {
  const Outcome plain = run(pass, false);
  const Outcome again = run(pass, true);
  EXPECT_TRUE(at::equal(plain.flow, again.flow));
  EXPECT_GT(plain.latent_gradient.abs().max().item<float>(), 0.0F);
  EXPECT_TRUE(at::equal(plain.latent_gradient, again.latent_gradient));
  for (const auto& [name, gradient] : plain.gradients) {
    EXPECT_GT(gradient.abs().max().item<float>(), 0.0F) << name;
    EXPECT_TRUE(at::equal(gradient, again.gradients.at(name))) << name;
  }
}

TEST(Recompute, BidirectionalGradientsHaveTheSameBits) { expect_same(bidirectional); }
TEST(Recompute, ChunkCausalGradientsHaveTheSameBits) { expect_same(chunk_causal); }
TEST(Recompute, TeacherForcingGradientsHaveTheSameBits) { expect_same(teacher_forcing); }
TEST(Recompute, GradientsThroughTheCacheHaveTheSameBits) { expect_same(cached); }

// A probe sees the hidden states of the graph, as the discriminator needs them.
TEST(Recompute, TappedLayersStayInTheGraph) {
  std::vector<at::Tensor> gradients;
  for (const bool recompute : {false, true}) {
    Network n(with(recompute));
    const at::Tensor latent =
        to_torch(n.normal({2, kFrames, 4, 6, 4}, 1)).clone().requires_grad_(true);
    n.text = n.dit.text(*n.ops, n.normal({2, 5, 12}, 3));
    const TimeModulation time = n.dit.time(*n.ops, std::vector<double>{300, 600}, 2);
    at::Tensor tapped;
    const ForwardProbe probe = [&](std::string_view name, const Tensor& value) {
      if (name == "blocks.0.ffn") tapped = to_torch(value);
    };
    (void)run_bidirectional(*n.ops, n.dit, from_torch(latent), time, n.text, probe);
    torch::autograd::backward({tapped.square().sum()}, {});
    gradients.push_back(latent.grad());
  }
  EXPECT_TRUE(at::equal(gradients[0], gradients[1]));
}

// A frozen network hands gradients on to its input, and none of its own weights takes one.
TEST(Recompute, FrozenNetworksPassGradientsOn) {
  const auto frozen = [](Network& n, const at::Tensor& latent) {
    for (auto& [name, leaf] : n.source.leaves) leaf.set_requires_grad(false);
    n.text = n.dit.text(*n.ops, n.normal({2, 5, 12}, 3));
    return bidirectional(n, latent);
  };
  const Outcome plain = run(frozen, false);
  const Outcome again = run(frozen, true);
  EXPECT_TRUE(at::equal(plain.latent_gradient, again.latent_gradient));
  for (const auto& [name, gradient] : again.gradients) {
    EXPECT_EQ(gradient.abs().max().item<float>(), 0.0F) << name;
  }
}

TEST(Recompute, RegionsCheckTheirUse) {
  Network n(with(true));
  const Tensor x = n.normal({1, 3, 48}, 1);
  const Tensor leaf = from_torch(to_torch(x).clone().requires_grad_(true));
  {
    RecomputeRegion region(*n.ops);
    const Tensor y = n.ops->activate(leaf, Activation::kSilu);
    EXPECT_THROW(region.end({x}), Error) << "x was not made inside";
  }
  {
    RecomputeRegion region(*n.ops);
    EXPECT_THROW(n.ops->copy(x, leaf), Error) << "x lies outside";
    EXPECT_THROW(RecomputeRegion(*n.ops), Error);
  }
  // Without a graph a region is nothing.
  const at::NoGradGuard no_graph;
  RecomputeRegion region(*n.ops);
  n.ops->copy(x, leaf);
  region.end({});
}

// Counts the bytes that libtorch holds in host memory.
class CountingAllocator final : public c10::Allocator {
 public:
  CountingAllocator() : base_(c10::GetCPUAllocator()) { c10::SetCPUAllocator(this, 255); }
  CountingAllocator(const CountingAllocator&) = delete;
  CountingAllocator& operator=(const CountingAllocator&) = delete;
  ~CountingAllocator() override { c10::SetCPUAllocator(base_, 255); }

  c10::DataPtr allocate(size_t bytes) override {
    held += static_cast<int64_t>(bytes);
    peak = std::max(peak, held);
    auto* block = new Block{base_->allocate(bytes), static_cast<int64_t>(bytes), this};
    return {block->memory.get(), block, &release, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  int64_t held = 0;
  int64_t peak = 0;

 private:
  struct Block {
    c10::DataPtr memory;
    int64_t bytes;
    CountingAllocator* owner;
  };
  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    block->owner->held -= block->bytes;
    delete block;
  }
  c10::Allocator* base_;
};

TEST(Recompute, HoldsTheInputsOfTheLayersAlone) {
  struct Memory {
    int64_t graph;  // held between the forward and the backward pass
    int64_t peak;
  };
  CountingAllocator counter;  // outlives everything it gave
  const auto measure = [&](bool recompute) {
    Network n(with(recompute));
    const Tensor latent = n.normal({2, kFrames, 16, 24, 4}, 1);
    const auto forward = [&] {
      n.text = n.dit.text(*n.ops, n.normal({2, 5, 12}, 3));
      return bidirectional(n, to_torch(latent)).sum();
    };
    at::Tensor loss = forward();
    torch::autograd::backward({loss}, {});  // gradients have their memory after this
    loss.reset();
    const int64_t before = counter.held;
    counter.peak = before;
    loss = forward();
    Memory memory{};
    memory.graph = counter.held - before;
    torch::autograd::backward({loss}, {});
    memory.peak = counter.peak - before;
    return memory;
  };
  const Memory plain = measure(false);
  const Memory again = measure(true);
  const int64_t tokens = 2 * kFrames * 8 * 12;
  const int64_t stream = tokens * 48 * 4;  // bytes of one [batch, tokens, dim]
  // Two layers: x and its norm before each of them and after the last, the patches and the head.
  EXPECT_LT(again.graph, 9 * stream);
  EXPECT_GT(plain.graph, 2 * again.graph);
  EXPECT_LT(again.peak, plain.peak * 3 / 4);
}

}  // namespace
}  // namespace ultraflash::testing

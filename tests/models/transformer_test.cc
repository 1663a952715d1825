#include <gtest/gtest.h>

#include <vector>

#include "models/model_fixture.h"
#include "models/sparse_sr_dit.h"
#include "models/umt5.h"
#include "models/wan_dit.h"
#include "stream/cache_policy.h"

namespace ultraflash {
namespace {

using testing::cpu_executor;
using testing::joined;
using testing::normal;
using testing::part;
using testing::relative_error;
using testing::root_mean_square;
using testing::with_random_weights;

constexpr double kSame = 2e-6;  // the same sums in another order

WanDitConfig small_config() {
  WanDitConfig config;
  config.dim = 48;
  config.ffn_dim = 80;
  config.num_layers = 3;
  config.num_heads = 3;
  config.freq_dim = 32;
  config.text_dim = 24;
  config.text_len = 10;
  return config;
}

struct CausalFixture {
  std::unique_ptr<Executor> ops = cpu_executor();
  WanDitConfig config = small_config();
  WanDit network = with_random_weights(
      *ops, 5, [&](Loader loader) { return WanDit::bind(std::move(loader), config, DType::kF32); });
  TextKv text_of(int64_t batch, uint64_t salt = 1) {
    return network.text(*ops, normal(*ops, {batch, config.text_len, config.text_dim}, salt));
  }
  TimeModulation time_of(double t) { return network.time(*ops, {&t, 1}); }

  Tensor forward(const Tensor& latent, KvState& state, const ChunkPlace& place, double t,
                 const TextKv& text, bool cache_only = false) {
    const TimeModulation time = time_of(t);
    CausalPass pass;
    pass.time = &time;
    pass.text = &text;
    pass.place = place;
    pass.cache_only = cache_only;
    return run_causal(*ops, network, latent, state, pass);
  }
};

constexpr int64_t kHeight = 4;
constexpr int64_t kWidth = 6;
constexpr int64_t kTokens = kHeight / 2 * (kWidth / 2);

Tensor latent_of(Executor& ops, int64_t batch, int64_t frames, uint64_t salt) {
  return normal(ops, {batch, frames, kHeight, kWidth, 16}, salt);
}

TEST(WanDitTest, ASecondContextPassChangesNothing) {
  CausalFixture f;
  CacheRing ring({CacheKind::kWindow, 6, 0});
  KvState state = make_kv_state(*f.ops, f.network, 1, 6, kTokens);
  const TextKv text = f.text_of(1);
  const Tensor chunk = latent_of(*f.ops, 1, 3, 7);
  const ChunkPlace place = *ring.append(3, 0);
  f.forward(chunk, state, place, 0.0, text, /*cache_only=*/true);
  std::vector<Tensor> before;
  for (const KvCache& cache : state.layers)
    before.push_back(cache.k.slice(1, 0, 3 * kTokens).copy());
  f.forward(chunk, state, place, 0.0, text, /*cache_only=*/true);
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(relative_error(state.layers[i].k.slice(1, 0, 3 * kTokens).copy(), before[i]), 0.0);
  }
}

TEST(WanDitTest, CacheOnlyPassWritesWhatAFullPassWrites) {
  CausalFixture f;
  KvState full = make_kv_state(*f.ops, f.network, 1, 3, kTokens);
  KvState only = make_kv_state(*f.ops, f.network, 1, 3, kTokens);
  const TextKv text = f.text_of(1);
  const Tensor chunk = latent_of(*f.ops, 1, 3, 7);
  const ChunkPlace place = *CacheRing({CacheKind::kGrow, 3, 0}).append(3, 0);
  EXPECT_TRUE(f.forward(chunk, full, place, 625.0, text).defined());
  EXPECT_FALSE(f.forward(chunk, only, place, 625.0, text, /*cache_only=*/true).defined());
  for (size_t i = 0; i < full.layers.size(); ++i) {
    EXPECT_EQ(relative_error(only.layers[i].k, full.layers[i].k), 0.0);
    EXPECT_EQ(relative_error(only.layers[i].v, full.layers[i].v), 0.0);
  }
}

// The padding of a text goes through the network as zeros, so every row of it has the same key and
// value, and to know how long the text is changes nothing.
TEST(WanDitTest, PaddingOfATextIsOneKeyManyTimes) {
  CausalFixture f;
  const int64_t tokens = 4;
  Tensor embeddings = normal(*f.ops, {1, f.config.text_len, f.config.text_dim}, 1);
  const std::vector<int64_t> lengths = {tokens};
  embeddings = f.ops->mask_rows(std::move(embeddings), Tensor::of<int64_t>(lengths, {1}));
  TextKv known = f.network.text(*f.ops, embeddings, tokens);
  const TextKv unknown = f.network.text(*f.ops, embeddings);
  ASSERT_TRUE(known.distinct.defined());
  EXPECT_FALSE(unknown.distinct.defined());
  EXPECT_EQ(known.distinct.data<int64_t>()[0], tokens + 1);
  for (const auto& [k, v] : known.layers) {
    for (int64_t row = tokens + 1; row < f.config.text_len; ++row) {
      EXPECT_EQ(
          relative_error(part(*f.ops, k, 1, row, row + 1), part(*f.ops, k, 1, tokens, tokens + 1)),
          0.0);
      EXPECT_EQ(
          relative_error(part(*f.ops, v, 1, row, row + 1), part(*f.ops, v, 1, tokens, tokens + 1)),
          0.0);
    }
  }
  const Tensor latent = latent_of(*f.ops, 1, 3, 7);
  const ChunkPlace place = *CacheRing({CacheKind::kGrow, 3, 0}).append(3, 0);
  const auto flow = [&](const TextKv& text) {
    KvState state = make_kv_state(*f.ops, f.network, 1, 3, kTokens);
    return f.forward(latent, state, place, 500.0, text);
  };
  const Tensor expected = flow(unknown);
  EXPECT_LT(relative_error(flow(known), expected), kSame);
  // Kept in the place of another text, as a change of prompt does it.
  TextKv kept = f.network.text(*f.ops, f.ops->zeros(DType::kF32, embeddings.shape()), 0);
  EXPECT_EQ(kept.distinct.data<int64_t>()[0], 1);
  keep_text(*f.ops, std::move(known), kept);
  EXPECT_EQ(kept.distinct.data<int64_t>()[0], tokens + 1);
  EXPECT_LT(relative_error(flow(kept), expected), kSame);
  // A text that fills all rows has no padding.
  EXPECT_EQ(f.network.text(*f.ops, embeddings, f.config.text_len).distinct.data<int64_t>()[0],
            f.config.text_len);
}

TEST(WanDitTest, BatchEqualsSingles) {
  CausalFixture f;
  const TextKv both = f.text_of(2);
  const Tensor latent = latent_of(*f.ops, 2, 3, 7);
  const ChunkPlace place = *CacheRing({CacheKind::kGrow, 3, 0}).append(3, 0);
  KvState state = make_kv_state(*f.ops, f.network, 2, 3, kTokens);
  const Tensor flow = f.forward(latent, state, place, 937.5, both);
  const Tensor text = normal(*f.ops, {2, f.config.text_len, f.config.text_dim}, 1);
  for (int64_t b = 0; b < 2; ++b) {
    KvState one = make_kv_state(*f.ops, f.network, 1, 3, kTokens);
    const TextKv single = f.network.text(*f.ops, part(*f.ops, text, 0, b, b + 1));
    const Tensor expected = f.forward(part(*f.ops, latent, 0, b, b + 1), one, place, 937.5, single);
    EXPECT_LT(relative_error(part(*f.ops, flow, 0, b, b + 1), expected), kSame);
  }
}

TEST(WanDitTest, TimestepsMayDifferByFrameAndSample) {
  CausalFixture f;
  const TextKv text = f.text_of(2);
  const Tensor latent = latent_of(*f.ops, 2, 3, 7);
  const ChunkPlace place = *CacheRing({CacheKind::kGrow, 3, 0}).append(3, 0);
  const auto run = [&](const std::vector<double>& timesteps, int64_t batch) {
    KvState state = make_kv_state(*f.ops, f.network, 2, 3, kTokens);
    const TimeModulation time = f.network.time(*f.ops, timesteps, batch);
    CausalPass pass;
    pass.time = &time;
    pass.text = &text;
    pass.place = place;
    return run_causal(*f.ops, f.network, latent, state, pass);
  };
  const Tensor one = run({500.0}, 1);
  EXPECT_LT(relative_error(run({500.0, 500.0, 500.0}, 1), one), kSame);
  EXPECT_LT(relative_error(run(std::vector<double>(6, 500.0), 2), one), kSame);
  EXPECT_GT(relative_error(run({500.0, 500.0, 250.0}, 1), one), 1e-3);
}

// The rolling cache against a recomputation of everything at once: all chunks side by side, each
// attending to exactly the frames that the policy keeps for it.
void rolling_equals_recomputed(const CachePolicy& policy, int64_t chunks) {
  CausalFixture f;
  Executor& ops = *f.ops;
  const TextKv text = f.text_of(1);
  const Tensor clip = latent_of(ops, 1, 3 * chunks, 3);
  CacheRing ring(policy);
  KvState state = make_kv_state(ops, f.network, 1, policy.capacity_frames, kTokens);
  std::vector<Tensor> rolling;
  std::vector<std::vector<int64_t>> visible;
  for (int64_t c = 0; c < chunks; ++c) {
    const ChunkPlace place = *ring.append(3, 3 * c);
    visible.push_back(ring.frames());
    rolling.push_back(f.forward(part(ops, clip, 1, 3 * c, 3 * c + 3), state, place, 0.0, text));
  }

  const TimeModulation time = f.time_of(0.0);
  const TokenGrid grid{3 * chunks, kHeight / 2, kWidth / 2};
  ChunkPlace everything;
  everything.ring_end = 3 * chunks;
  everything.visible_frames = 3 * chunks;
  const Tensor head = f.network.run(
      ops, ops.patchify(clip, {}, DType::kF32), time, text,
      [&](int64_t, const WanAttention& weights, const Tensor& qkv) {
        const Shape shape{1, grid.tokens(), f.config.dim};
        KvCache cache{ops.empty(DType::kF32, shape), ops.empty(DType::kF32, shape)};
        const Tensor q = ops.qkv_to_cache(qkv, weights.norm_q, weights.norm_k, f.config.eps, grid,
                                          f.config.num_heads, everything, cache);
        std::vector<Tensor> outputs;
        for (int64_t c = 0; c < chunks; ++c) {
          std::vector<Tensor> keys;
          std::vector<Tensor> values;
          for (const int64_t frame : visible[static_cast<size_t>(c)]) {
            keys.push_back(part(ops, cache.k, 1, frame * kTokens, (frame + 1) * kTokens));
            values.push_back(part(ops, cache.v, 1, frame * kTokens, (frame + 1) * kTokens));
          }
          outputs.push_back(ops.attention(part(ops, q, 1, 3 * c * kTokens, (3 * c + 3) * kTokens),
                                          joined(ops, keys, 1), joined(ops, values, 1),
                                          f.config.num_heads));
        }
        return joined(ops, outputs, 1);
      });
  const Tensor recomputed = ops.unpatchify(head, grid, DType::kF32);
  EXPECT_LT(relative_error(joined(ops, rolling, 1), recomputed), 5 * kSame);
}

TEST(WanDitTest, RollingCacheEqualsRecomputation) {
  rolling_equals_recomputed({CacheKind::kGrow, 12, 0}, 4);
  rolling_equals_recomputed({CacheKind::kWindow, 6, 0}, 5);
  rolling_equals_recomputed({CacheKind::kWindow, 9, 3}, 6);
}

TEST(WanDitTest, PositionsBeyondThePublishedTables) {
  // Attention depends on differences of positions: far along a stream nothing changes.
  CausalFixture f;
  const TextKv text = f.text_of(1);
  const auto run_from = [&](int64_t first) {
    CacheRing ring({CacheKind::kWindow, 6, 0});
    KvState state = make_kv_state(*f.ops, f.network, 1, 6, kTokens);
    Tensor flow;
    for (int64_t c = 0; c < 2; ++c) {
      flow =
          f.forward(latent_of(*f.ops, 1, 3, 3), state, *ring.append(3, first + 3 * c), 0.0, text);
    }
    return flow;
  };
  const Tensor near_start = run_from(0);
  EXPECT_LT(relative_error(run_from(900), near_start), 1e-4);
  EXPECT_LT(relative_error(run_from(5000), near_start), 1e-4);
  // Rounding of far angles to f32 factors stays small after days of streaming (4 frames a second).
  EXPECT_LT(relative_error(run_from(4 * 86400 * 7), near_start), 1e-3);
}

// Random weights keep every residual stream, gate and score of order one, however deep.
TEST(WanDitTest, RandomWeightsStayOfOrderOne) {
  const std::unique_ptr<Executor> ops = cpu_executor();
  WanDitConfig config = small_config();
  config.dim = 128;
  config.num_heads = 2;
  config.ffn_dim = 512;
  config.num_layers = 30;
  const WanDit network = with_random_weights(
      *ops, 1, [&](Loader loader) { return WanDit::bind(std::move(loader), config, DType::kF32); });
  const double t = 937.5;
  const TimeModulation time = network.time(*ops, {&t, 1});
  const TextKv text = network.text(*ops, normal(*ops, {1, config.text_len, config.text_dim}, 1));
  int probed = 0;
  const Tensor flow = run_bidirectional(*ops, network, latent_of(*ops, 1, 3, 2), time, text,
                                        [&](std::string_view name, const Tensor& value) {
                                          ++probed;
                                          const double size = root_mean_square(value);
                                          EXPECT_GT(size, 0.3) << name;
                                          EXPECT_LT(size, 4.0) << name;
                                        });
  EXPECT_EQ(probed, 1 + 3 * 30);
  EXPECT_GT(root_mean_square(flow), 0.3);
  EXPECT_LT(root_mean_square(flow), 4.0);
}

// Parameter counts of the published networks, from the specification.
template <typename Bind>
int64_t parameters(const Bind& bind) {
  SpecSource source;
  Binder binder(source, "spec");
  bind(Loader(binder, {}));
  int64_t total = 0;
  for (const ParameterSpec& spec : binder.specs()) total += spec.shape.numel();
  return total;
}

TEST(TransformerTest, PublishedParameterCounts) {
  EXPECT_EQ(parameters([](Loader l) { WanDit::bind(std::move(l), WanDitConfig{}, DType::kF32); }),
            1'418'996'800);
  SparseSrDitConfig sr;
  sr.transformer.in_dim = 32;
  EXPECT_EQ(parameters([&](Loader l) { SparseSrDit::bind(std::move(l), sr); }), 1'419'095'104);
  EXPECT_EQ(parameters([](Loader l) { Umt5Encoder::bind(std::move(l), Umt5Config{}); }),
            5'680'910'336);
}

// --- sparse SR transformer
// -------------------------------------------------------------------------

SparseSrDitConfig sr_config() {
  SparseSrDitConfig config;
  config.transformer = small_config();
  config.transformer.in_dim = 32;
  config.transformer.num_layers = 2;
  config.local_range = 3;
  config.ref_spatial_tokens = 120;
  return config;
}

struct SrFixture {
  std::unique_ptr<Executor> ops = cpu_executor();
  SparseSrDitConfig config = sr_config();
  SparseSrDit network = with_random_weights(
      *ops, 6, [&](Loader loader) { return SparseSrDit::bind(std::move(loader), config); });
  TimeModulation time = [&] {
    const double t = 1000.0;
    return network.transformer().time(*ops, {&t, 1});
  }();
  TextKv text = network.transformer().text(
      *ops, normal(*ops, {1, config.transformer.text_len, config.transformer.text_dim}, 1));

  Tensor run(const Tensor& noise, const Tensor& condition, SparseSrState& state, int64_t kv_len,
             const std::vector<Tensor>* masks, std::vector<Tensor>* chosen = nullptr) {
    SparseSrPass pass;
    pass.time = &time;
    pass.text = &text;
    pass.kv_len = kv_len;
    pass.injected_masks = masks;
    pass.chosen_masks = chosen;
    return network.run(*ops, noise, condition, state, pass);
  }
};

TEST(SparseSrDitTest, GroupsEqualTheWholeWithGivenMasks) {
  SrFixture f;
  const int64_t h = 18;
  const int64_t w = 22;
  const int64_t frames = 8;
  const Tensor noise = normal(*f.ops, {1, frames, h, w, 16}, 2);
  const Tensor condition = normal(*f.ops, {1, frames, h, w, 16}, 3);
  // The whole clip at once chooses the masks; block-causality makes them usable group by group.
  SparseSrState whole = f.network.make_state(*f.ops, 1, h / 2, w / 2, frames, 4);
  std::vector<Tensor> masks;
  const Tensor expected = f.run(noise, condition, whole, 4, nullptr, &masks);
  const int64_t spatial = f.network.windows({frames, h / 2, w / 2}).spatial_blocks();
  SparseSrState state = f.network.make_state(*f.ops, 1, h / 2, w / 2, 4, 4);
  std::vector<Tensor> parts;
  int64_t done = 0;
  for (const int64_t size : {2, 4, 2}) {
    std::vector<Tensor> group_masks;
    for (const Tensor& mask : masks) {
      const int64_t first = done / 2 * spatial;
      const int64_t end = (done + size) / 2 * spatial;
      group_masks.push_back(mask.slice(2, first, end).slice(3, 0, end).copy());
    }
    parts.push_back(f.run(part(*f.ops, noise, 1, done, done + size),
                          part(*f.ops, condition, 1, done, done + size), state, 4, &group_masks));
    done += size;
  }
  EXPECT_LT(relative_error(joined(*f.ops, parts, 1), expected), 5 * kSame);
}

TEST(SparseSrDitTest, CacheLengthLimitsWhatIsSeen) {
  SrFixture f;
  const auto group = [&](uint64_t salt) { return normal(*f.ops, {1, 2, 16, 16, 16}, salt); };
  const auto third_group = [&](int64_t kv_len, uint64_t first_salt) {
    SparseSrState state = f.network.make_state(*f.ops, 1, 8, 8, 2, 3);
    f.run(group(first_salt), group(first_salt + 50), state, kv_len, nullptr);
    f.run(group(2), group(52), state, kv_len, nullptr);
    EXPECT_EQ(state.cached_blocks, std::min<int64_t>(kv_len, 2));
    return f.run(group(3), group(53), state, kv_len, nullptr);
  };
  // With one cached block the first group is out of sight, but its trace in the second group's
  // keys remains; with two it is seen directly.
  EXPECT_GT(relative_error(third_group(1, 1), third_group(2, 1)), 1e-4);
  EXPECT_GT(relative_error(third_group(2, 1), third_group(2, 11)), 1e-4);
}

TEST(SparseSrDitTest, OneRingEqualsACacheALayer) {
  SrFixture f;
  const auto group = [&](int64_t frames, uint64_t salt) {
    return normal(*f.ops, {1, frames, 18, 22, 16}, salt);
  };
  const auto stream = [&](bool one_ring) {
    SparseSrState state = f.network.make_state(*f.ops, 1, 9, 11, 6, 3, one_ring);
    EXPECT_EQ(state.one_ring(), one_ring);
    std::vector<Tensor> flows;
    uint64_t salt = 1;
    // Full groups until the ring has gone round, then shorter ones and a shorter cache.
    for (const int64_t frames : {6, 6, 6, 6, 3, 6, 2, 2, 6}) {
      const int64_t kv_len = salt % 4 == 0 ? 1 : 3;
      flows.push_back(f.ops->to_host(
          f.run(group(frames, salt), group(frames, salt + 50), state, kv_len, nullptr)));
      flows.back() = flows.back().copy();
      ++salt;
    }
    return flows;
  };
  const std::vector<Tensor> expected = stream(false);
  const std::vector<Tensor> got = stream(true);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(relative_error(got[i], expected[i]), 0.0) << "group " << i;
  }
}

TEST(SparseSrDitTest, SelectingEverythingIsDenseAttention) {
  SrFixture f;
  // One temporal block of 16 x 16 patches without padding: all four windows see each other.
  const WindowGrid grid{{2, 16, 16}, {2, 8, 8}};
  const int64_t dim = f.config.transformer.dim;
  const int64_t heads = f.config.transformer.num_heads;
  const Tensor qkv = normal(*f.ops, {1, grid.grid.tokens(), 3 * dim}, 8);
  const Tensor ones = f.ops->to_device(
      [&] {
        Tensor t = Tensor::allocate(DType::kF32, {dim});
        std::fill_n(t.mutable_data<float>(), dim, 1.0F);
        return t;
      }(),
      DType::kF32);
  GroupPlace group_place{0, 0, 0, 1, {}};
  const int64_t blocks = grid.blocks();
  WindowCache window_cache{f.ops->empty(DType::kF32, {1, blocks, 128, dim}),
                           f.ops->empty(DType::kF32, {1, blocks, 128, dim}),
                           f.ops->empty(DType::kF32, {1, blocks, dim})};
  const WindowedQueries queries =
      f.ops->qkv_to_windows(qkv, ones, ones, 1e-6F, grid, heads, group_place, window_cache);
  const BlockMask mask = f.ops->select_blocks(queries, window_cache, grid, heads, group_place,
                                              {/*local_range=*/9, /*top_k=*/1000, 1});
  const Tensor sparse =
      f.ops->block_sparse_attention(queries, window_cache, mask, grid, heads, group_place);
  ChunkPlace place;
  place.ring_end = 2;
  place.visible_frames = 2;
  const Shape shape{1, grid.grid.tokens(), dim};
  KvCache cache{f.ops->empty(DType::kF32, shape), f.ops->empty(DType::kF32, shape)};
  const Tensor q = f.ops->qkv_to_cache(qkv, ones, ones, 1e-6F, grid.grid, heads, place, cache);
  const Tensor dense = f.ops->attention_cached(q, cache, heads, 256, place);
  EXPECT_LT(relative_error(sparse, dense), kSame);
}

TEST(SparseSrDitTest, BudgetOfThePublishedSizes) {
  const SparseSrDitConfig config;
  // Specification, section 3.9.
  EXPECT_EQ(config.top_k({{6, 60, 104}, {2, 8, 8}}), 2704);
  EXPECT_EQ(config.top_k({{6, 90, 156}, {2, 8, 8}}), 6400);
}

TEST(SparseSrDitTest, BatchEqualsSingles) {
  SrFixture f;
  const Tensor noise = normal(*f.ops, {2, 4, 18, 20, 16}, 2);
  const Tensor condition = normal(*f.ops, {2, 4, 18, 20, 16}, 3);
  const Tensor text =
      normal(*f.ops, {2, f.config.transformer.text_len, f.config.transformer.text_dim}, 4);
  const auto run = [&](const Tensor& n, const Tensor& c, const Tensor& t) {
    SparseSrState state = f.network.make_state(*f.ops, n.dim(0), 9, 10, 4, 3);
    f.text = f.network.transformer().text(*f.ops, t);
    return f.run(n, c, state, 3, nullptr);
  };
  const Tensor both = run(noise, condition, text);
  for (int64_t b = 0; b < 2; ++b) {
    EXPECT_LT(
        relative_error(part(*f.ops, both, 0, b, b + 1),
                       run(part(*f.ops, noise, 0, b, b + 1), part(*f.ops, condition, 0, b, b + 1),
                           part(*f.ops, text, 0, b, b + 1))),
        kSame);
  }
}

// --- UMT5
// ------------------------------------------------------------------------------------------

TEST(Umt5Test, PaddingDoesNotReachRealTokens) {
  const std::unique_ptr<Executor> ops = cpu_executor();
  Umt5Config config;
  config.vocab_size = 50;
  config.dim = 32;
  config.dim_attn = 32;
  config.dim_ffn = 48;
  config.num_heads = 4;
  config.num_layers = 2;
  const Umt5Encoder encoder = with_random_weights(
      *ops, 3, [&](Loader loader) { return Umt5Encoder::bind(std::move(loader), config); });
  const std::vector<int64_t> short_ids = {5, 6, 7, 1};
  std::vector<int64_t> padded = short_ids;
  padded.resize(12, 0);
  const auto run = [&](const std::vector<int64_t>& ids) {
    const std::vector<int64_t> length = {4};
    return encoder.run(*ops, Tensor::of<int64_t>(ids, {1, static_cast<int64_t>(ids.size())}),
                       Tensor::of<int64_t>(length, {1}));
  };
  const Tensor alone = run(short_ids);
  const Tensor with_padding = run(padded);
  EXPECT_LT(relative_error(part(*ops, with_padding, 1, 0, 4), alone), kSame);
  EXPECT_EQ(root_mean_square(part(*ops, with_padding, 1, 4, 12)), 0.0) << "padding rows must be 0";
}

TEST(Umt5Test, RelativePositionBuckets) {
  // Thresholds of the specification (T5, 32 buckets, distance 128).
  const auto bucket = [](int64_t relative) { return relative_position_bucket(relative, 32, 128); };
  for (int64_t d = 0; d < 8; ++d) EXPECT_EQ(bucket(-d), d);
  const std::vector<std::pair<int64_t, int64_t>> starts = {{8, 8},   {12, 9},  {16, 10}, {23, 11},
                                                           {32, 12}, {46, 13}, {64, 14}, {91, 15}};
  for (const auto& [distance, expected] : starts) {
    EXPECT_EQ(bucket(-distance), expected);
    EXPECT_EQ(bucket(-(distance - 1)), expected - 1);
    EXPECT_EQ(bucket(distance), expected + 16);
  }
  EXPECT_EQ(bucket(-100000), 15);
  EXPECT_EQ(bucket(100000), 31);
}

}  // namespace
}  // namespace ultraflash

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "recipes/random_weights.h"
#include "stream/tiny_recipe.h"
#include "support/files.h"
#include "ultraflash/engine.h"

namespace ultraflash {
namespace {

using testing::tiny_recipe;

EngineOptions cpu_options() {
  EngineOptions options;
  options.device = "cpu";
  options.threads = 2;
  return options;
}

Engine load(const std::string& patch = "{}", const EngineOptions& options = cpu_options()) {
  Result<Engine> engine = Engine::load(tiny_recipe(patch), options);
  if (!engine.ok()) throw std::runtime_error(engine.status().message());
  return *std::move(engine);
}

struct Video {
  std::vector<uint8_t> bytes;
  int64_t frames = 0;
  std::vector<int64_t> deliveries;
  Status outcome;
};

// Everything that is left of a stream of which `already` pictures were taken.
Video collect(Session& session, int64_t already = 0) {
  Video video;
  for (;;) {
    Result<Frames> frames = session.next();
    if (!frames.ok()) {
      video.outcome = frames.status();
      return video;
    }
    EXPECT_EQ(frames->first_frame, already + video.frames);
    const auto size = static_cast<size_t>(frames->count * frames->width * frames->height * 3);
    video.bytes.insert(video.bytes.end(), frames->rgb.get(), frames->rgb.get() + size);
    video.frames += frames->count;
    video.deliveries.push_back(frames->count);
  }
}

Video generate(const Engine& engine, const SessionOptions& options) {
  Result<Session> session = engine.start(options);
  if (!session.ok()) throw std::runtime_error(session.status().message());
  return collect(*session);
}

SessionOptions options_for(int64_t chunks, uint64_t seed = 0) {
  SessionOptions options;
  options.prompt = "a red circle moving right";
  options.chunks = chunks;
  options.seed = seed;
  return options;
}

TEST(SessionTest, DeliversGroupsAndATail) {
  const Engine engine = load();
  const Video video = generate(engine, options_for(5));
  EXPECT_EQ(video.outcome.code(), StatusCode::kEnd);
  // Groups of 2 chunks of 3 latent frames: 24 pictures less the 3 trimmed, 24, and the tail of 12.
  EXPECT_EQ(video.deliveries, (std::vector<int64_t>{21, 24, 12}));
  EXPECT_EQ(video.bytes.size(), static_cast<size_t>(57 * 128 * 96 * 3));
}

TEST(SessionTest, ReleasedTrimmingDropsTwice) {
  SessionOptions options = options_for(2);
  const Engine engine = load();
  const Video intended = generate(engine, options);
  options.trim = TrimRule::kReleased;
  const Video released = generate(engine, options);
  EXPECT_EQ(intended.frames, 21);
  EXPECT_EQ(released.frames, 18);
  // The same pictures otherwise.
  EXPECT_TRUE(std::equal(released.bytes.begin(), released.bytes.end(),
                         intended.bytes.begin() + 3 * 128 * 96 * 3));
}

TEST(SessionTest, FramesAreCutExactly) {
  const Engine engine = load();
  for (const int64_t frames : {1, 20, 21, 22, 33, 80}) {
    SessionOptions options = options_for(0);
    options.frames = frames;
    const Video video = generate(engine, options);
    EXPECT_EQ(video.frames, frames);
    EXPECT_EQ(video.outcome.code(), StatusCode::kEnd);
  }
}

TEST(SessionTest, SeedsDecideEverything) {
  const Engine engine = load();
  const Video a = generate(engine, options_for(4, 7));
  const Video b = generate(engine, options_for(4, 7));
  const Video c = generate(engine, options_for(4, 8));
  EXPECT_EQ(a.bytes, b.bytes);
  EXPECT_NE(a.bytes, c.bytes);
  SessionOptions other = options_for(4, 7);
  other.prompt = "a blue star";
  EXPECT_NE(a.bytes, generate(engine, other).bytes);
}

TEST(SessionTest, RestartEqualsANewSession) {
  const Engine engine = load();
  const Video fresh = generate(engine, options_for(4, 3));
  Result<Session> session = engine.start(options_for(3, 1));
  ASSERT_TRUE(session.ok());
  collect(*session);
  ASSERT_TRUE(session->restart(options_for(4, 3)).ok());
  EXPECT_EQ(collect(*session).bytes, fresh.bytes);
  // Also in the middle of a stream.
  ASSERT_TRUE(session->restart(options_for(0, 9)).ok());
  ASSERT_TRUE(session->next().ok());
  ASSERT_TRUE(session->restart(options_for(4, 3)).ok());
  EXPECT_EQ(collect(*session).bytes, fresh.bytes);
}

TEST(SessionTest, OptionsThatCannotBeMetLeaveTheStreamAlone) {
  const Engine engine = load();
  Result<Session> session = engine.start(options_for(4, 3));
  ASSERT_TRUE(session.ok());
  ASSERT_TRUE(session->next().ok());
  SessionOptions bad = options_for(-1);
  SessionOptions not_utf8 = options_for(1);
  not_utf8.prompt = "\xff\xfe";
  SessionOptions early_switch = options_for(2);
  early_switch.prompt_switches = {{0, "x"}};
  SessionOptions prefetch = options_for(2);
  prefetch.prefetch = 0;
  for (const SessionOptions& options : {not_utf8, early_switch, prefetch}) {
    EXPECT_EQ(session->restart(options).code(), StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(session->set_prompt("\xc3\x28").code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(session->next().ok()) << "a refused restart ended the running stream";
  EXPECT_EQ(session->restart(bad).code(), StatusCode::kInvalidArgument);
}

TEST(SessionTest, DrainDeliversWhatWasBegun) {
  const Engine engine = load();
  Result<Session> session = engine.start(options_for(0));
  ASSERT_TRUE(session.ok());
  const Result<Frames> first = session->next();
  ASSERT_TRUE(first.ok());
  session->drain();
  const Video rest = collect(*session, first->count);
  EXPECT_EQ(rest.outcome.code(), StatusCode::kEnd);
  EXPECT_LT(rest.deliveries.size(), 6U);
  EXPECT_EQ(session->next().status().code(), StatusCode::kEnd) << "the outcome must repeat";
}

TEST(SessionTest, CancelAnywhereLeavesAUsableSession) {
  const Engine engine = load();
  const Video whole = generate(engine, options_for(4, 3));
  Result<Session> session = engine.start(options_for(0));
  ASSERT_TRUE(session.ok());
  for (int i = 0; i < 30; ++i) {
    ASSERT_TRUE(session->restart(options_for(0, static_cast<uint64_t>(i))).ok());
    std::this_thread::sleep_for(std::chrono::microseconds(700 * i));
    session->cancel();
    EXPECT_EQ(session->next().status().code(), StatusCode::kCancelled);
    EXPECT_EQ(session->try_next().status().code(), StatusCode::kCancelled);
  }
  ASSERT_TRUE(session->restart(options_for(4, 3)).ok());
  EXPECT_EQ(collect(*session).bytes, whole.bytes);
}

TEST(SessionTest, TryNextIsBusyUntilSomethingIsReady) {
  const Engine engine = load();
  Result<Session> session = engine.start(options_for(2));
  ASSERT_TRUE(session.ok());
  int busy = 0;
  for (;;) {
    const Result<Frames> frames = session->try_next();
    if (frames.ok()) break;
    ASSERT_EQ(frames.status().code(), StatusCode::kBusy);
    ++busy;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_GT(busy, 0);
}

TEST(SessionTest, PromptSwitchChangesOnlyWhatComesAfter) {
  const Engine engine = load();
  const Video plain = generate(engine, options_for(6, 5));
  SessionOptions switched = options_for(6, 5);
  switched.prompt_switches = {{4, "a small yellow star"}};
  const Video later = generate(engine, switched);
  // Chunks 0 to 3 are two groups: 21 + 24 pictures.
  const auto same = static_cast<size_t>(45 * 128 * 96 * 3);
  EXPECT_TRUE(std::equal(plain.bytes.begin(), plain.bytes.begin() + static_cast<int64_t>(same),
                         later.bytes.begin()));
  EXPECT_FALSE(std::equal(plain.bytes.begin() + static_cast<int64_t>(same), plain.bytes.end(),
                          later.bytes.begin() + static_cast<int64_t>(same)));
  switched.switch_mode = SwitchMode::kRecache;
  const Video recached = generate(engine, switched);
  EXPECT_TRUE(std::equal(plain.bytes.begin(), plain.bytes.begin() + static_cast<int64_t>(same),
                         recached.bytes.begin()));
  EXPECT_NE(recached.bytes, later.bytes) << "recache had no effect";
}

TEST(SessionTest, RecacheWithTheSamePromptChangesNothingWhileAllFits) {
  const Engine engine = load();
  SessionOptions options = options_for(3, 5);  // 9 latent frames: the whole cache
  const Video plain = generate(engine, options);
  options.prompt_switches = {{2, options.prompt}};
  options.switch_mode = SwitchMode::kRecache;
  EXPECT_EQ(generate(engine, options).bytes, plain.bytes);
}

TEST(SessionTest, PromptsFromOutsideTakeEffect) {
  const Engine engine = load();
  SessionOptions options = options_for(0, 5);
  options.prefetch = 1;
  Result<Session> session = engine.start(options);
  ASSERT_TRUE(session.ok());
  ASSERT_TRUE(session->next().ok());
  ASSERT_TRUE(session->set_prompt("a green square").ok());
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(session->next().ok());
  const SessionStats stats = session->stats();
  ASSERT_FALSE(stats.stages.empty());
  EXPECT_EQ(stats.stages[0].name, "text");
  EXPECT_EQ(stats.stages[0].calls, 2);
}

TEST(SessionTest, StatisticsKeepContextPassesApart) {
  const Engine engine = load();
  Result<Session> session = engine.start(options_for(5));
  ASSERT_TRUE(session.ok());
  ASSERT_EQ(collect(*session).outcome.code(), StatusCode::kEnd);
  const SessionStats stats = session->stats();
  const auto stage = [&](const std::string& name) {
    for (const SessionStats::Stage& s : stats.stages) {
      if (s.name == name) return s;
    }
    return SessionStats::Stage{};
  };
  EXPECT_EQ(stage("generator").calls, 5);
  EXPECT_EQ(stage("context").calls, 4);  // the last chunk needs none
  EXPECT_EQ(stage("context").calls, stats.context_passes);
  for (const char* name : {"generator", "context"}) {
    EXPECT_GT(stage(name).recent_seconds, 0.0);
    EXPECT_LE(stage(name).recent_seconds, stage(name).seconds);
  }
}

TEST(SessionTest, CacheManagementSavesPasses) {
  const Engine engine = load();
  const auto stats_of = [&](const CacheManagement& dcm) {
    SessionOptions options = options_for(6);
    options.cache_management = dcm;
    Result<Session> session = engine.start(options);
    EXPECT_TRUE(session.ok());
    EXPECT_EQ(collect(*session).outcome.code(), StatusCode::kEnd);
    return session->stats();
  };
  const SessionStats plain = stats_of({});
  EXPECT_EQ(plain.denoising_passes, 24);
  EXPECT_EQ(plain.context_passes, 5) << "the last chunk needs none";
  CacheManagement fewer_steps;
  fewer_steps.steps_after_first_chunk = 3;
  EXPECT_EQ(stats_of(fewer_steps).denoising_passes, 4 + 5 * 3);
  CacheManagement never;
  never.never_refresh = true;
  EXPECT_EQ(stats_of(never).context_passes, 0);
  CacheManagement scored;
  std::atomic<int> asked = 0;
  scored.refresh_score = [&](const Picture& picture) -> std::optional<double> {
    EXPECT_EQ(picture.rgb.size(), static_cast<size_t>(picture.width * picture.height * 3));
    return asked++ % 2 == 0 ? std::optional<double>(0.9) : std::nullopt;
  };
  const SessionStats half = stats_of(scored);
  EXPECT_EQ(asked, 5) << "every chunk but the first is scored";
  EXPECT_EQ(half.skipped_context_passes, 3);
  CacheManagement shrinking;
  shrinking.adapt_sr_cache = true;
  shrinking.sr_warmup_groups = 1;
  EXPECT_EQ(stats_of(shrinking).frames, plain.frames);
  CacheManagement too_many;
  too_many.steps_after_first_chunk = 5;
  SessionOptions options = options_for(2);
  options.cache_management = too_many;
  EXPECT_EQ(engine.start(options).status().code(), StatusCode::kInvalidArgument);
}

TEST(SessionTest, IndependentFirstFrame) {
  const Engine engine = load(R"({"generator": {"independent_first_frame": true}})");
  const Video video = generate(engine, options_for(4));
  // 1 + 3 latent frames, then 6: 16 - 3 and 24 pictures.
  EXPECT_EQ(video.deliveries, (std::vector<int64_t>{13, 24}));
}

TEST(SessionTest, EveryScaleAndLowResolutionPictures) {
  for (const int64_t scale : {1, 2, 3}) {
    EngineOptions options = cpu_options();
    options.scale = scale;
    options.low_resolution = scale != 1;
    const Engine engine = load("{}", options);
    Result<Session> session = engine.start(options_for(2));
    ASSERT_TRUE(session.ok()) << session.status().message();
    int64_t frames = 0;
    for (Result<Frames> f = session->next(); f.ok(); f = session->next()) {
      EXPECT_EQ(f->width, 64 * scale);
      EXPECT_EQ(f->height, 48 * scale);
      if (scale != 1) {
        EXPECT_EQ(f->low_resolution_count, f->count);
        EXPECT_EQ(f->low_resolution_width, 64);
        EXPECT_EQ(f->low_resolution_picture(f->count - 1).size(), 64U * 48U * 3U);
      }
      frames += f->count;
    }
    EXPECT_EQ(frames, 21);
  }
}

TEST(SessionTest, ThousandChunksTakeNoMoreMemoryThanTwenty) {
  EngineOptions engine_options = cpu_options();
  engine_options.scale = 2;
  const Engine engine = load("{}", engine_options);
  SessionOptions options = options_for(1000);
  Result<Session> session = engine.start(options);
  ASSERT_TRUE(session.ok());
  int64_t deliveries = 0;
  SessionStats early;
  for (Result<Frames> f = session->next(); f.ok(); f = session->next()) {
    if (++deliveries == 10) early = session->stats();
  }
  EXPECT_EQ(deliveries, 500);
  const SessionStats late = session->stats();
  EXPECT_EQ(late.arena_requests, early.arena_requests) << "memory was asked of the system again";
  EXPECT_EQ(late.arena_reserved_bytes, early.arena_reserved_bytes);
}

TEST(SessionTest, MemoryLimitIsAClearError) {
  EngineOptions options = cpu_options();
  // Less than the caches: refused before anything is loaded, with what is needed.
  options.memory_limit_bytes = 200'000;
  const Result<Engine> refused = Engine::load(tiny_recipe("{}"), options);
  EXPECT_EQ(refused.status().code(), StatusCode::kOutOfMemory);
  EXPECT_NE(refused.status().message().find("--memory-limit allows"), std::string::npos);
  EXPECT_NE(refused.status().message().find("caches of the generator"), std::string::npos);
  // Less than what the arena takes at least beside them.
  options.memory_limit_bytes = 700'000;
  const Engine engine = load("{}", options);
  Result<Session> session = engine.start(options_for(2));
  const Status status = session.ok() ? session->next().status() : session.status();
  EXPECT_EQ(status.code(), StatusCode::kOutOfMemory);
  EXPECT_NE(status.message().find("700000"), std::string::npos);
}

TEST(SessionTest, SessionsOfOneEngineDoNotDisturbEachOther) {
  const Engine engine = load();
  const Video expected_a = generate(engine, options_for(4, 1));
  const Video expected_b = generate(engine, options_for(4, 2));
  Result<Session> a = engine.start(options_for(4, 1));
  Result<Session> b = engine.start(options_for(4, 2));
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(collect(*b).bytes, expected_b.bytes);
  EXPECT_EQ(collect(*a).bytes, expected_a.bytes);
}

TEST(SessionTest, PicturesOutliveTheSession) {
  Frames kept;
  {
    const Engine engine = load();
    Result<Session> session = engine.start(options_for(2));
    ASSERT_TRUE(session.ok());
    Result<Frames> frames = session->next();
    ASSERT_TRUE(frames.ok());
    kept = *std::move(frames);
  }
  uint64_t sum = 0;
  for (int64_t i = 0; i < kept.count; ++i) {
    for (const uint8_t byte : kept.picture(i)) sum += byte;
  }
  EXPECT_GT(sum, 0U);
}

TEST(EngineTest, ErrorsSayWhatToDo) {
  const auto message_of = [](const Recipe& recipe, const EngineOptions& options, StatusCode code) {
    const Result<Engine> engine = Engine::load(recipe, options);
    EXPECT_EQ(engine.status().code(), code) << engine.status().to_string();
    return engine.status().message();
  };
  EngineOptions options = cpu_options();
  options.scale = 5;
  EXPECT_NE(message_of(tiny_recipe(), options, StatusCode::kInvalidArgument).find("1, 2, 3"),
            std::string::npos);
  options = cpu_options();
  options.device = "gpu";
  EXPECT_NE(message_of(tiny_recipe(), options, StatusCode::kInvalidArgument).find("cuda"),
            std::string::npos);
  options.device = "cuda:99";
  message_of(tiny_recipe(), options, StatusCode::kUnsupported);
  options = cpu_options();
  options.dtype = "int4";
  message_of(tiny_recipe(), options, StatusCode::kInvalidArgument);
  options.dtype = "f16";
  message_of(tiny_recipe(), options, StatusCode::kUnsupported);
  options = cpu_options();
  options.weights_dir = "/nonexistent/weights";
  message_of(tiny_recipe(), options, StatusCode::kNotFound);
  options = cpu_options();
  const Result<Recipe> published = Recipe::find("self-forcing-480p");
  ASSERT_TRUE(published.ok());
  EXPECT_NE(message_of(*published, options, StatusCode::kNotFound).find("--weights"),
            std::string::npos);
  options.window_frames = 4;
  options.sink_frames = 3;
  EXPECT_NE(message_of(tiny_recipe(), options, StatusCode::kInvalidArgument).find("no room"),
            std::string::npos);
}

TEST(EngineTest, WhatCannotFitIsRefusedAtOnce) {
  // 1024 layers of width 32768: some 50 TB.
  const Result<Engine> weights = Engine::load(
      tiny_recipe(R"({"generator": {"network": {"dim": 32768, "num_heads": 256, "num_layers": 1024,
                      "ffn_dim": 131072}}})"),
      cpu_options());
  EXPECT_EQ(weights.status().code(), StatusCode::kOutOfMemory);
  EXPECT_NE(weights.status().message().find("GiB"), std::string::npos);
  // Small weights, but a cache of a million frames of 4096 x 4096 cells.
  const Engine engine = load(R"({"generator": {"latent_height": 4096, "latent_width": 4096,
                                 "cache_frames": 1000000}})");
  EXPECT_EQ(engine.start(options_for(1)).status().code(), StatusCode::kOutOfMemory);
}

TEST(EngineTest, GrowingCacheRefusesLongStreams) {
  const Engine engine =
      load(R"({"generator": {"cache_kind": "grow", "cache_frames": 9, "sink_frames": 0}})");
  EXPECT_TRUE(engine.start(options_for(3)).ok());
  const Status status = engine.start(options_for(4)).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("--window"), std::string::npos);
  EXPECT_EQ(engine.start(options_for(0)).status().code(), StatusCode::kInvalidArgument);
}

// Copies the shipped tokenizer next to written weights, where a weights folder must have it.
void copy_tokenizer(const std::filesystem::path& folder) {
  std::filesystem::copy_file(source_path("models/pocket/spiece.model"), folder / "spiece.model");
}

TEST(EngineTest, WrittenRandomWeightsAreTheRandomWeights) {
  const TempFolder folder;
  const Recipe recipe = tiny_recipe();
  RandomWeightsOptions weights;
  weights.seed = 4;
  weights.dtype = DType::kF32;
  const auto written = make_random_weights(recipe, folder.path(), weights, {});
  ASSERT_TRUE(written.ok()) << written.status().message();
  EXPECT_EQ(make_random_weights(recipe, folder.path(), weights, {}).status().code(),
            StatusCode::kInvalidArgument)
      << "existing files were overwritten";
  copy_tokenizer(folder.path());
  EngineOptions from_files = cpu_options();
  from_files.weights_dir = folder.path().string();
  EngineOptions random = cpu_options();
  random.random_weights = true;
  random.random_weights_seed = 4;
  const Video a = generate(load("{}", from_files), options_for(2));
  const Video b = generate(load("{}", random), options_for(2));
  EXPECT_EQ(a.bytes, b.bytes);
}

TEST(EngineTest, WeightsOfAnotherSizeAreNamed) {
  const TempFolder folder;
  RandomWeightsOptions weights;
  ASSERT_TRUE(make_random_weights(tiny_recipe(), folder.path(), weights, {}).ok());
  copy_tokenizer(folder.path());
  EngineOptions options = cpu_options();
  options.weights_dir = folder.path().string();
  const Result<Engine> engine =
      Engine::load(tiny_recipe(R"({"generator": {"network": {"ffn_dim": 96}}})"), options);
  EXPECT_EQ(engine.status().code(), StatusCode::kMalformed);
  EXPECT_NE(engine.status().message().find("ffn.0.weight"), std::string::npos)
      << engine.status().message();
}

TEST(EngineTest, TextEmbeddingsCanBeSavedAndRead) {
  const TempFolder folder;
  const Engine engine = load();
  const std::string file = (folder / "text.safetensors").string();
  ASSERT_TRUE(engine.save_text_embedding("a red circle moving right", file).ok());
  SessionOptions options = options_for(2);
  const Video encoded = generate(engine, options);
  options.prompt.clear();
  options.text_embedding_file = file;
  EXPECT_EQ(generate(engine, options).bytes, encoded.bytes);
  options.text_embedding_file = (folder / "missing.safetensors").string();
  EXPECT_EQ(engine.start(options).status().code(), StatusCode::kNotFound);
  std::ofstream(folder / "broken.safetensors") << "not a tensor file";
  options.text_embedding_file = (folder / "broken.safetensors").string();
  EXPECT_EQ(engine.start(options).status().code(), StatusCode::kMalformed);
}

}  // namespace
}  // namespace ultraflash

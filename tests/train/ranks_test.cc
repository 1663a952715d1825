// Several ranks, as processes on the CPU: the memory they share, and whole runs of the program.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "cli/program.h"
#include "tiny_training.h"
#include "train/parallel/rank_group.h"
#include "weights/checkpoint.h"

namespace ultraflash {
namespace {

using cli_test::Outcome;
using cli_test::ProgramRun;
using testing::TrainingFolder;

// --- the group itself --------------------------------------------------------------------------

// Runs `rank` in that many processes; true when each returned true.
template <typename Rank>
bool in_ranks(RankGroup& launcher, int64_t ranks, const Rank& rank) {
  std::vector<pid_t> processes;
  for (int64_t r = 0; r < ranks; ++r) {
    const pid_t process = fork();
    if (process == 0) {
      const std::string entry = launcher.environment_of(r);
      const size_t equals = entry.find('=');
      setenv(entry.substr(0, equals).c_str(), entry.c_str() + equals + 1, 1);
      const Result<std::shared_ptr<RankGroup>> group = RankGroup::from_environment();
      _exit(group.ok() && rank(**group) ? 0 : 1);
    }
    processes.push_back(process);
  }
  bool all = true;
  for (const pid_t process : processes) {
    int status = 0;
    waitpid(process, &status, 0);
    all = all && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  return all;
}

std::unique_ptr<RankGroup> make_group(int64_t ranks) {
  Result<std::unique_ptr<RankGroup>> group = RankGroup::create(ranks);
  EXPECT_TRUE(group.ok()) << group.status().message();
  return *std::move(group);
}

TEST(RankGroup, GathersSharesAndSums) {
  const std::unique_ptr<RankGroup> launcher = make_group(3);
  EXPECT_TRUE(in_ranks(*launcher, 3, [](RankGroup& group) {
    const auto rank = static_cast<double>(group.rank());
    for (int turn = 0; turn < 200; ++turn) {
      const std::vector<double> mine = {rank, 10.0 * rank + turn};
      const std::vector<double> all = group.gather(std::span<const double>(mine));
      if (all != std::vector<double>{0.0, 0.0 + turn, 1.0, 10.0 + turn, 2.0, 20.0 + turn}) {
        return false;
      }
    }
    std::array<char, 5> text{};
    if (group.leads()) std::memcpy(text.data(), "hello", 5);
    group.share(std::as_writable_bytes(std::span(text)));
    if (std::memcmp(text.data(), "hello", 5) != 0) return false;
    // Longer than a slot, by no round number. In the order of ranks: 1e8 + 1 - 1e8 is 0 in f32.
    std::vector<float> values(800'003);
    for (size_t i = 0; i < values.size(); ++i) {
      const float mine[] = {1e8F, static_cast<float>(i % 7 == 0), -1e8F};
      values[i] = mine[group.rank()];
    }
    group.sum(std::span(values));
    return std::all_of(values.begin(), values.end(), [](float v) { return v == 0.0F; });
  }));
}

TEST(RankGroup, NobodyWaitsForARankThatFailed) {
  const std::unique_ptr<RankGroup> launcher = make_group(2);
  EXPECT_TRUE(in_ranks(*launcher, 2, [](RankGroup& group) {
    if (group.rank() == 1) {
      group.fail({StatusCode::kDevice, "on fire"});
      return true;
    }
    try {
      group.meet();
    } catch (const Error& error) {
      return error.status().code() == StatusCode::kCancelled;
    }
    return false;
  }));
  const std::optional<RankGroup::Failure> failure = launcher->failure();
  ASSERT_TRUE(failure.has_value());
  EXPECT_EQ(failure->rank, 1);
  EXPECT_EQ(failure->status.message(), "on fire");
}

TEST(RankGroup, RefusesWhatIsNoGroup) {
  EXPECT_EQ(RankGroup::create(0).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(RankGroup::create(kMaxRanks + 1).status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(RankGroup::from_environment().ok());
  for (const char* value : {"", "0/2", "0/2/0", "2/2/7", "0/2/7/1", "-1/2/7", "0/9999999/3"}) {
    setenv("ULTRAFLASH_RANK", value, 1);
    EXPECT_EQ(RankGroup::from_environment().status().code(), StatusCode::kInvalidArgument) << value;
  }
  unsetenv("ULTRAFLASH_RANK");
}

// --- runs of the program -----------------------------------------------------------------------

constexpr const char* kSteady =
    R"("batch": 4, "seed": 5, "optimizer": {"lr": 1e-3, "eps": 1e-1, "warmup_steps": 0,
       "schedule": "constant"}, "critic_optimizer": {"schedule": "constant"})";

class RanksTest : public ::testing::Test {
 protected:
  RanksTest() : folder_(::testing::UnitTest::GetInstance()->current_test_info()->name()) {}

  // Arguments of a run of `stage`; `more` is the rest of its config.
  std::vector<std::string> train(const std::string& stage, const std::string& out, int64_t ranks,
                                 const std::vector<std::string>& options,
                                 const std::string& more = kSteady) const {
    const TrainOptions written = folder_.stage(stage, out, more);
    std::vector<std::string> all = {"train",   written.config.string(),
                                    "--out",   written.out.string(),
                                    "--ranks", std::to_string(ranks)};
    all.insert(all.end(), options.begin(), options.end());
    return all;
  }
  static Outcome run(const std::vector<std::string>& arguments) {
    ProgramRun what;
    what.arguments = arguments;
    what.environment["OMP_NUM_THREADS"] = "1";
    return cli_test::run(what);
  }
  [[nodiscard]] Checkpoint state(const std::string& out) const {
    for (const auto& entry : std::filesystem::directory_iterator(folder_ / out)) {
      if (!entry.path().filename().string().starts_with("checkpoint-")) continue;
      CheckpointOptions options;
      options.clean_names = false;
      Result<Checkpoint> checkpoint = Checkpoint::open(entry.path(), options);
      if (checkpoint.ok()) return *std::move(checkpoint);
      ADD_FAILURE() << checkpoint.status().message();
    }
    throw std::runtime_error("no checkpoint in " + out);
  }
  // The largest difference of any value of two checkpoints; -1 when bits are the same.
  [[nodiscard]] double difference(const std::string& a, const std::string& b) const {
    const Checkpoint first = state(a);
    const Checkpoint second = state(b);
    double worst = -1.0;
    EXPECT_GT(first.entries().size(), 10U);
    for (const TensorEntry& entry : first.entries()) {
      if (entry.name == "counters") continue;  // has the seconds
      const TensorEntry* const other = second.find(entry.name);
      if (other == nullptr || other->bytes.size() != entry.bytes.size()) {
        ADD_FAILURE() << entry.name;
        continue;
      }
      if (std::equal(entry.bytes.begin(), entry.bytes.end(), other->bytes.begin())) continue;
      for (size_t i = 0; i + 4 <= entry.bytes.size(); i += 4) {
        float x = 0.0F;
        float y = 0.0F;
        std::memcpy(&x, entry.bytes.data() + i, 4);
        std::memcpy(&y, other->bytes.data() + i, 4);
        worst = std::max(worst, std::abs(static_cast<double>(x) - static_cast<double>(y)));
      }
    }
    return worst;
  }

  TrainingFolder folder_;
};

// The clips of a step are the same ones, and neither loss nor data has noise of its own.
TEST_F(RanksTest, TwoWithHalfTheBatchEachAreOneWithAll) {
  const std::string plain = std::string(kSteady) + R"(, "steps": 5)";
  const std::vector<std::string> quiet = {"--set", "autoencoder.latent_noise=0", "--set",
                                          "autoencoder.latent_kl=0"};
  std::vector<std::string> halves = quiet;
  halves.insert(halves.end(), {"--set", "batch=2"});
  const Outcome one = run(train("autoencoder", "one", 1, quiet, plain));
  ASSERT_EQ(one.status, 0) << one.err;
  const Outcome two = run(train("autoencoder", "two", 2, halves, plain));
  ASSERT_EQ(two.status, 0) << two.err;
  EXPECT_NE(two.out.find("finished after 5 steps"), std::string::npos) << two.out;
  EXPECT_LT(difference("one", "two"), 1e-6);
  // And the test can tell: with half the clips, weights are elsewhere.
  ASSERT_EQ(run(train("autoencoder", "half", 1, halves, plain)).status, 0);
  EXPECT_GT(difference("one", "half"), 1e-5);
}

TEST_F(RanksTest, ResumeIsExact) {
  for (const char* stage : {"flow_matching", "self_forcing"}) {
    SCOPED_TRACE(stage);
    const std::string whole = std::string("whole_") + stage;
    const std::string parts = std::string("parts_") + stage;
    const Outcome first = run(train(stage, whole, 2, {"--steps", "4"}));
    ASSERT_EQ(first.status, 0) << first.err;
    ASSERT_EQ(run(train(stage, parts, 2, {"--steps", "2"})).status, 0);
    const Outcome second = run(train(stage, parts, 2, {"--steps", "4", "--resume"}));
    ASSERT_EQ(second.status, 0) << second.err;
    EXPECT_NE(second.out.find("finished after 4 steps"), std::string::npos) << second.out;
    EXPECT_EQ(difference(whole, parts), -1.0);
    // Every rank has drawn other clips and noise than rank 0 alone would.
    ASSERT_EQ(run(train(stage, "alone", 1, {"--steps", "4"})).status, 0);
    EXPECT_GT(difference(whole, "alone"), 0.0);
    std::filesystem::remove_all(folder_ / "alone");
  }
  std::vector<std::string> alone =
      train("flow_matching", "parts_flow_matching", 1, {"--steps", "5", "--resume"});
  alone.insert(alone.begin(), "-v");
  const Outcome outcome = run(alone);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("was trained by 2 ranks and goes on with 1"), std::string::npos)
      << outcome.err;
}

// Lines of the log that have `key`, with only the fields whose value cannot depend on the clock.
std::vector<nlohmann::json> logged(const std::filesystem::path& folder, const std::string& key) {
  std::vector<nlohmann::json> lines;
  std::ifstream file(folder / "log.jsonl");
  for (std::string line; std::getline(file, line);) {
    nlohmann::json json = nlohmann::json::parse(line);
    if (!json.contains(key)) continue;
    json.erase("seconds");
    json.erase("measure_seconds");
    lines.push_back(std::move(json));
  }
  return lines;
}

// The clips that are measured and their noise do not depend on who draws them.
TEST_F(RanksTest, MeasuringIsSharedAndFindsTheSame) {
  std::string recipe = cli_test::read_file((folder_ / "recipe.json").string());
  const std::string small = R"("latent_height": 6, "latent_width": 8)";
  ASSERT_NE(recipe.find(small), std::string::npos);
  recipe.replace(recipe.find(small), small.size(), R"("latent_height": 12, "latent_width": 20)");
  const std::string wide = folder_.write("wide.json", recipe).string();
  for (const char* stage : {"flow_matching", "causal", "ode", "self_forcing"}) {
    SCOPED_TRACE(stage);
    const std::vector<std::string> options = {"--steps", "1",
                                              "--set",   "recipe=" + wide,
                                              "--set",   "optimizer.lr=0",
                                              "--set",   "evaluate.captions=3",
                                              "--set",   "evaluate.batch=2",
                                              "--set",   "flow.sample_steps=2",
                                              "--set",   "batch=1"};
    const Outcome one = run(train(stage, "one", 1, options));
    ASSERT_EQ(one.status, 0) << one.err;
    const Outcome two = run(train(stage, "two", 2, options));
    ASSERT_EQ(two.status, 0) << two.err;
    const std::vector<nlohmann::json> lines = logged(folder_ / "one", "background");
    ASSERT_EQ(lines.size(), 1U);
    EXPECT_TRUE(lines[0].contains("colour") && lines[0].contains("whole_clip")) << lines[0];
    EXPECT_EQ(lines, logged(folder_ / "two", "background"));
    std::filesystem::remove_all(folder_ / "one");
    std::filesystem::remove_all(folder_ / "two");
  }
}

// Processes whose parent is `parent`.
std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> children;
  std::ifstream file("/proc/" + std::to_string(parent) + "/task/" + std::to_string(parent) +
                     "/children");
  for (pid_t child = 0; file >> child;) children.push_back(child);
  return children;
}

bool runs(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/stat");
  std::string text;
  std::getline(file, text);
  const size_t end = text.rfind(')');
  return end != std::string::npos && text[end + 2] != 'Z';
}

// Waits a while for processes that must end.
bool all_end(const std::vector<pid_t>& processes) {
  for (int i = 0; i < 200; ++i) {
    if (std::none_of(processes.begin(), processes.end(), runs)) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return false;
}

class EndlessRanks : public RanksTest {
 protected:
  // Trains without end, calls `then` once with the program and its ranks when steps are done.
  template <typename Then>
  Outcome run_until_steps(const Then& then) {
    ProgramRun what;
    what.arguments = train("autoencoder", "out", 2, {"--steps", "1000000"});
    what.environment["OMP_NUM_THREADS"] = "1";
    what.meanwhile = [&, done = false](pid_t program, const std::string&, int) mutable {
      if (done || !std::filesystem::exists(folder_ / "out/log.jsonl") ||
          std::filesystem::file_size(folder_ / "out/log.jsonl") < 4000) {
        return;
      }
      done = true;
      ranks_ = children_of(program);
      then(program, ranks_);
    };
    return cli_test::run(what);
  }
  std::vector<pid_t> ranks_;
};

TEST_F(EndlessRanks, ASignalEndsThemAfterTheSameStep) {
  const Outcome outcome =
      run_until_steps([](pid_t program, const std::vector<pid_t>&) { kill(program, SIGINT); });
  EXPECT_FALSE(outcome.timed_out);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("stopped after"), std::string::npos) << outcome.out << outcome.err;
  EXPECT_EQ(ranks_.size(), 2U);
  EXPECT_TRUE(all_end(ranks_));
  (void)state("out");
}

TEST_F(EndlessRanks, ADyingRankEndsTheRunInOneSentence) {
  const Outcome outcome =
      run_until_steps([](pid_t, const std::vector<pid_t>& ranks) { kill(ranks.at(1), SIGKILL); });
  EXPECT_FALSE(outcome.timed_out);
  EXPECT_EQ(outcome.status, status_code_info(StatusCode::kDevice).exit_status) << outcome.err;
  EXPECT_NE(outcome.err.find("rank 1 of 2 was ended by signal 9 (Killed); the other ranks were "
                             "stopped"),
            std::string::npos)
      << outcome.err;
  EXPECT_EQ(outcome.err.find("another rank has failed"), std::string::npos) << outcome.err;
  EXPECT_TRUE(all_end(ranks_));
}

TEST_F(EndlessRanks, NoneOutlivesTheProgram) {
  const Outcome outcome =
      run_until_steps([](pid_t program, const std::vector<pid_t>&) { kill(program, SIGKILL); });
  EXPECT_EQ(outcome.status, 256 + SIGKILL);
  EXPECT_EQ(ranks_.size(), 2U);
  EXPECT_TRUE(all_end(ranks_));
}

TEST_F(RanksTest, AFailureIsOneSentence) {
  const Outcome missing = run(
      train("flow_matching", "out", 2, {}, R"("init": {"autoencoder": "/nonexistent/folder"})"));
  EXPECT_EQ(missing.status, status_code_info(StatusCode::kNotFound).exit_status) << missing.err;
  EXPECT_NE(missing.err.find("of 2 failed: "), std::string::npos) << missing.err;
  EXPECT_EQ(std::count(missing.err.begin(), missing.err.end(), '\n'), 1) << missing.err;
  EXPECT_EQ(missing.out, "");
  const Outcome many = run(train("flow_matching", "out", 1000, {}));
  EXPECT_EQ(many.status, status_code_info(StatusCode::kInvalidArgument).exit_status) << many.err;
}

TEST_F(RanksTest, CheckParallelSumsAndMeasures) {
  const Outcome outcome = run({"train", "--check-parallel", "3", "--device", "cpu"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("3 ranks through shared memory"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("16777216"), std::string::npos) << outcome.out;
}

}  // namespace
}  // namespace ultraflash

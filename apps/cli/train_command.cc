// ultraflash train: runs one stage of training from its config.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "common.h"
#include "exit_status.h"
#include "interrupt.h"
#include "train/parallel/check_parallel.h"
#include "train/parallel/launcher.h"
#include "train/parallel/rank_group.h"
#include "train/train.h"

namespace ultraflash::cli {
namespace {

struct TrainSettings {
  std::string config;
  std::string out;
  std::string device;
  int64_t gpus = 0;
  int64_t ranks = 0;
  int64_t check_parallel = 0;
  bool resume = false;
  bool show = false;
  bool random_weights = false;
  bool trial = false;
  std::string write_embeddings;
  bool degradations = false;
  int64_t prepare = 0;
  bool calibrate = false;
  int64_t steps = -1;
  double minutes = 0.0;
  std::vector<std::string> set;
};

// Several ranks: this process starts and watches them. The one line it may print is about the rank
// that failed.
int launch(int64_t ranks) {
  const LaunchOutcome outcome = launch_ranks(ranks);
  if (outcome.stopped_at_once) return static_cast<int>(ExitStatus::kStoppedAtOnce);
  return outcome.status.ok() ? 0 : fail(outcome.status);
}

// A rank leaves its failure to the launcher.
int fail_as_rank(const Status& status) {
  return RankGroup::in_environment() ? status_code_info(status.code()).exit_status : fail(status);
}

int run_check(const TrainSettings& settings, const std::string& device) {
  if (!RankGroup::in_environment()) return launch(settings.check_parallel);
  const Result<std::string> report = check_parallel(device);
  if (!report.ok()) return fail_as_rank(report.status());
  fmt::print("{}", *report);
  return 0;
}

int run_train(const TrainSettings& settings) {
  // Who asks for GPUs trains on them.
  std::string device = settings.device;
  if (device.empty()) {
    device = settings.gpus > 0 || settings.check_parallel > 0 ? "cuda" : "cpu";
  }
  if (settings.check_parallel > 0) return run_check(settings, device);
  if (settings.config.empty()) {
    return fail({StatusCode::kInvalidArgument, "no config given; see 'ultraflash train --help'"});
  }
  TrainOptions options;
  options.config = settings.config;
  options.out = settings.out.empty() ? std::filesystem::path("out/train") / options.config.stem()
                                     : std::filesystem::path(settings.out);
  options.resume = settings.resume;
  options.device = device;
  options.ranks = std::max(settings.gpus, settings.ranks);
  options.steps = settings.steps;
  options.minutes = settings.minutes;
  options.set = settings.set;
  options.random_weights = settings.random_weights;
  options.trial = settings.trial;
  options.write_embeddings = settings.write_embeddings;
  options.degradations = settings.degradations;
  options.prepare = settings.prepare;
  options.calibrate = settings.calibrate;
  options.log = stderr_logger();
  if (settings.show) {
    const Result<std::string> text = describe_training(options);
    if (!text.ok()) return fail(text.status());
    fmt::print("{}\n", *text);
    return 0;
  }
  const Result<int64_t> ranks = training_ranks(options);
  if (!ranks.ok()) return fail(ranks.status());
  if (*ranks > 1 && !RankGroup::in_environment()) return launch(*ranks);
  std::atomic<bool> stop{false};
  const InterruptGuard guard("finishing the step and writing a checkpoint", [&] { stop = true; });
  options.interrupted = [&] { return stop.load(); };
  ProgressLine line;
  options.progress = [&](const TrainProgress& p) {
    double fraction =
        p.steps > 0 ? static_cast<double>(p.step) / static_cast<double>(p.steps) : -1.0;
    if (p.limit_seconds > 0.0) fraction = std::max(fraction, p.seconds / p.limit_seconds);
    line.update(std::min(fraction, 1.0),
                fmt::format("step {}  {:.0f} s  {:.1f} ms a step  {}", p.step, p.seconds,
                            1e3 * p.step_seconds, p.text));
    return true;
  };
  const Result<TrainSummary> summary = run_training(options);
  line.finish();
  if (!summary.ok()) return fail_as_rank(summary.status());
  if (summary->checkpoint.empty()) return 0;  // not rank 0
  fmt::print("{} after {} steps\n", summary->finished ? "finished" : "stopped", summary->step);
  for (const std::filesystem::path& path : summary->weights) fmt::print("  {}\n", path.string());
  fmt::print("  {}\n", summary->checkpoint.string());
  return 0;
}

}  // namespace

void add_train(CLI::App& app, Command& chosen) {
  auto settings = std::make_shared<TrainSettings>();
  CLI::App* command = app.add_subcommand("train", "Train a network: one stage of one config");
  command->add_option("config", settings->config, "JSON file, such as models/*/train/*.json");
  command->add_option("-o,--out", settings->out,
                      "Folder of checkpoints, log and weights (default: out/train/<config>)");
  command->add_flag("--resume", settings->resume, "Go on from the newest checkpoint in the folder");
  command->add_option("--device", settings->device,
                      "cpu, cuda or cuda:N (default: cpu, and cuda with --gpus)");
  CLI::Option* const gpus = command->add_option(
      "--gpus", settings->gpus,
      "GPUs of this machine that train together, instead of the config's: a process each, "
      "gradients averaged over all");
  command->add_option("--ranks", settings->ranks, "As --gpus, without choosing the device")
      ->excludes(gpus);
  command->add_option("--check-parallel", settings->check_parallel,
                      "Only sum over that many GPUs, check the sums and print the bandwidth");
  command->add_option("--steps", settings->steps,
                      "Steps of the whole run, instead of the config's");
  command->add_option("--minutes,--pause-after", settings->minutes,
                      "Minutes after which this command writes a checkpoint and ends; go on with "
                      "--resume. The whole run's are the config's (--set minutes=30)");
  command->add_option("--set", settings->set, "Another value of one field: optimizer.lr=1e-3");
  command->add_flag("--random-weights", settings->random_weights,
                    "Read nothing: random networks and text embeddings, noise for clips");
  command->add_flag(
      "--trial", settings->trial,
      "Write the log alone, no checkpoint, weights or pictures: for speed and memory");
  command->add_option("--write-embeddings", settings->write_embeddings,
                      "Write the text embeddings of all captions to this file, for "
                      "init.text_embeddings, and stop");
  command->add_flag(
      "--degradations", settings->degradations,
      "Write a sheet of every degradation of the config's clips to the output folder, "
      "and stop");
  command->add_option(
      "--prepare", settings->prepare,
      "Write that many of the config's clips to the output folder, large and small and damaged, "
      "for data.source, and stop");
  command->add_flag("--calibrate", settings->calibrate,
                    "Measure what dynamic cache management may skip with the networks of a "
                    "preference config, write it to the output folder, and stop");
  command->add_flag("--show", settings->show, "Print the config as it would run, and stop");
  command->callback([settings, &chosen] { chosen = [settings] { return run_train(*settings); }; });
}

}  // namespace ultraflash::cli

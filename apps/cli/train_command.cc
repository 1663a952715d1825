// ultraflash train: runs one stage of training from its config.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "common.h"
#include "interrupt.h"
#include "train/train.h"

namespace ultraflash::cli {
namespace {

struct TrainSettings {
  std::string config;
  std::string out;
  std::string device = "cpu";
  bool resume = false;
  bool show = false;
  int64_t steps = -1;
  double minutes = -1.0;
  double pause_after = 0.0;
  std::vector<std::string> set;
};

int run_train(const TrainSettings& settings) {
  TrainOptions options;
  options.config = settings.config;
  options.out = settings.out.empty() ? std::filesystem::path("out/train") / options.config.stem()
                                     : std::filesystem::path(settings.out);
  options.resume = settings.resume;
  options.device = settings.device;
  options.steps = settings.steps;
  options.minutes = settings.minutes;
  options.pause_after = settings.pause_after;
  options.set = settings.set;
  options.log = stderr_logger();
  if (settings.show) {
    const Result<std::string> text = describe_training(options);
    if (!text.ok()) return fail(text.status());
    fmt::print("{}\n", *text);
    return 0;
  }
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
  if (!summary.ok()) return fail(summary.status());
  fmt::print("{} after {} steps\n", summary->finished ? "finished" : "stopped", summary->step);
  for (const std::filesystem::path& path : summary->weights) fmt::print("  {}\n", path.string());
  fmt::print("  {}\n", summary->checkpoint.string());
  return 0;
}

}  // namespace

void add_train(CLI::App& app, Command& chosen) {
  auto settings = std::make_shared<TrainSettings>();
  CLI::App* command = app.add_subcommand("train", "Train a network: one stage of one config");
  command->add_option("config", settings->config, "JSON file, such as models/*/train/*.json")
      ->required();
  command->add_option("-o,--out", settings->out,
                      "Folder of checkpoints, log and weights (default: out/train/<config>)");
  command->add_flag("--resume", settings->resume, "Go on from the newest checkpoint in the folder");
  command->add_option("--device", settings->device, "cpu, cuda or cuda:N")->capture_default_str();
  command->add_option("--steps", settings->steps,
                      "Steps of the whole run, instead of the config's");
  command->add_option("--minutes", settings->minutes,
                      "Time limit of the whole run, instead of the config's; 0: none");
  command->add_option("--pause-after", settings->pause_after,
                      "Minutes after which this command writes a checkpoint and ends; go on with "
                      "--resume");
  command->add_option("--set", settings->set, "Another value of one field: optimizer.lr=1e-3");
  command->add_flag("--show", settings->show, "Print the config as it would run, and stop");
  command->callback([settings, &chosen] { chosen = [settings] { return run_train(*settings); }; });
}

}  // namespace ultraflash::cli

// ultraflash verify: golden files replayed on an executor.
#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common.h"
#include "exit_status.h"
#include "ops/devices.h"
#include "options.h"
#include "settings.h"
#include "verify/verify.h"

namespace ultraflash::cli {
namespace {

struct VerifySettings {
  std::vector<std::string> files;
  std::string device = "auto";
  std::string dtype = "f32";
  bool inject_masks = false;
  double tolerance = -1.0;
  int threads = 0;
  bool json = false;
};

nlohmann::ordered_json number_or_null(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}

nlohmann::ordered_json to_json(const VerifyReport& report) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const VerifyRow& row : report.rows) {
    rows.push_back({{"output", row.output},
                    {"measure", row.measure},
                    {"value", number_or_null(row.value)},
                    {"limit", row.limit},
                    {"largest_difference", number_or_null(row.largest_difference)},
                    {"worst_index", row.worst_index},
                    {"ok", row.ok}});
  }
  return {{"file", report.file}, {"module", report.module}, {"ok", report.ok()}, {"outputs", rows}};
}

void print(const VerifyReport& report) {
  fmt::print("{} ({})\n", report.file, report.module);
  for (const VerifyRow& row : report.rows) {
    fmt::print("  {} {:<26} {:<16} {:.3g} (limit {:.3g})", row.ok ? "ok  " : "FAIL", row.output,
               row.measure, row.value, row.limit);
    if (!row.ok) {
      fmt::print(", largest difference {:.3g} at {}", row.largest_difference, row.worst_index);
    }
    fmt::print("\n");
  }
}

int run_verify(const VerifySettings& settings) {
  ExecutorOptions executor_options;
  executor_options.device = settings.device;
  executor_options.threads = settings.threads;
  const Result<std::unique_ptr<Executor>> executor = make_executor(executor_options);
  if (!executor.ok()) return fail(executor.status());
  VerifyOptions options;
  options.dtype = settings.dtype == "bf16" ? DType::kBF16 : DType::kF32;
  options.inject_masks = settings.inject_masks;
  if (settings.tolerance >= 0.0) options.tolerance = settings.tolerance;

  nlohmann::ordered_json reports = nlohmann::ordered_json::array();
  int64_t passed = 0;
  int64_t failed = 0;
  int error_status = 0;
  for (const std::string& file : settings.files) {
    const Result<VerifyReport> report = verify_file(file, **executor, options);
    if (!report.ok()) {
      error_status = fail(report.status());
      reports.push_back({{"file", file}, {"ok", false}, {"error", report.status().message()}});
      ++failed;
      continue;
    }
    report->ok() ? ++passed : ++failed;
    if (settings.json) {
      reports.push_back(to_json(*report));
    } else {
      print(*report);
    }
  }
  if (settings.json) {
    fmt::print("{}\n", dump_json({{"device", (*executor)->description()},
                                  {"dtype", settings.dtype},
                                  {"files", reports}},
                                 2));
  } else {
    fmt::print("{}, {}: {} of {} files agree\n", (*executor)->description(), settings.dtype, passed,
               passed + failed);
  }
  if (error_status != 0) return error_status;
  return failed == 0 ? 0 : static_cast<int>(ExitStatus::kAnswerIsNo);
}

}  // namespace

void add_verify(CLI::App& app, Command& chosen) {
  auto settings = std::make_shared<VerifySettings>();
  CLI::App* command =
      app.add_subcommand("verify", "Replay recorded outputs of the reference networks");
  command->add_option("files", settings->files, "Golden files (docs/formats.md)")
      ->option_text("FILE...")
      ->required();
  add_text(*command, "--device", settings->device, "NAME",
           "Where to compute: auto, cpu, cuda or cuda:N");
  add_choice(*command, "--dtype", settings->dtype, {"f32", "bf16"}, "Type to compute in");
  command->add_flag("--inject-masks", settings->inject_masks,
                    "Use the recorded block masks instead of choosing them");
  add_number(*command, "--tolerance", settings->tolerance, 0.0, 1e9,
             "Largest relative error that passes", {"1e-4 in f32, 3e-2 in bf16"});
  add_integer(*command, "--threads", settings->threads, 0, 1024, "CPU threads; 0: all");
  command->add_flag("--json", settings->json, "Print JSON");
  command->callback([settings, &chosen] { chosen = [settings] { return run_verify(*settings); }; });
}

}  // namespace ultraflash::cli

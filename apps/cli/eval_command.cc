// ultraflash eval: measures videos of the pocket world against their captions.
#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "common.h"
#include "media/image.h"
#include "options.h"
#include "train/eval/comparison.h"
#include "train/eval/evaluate.h"

namespace ultraflash::cli {
namespace {

constexpr int64_t kSheetClips = 24;

struct EvalSettings {
  world::EvalOptions options;
  std::vector<std::string> at;
  bool json = false;
  std::string sheet;
  int64_t sheet_clips = 0;
  std::vector<std::string> beside;
  int64_t make = 0;
  uint64_t seed = 1;
  std::string split = "held-out";
  int64_t render = 0;
  double render_seconds = 5.25;
};

int make_set(const EvalSettings& settings) {
  world::EvalSetOptions options;
  options.folder = settings.options.folder;
  options.count = settings.make;
  options.seed = settings.seed;
  options.split = settings.split == "training" ? world::Split::kTraining : world::Split::kHeldOut;
  options.render_scale = settings.render;
  options.frames =
      static_cast<int64_t>(settings.render_seconds * static_cast<double>(world::kFramesPerSecond));
  const Status written = world::write_eval_set(options);
  return written.ok() ? 0 : fail(written);
}

// One moment of several folders, in place of measuring.
int compare(const EvalSettings& settings) {
  if (settings.sheet.empty()) {
    return fail({StatusCode::kInvalidArgument, "--beside needs --sheet FILE to draw on"});
  }
  world::ComparisonOptions options;
  options.folders = settings.beside;
  options.folders.insert(options.folders.begin(), settings.options.folder);
  if (settings.sheet_clips > 0) options.clips = settings.sheet_clips;
  if (!settings.at.empty()) options.at = settings.options.at.front();
  const Result<RgbImage> sheet = world::comparison_sheet(options);
  if (!sheet.ok()) return fail(sheet.status());
  const Status written = write_png(settings.sheet, sheet->view(), kSmallPng);
  return written.ok() ? 0 : fail(written);
}

int run_eval(EvalSettings& settings) {
  if (settings.make > 0) return make_set(settings);
  world::EvalOptions& options = settings.options;
  if (!settings.at.empty()) options.at.clear();
  for (const std::string& text : settings.at) {
    const std::optional<double> seconds = parse_number(text);
    if (!seconds || *seconds < 0.0 || *seconds > 86400.0) {
      return fail(
          {StatusCode::kInvalidArgument,
           fmt::format("--at: '{}' is no number of seconds from 0 to 86400", text.substr(0, 60))});
    }
    options.at.push_back(*seconds);
  }
  if (!settings.beside.empty()) return compare(settings);
  options.sheet_frames = !settings.sheet.empty();
  ProgressLine progress;
  options.progress = [&progress](int64_t done, int64_t all) {
    progress.update(static_cast<double>(done) / static_cast<double>(all),
                    fmt::format("{} of {} clips", done, all));
  };
  const Result<world::EvalReport> report = world::evaluate(options);
  progress.finish();
  if (!report.ok()) return fail(report.status());
  // Before the sheet, so that a sheet that cannot be written costs no measurements.
  fmt::print("{}{}", settings.json ? world::report_json(*report) : world::report_table(*report),
             settings.json ? "\n" : "");
  if (settings.sheet.empty()) return 0;
  const Result<RgbImage> sheet =
      world::report_sheet(*report, settings.sheet_clips > 0 ? settings.sheet_clips : kSheetClips);
  if (!sheet.ok()) return fail(sheet.status());
  const Status written = write_png(settings.sheet, sheet->view(), kSmallPng);
  return written.ok() ? 0 : fail(written);
}

}  // namespace

void add_eval(CLI::App& app, Command& chosen) {
  auto settings = std::make_shared<EvalSettings>();
  CLI::App* command =
      app.add_subcommand("eval", "Measure videos of the pocket world against their captions");
  command
      ->add_option("folder", settings->options.folder,
                   "Folder with captions.jsonl and the videos it names")
      ->option_text("FOLDER")
      ->required();
  command->add_option("--at", settings->at, "Seconds at which to measure, each a table")
      ->option_text("SECONDS... [0]");
  add_number(*command, "--seconds", settings->options.seconds, 0.5, 600.0,
             "Length of what is measured");
  command->add_flag("--json", settings->json, "Print JSON");
  add_text(*command, "--sheet", settings->sheet, "FILE",
           "Write a contact sheet (PNG); clips with something wrong come first");
  add_integer<int64_t>(*command, "--sheet-clips", settings->sheet_clips, 1, 80,
                       "Clips on the contact sheet", {"24; 12 with --beside"});
  command
      ->add_option("--beside", settings->beside,
                   "With --sheet: instead of measuring, draw one moment of FOLDER and of these, "
                   "each a column (may be repeated)")
      ->option_text("FOLDER")
      ->allow_extra_args(false);
  add_integer(*command, "--threads", settings->options.threads, 0, 1024, "CPU threads; 0: all");
  add_integer<int64_t>(*command, "--make", settings->make, 0, 100'000,
                       "Write a captions.jsonl of so many new captions instead");
  add_integer<uint64_t>(*command, "--seed", settings->seed, 0, uint64_t{1} << 62,
                        "With --make: which captions");
  add_choice(*command, "--split", settings->split, {"held-out", "training"},
             "With --make: captions of objects that no training clip has, or of training clips");
  add_integer<int64_t>(*command, "--render", settings->render, 0, 3,
                       "With --make: also render the videos, 1: 160x96, 2: 320x192, 3: 480x288");
  add_number(*command, "--render-seconds", settings->render_seconds, 1.0, 3600.0,
             "With --render: length of the videos");
  command->callback([settings, &chosen] { chosen = [settings] { return run_eval(*settings); }; });
}

}  // namespace ultraflash::cli

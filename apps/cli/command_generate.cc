// ultraflash generate: a prompt becomes a video file.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common.h"
#include "generate_settings.h"
#include "interrupt.h"
#include "ultraflash/engine.h"
#include "ultraflash/recipe.h"
#include "video_writer.h"

namespace ultraflash::cli {
namespace {

nlohmann::ordered_json to_json(const Written& w, const EngineInfo& info,
                               const SessionStats& stats) {
  const auto frames = static_cast<double>(w.frames);
  nlohmann::ordered_json json;
  json["file"] = w.path;
  if (!w.low_resolution_path.empty()) json["low_resolution_file"] = w.low_resolution_path;
  json["container"] = w.sink;
  json["frames"] = w.frames;
  json["width"] = w.width;
  json["height"] = w.height;
  json["frames_per_second"] = info.frames_per_second;
  json["seconds_of_video"] = frames / static_cast<double>(info.frames_per_second);
  json["seconds_to_make"] = w.seconds;
  json["seconds_to_first_frames"] = w.first_seconds;
  json["frames_per_second_made"] = frames / std::max(w.seconds, 1e-9);
  json["bytes"] = w.bytes;
  json["random_weights"] = info.random_weights;
  json["denoising_passes"] = stats.denoising_passes;
  json["context_passes"] = stats.context_passes;
  json["skipped_context_passes"] = stats.skipped_context_passes;
  json["outcome"] = status_code_info(w.outcome.code()).name;
  return json;
}

void print(const Written& w, const EngineInfo& info) {
  if (goes_to_stdout(w.path)) return;
  const auto frames = static_cast<double>(w.frames);
  fmt::print(
      "{}: {} frames, {}x{}, {:.2f} s at {} frames/s, {}; made in {:.2f} s ({:.1f} frames/s), "
      "first frames after {:.2f} s\n",
      w.path, w.frames, w.width, w.height, frames / static_cast<double>(info.frames_per_second),
      info.frames_per_second, w.sink, w.seconds, frames / std::max(w.seconds, 1e-9),
      w.first_seconds);
  if (!w.low_resolution_path.empty()) {
    fmt::print("{}: the same moments at the generator's own size\n", w.low_resolution_path);
  }
  if (w.width > info.width) {
    fmt::print("Made at {}x{} and enlarged for viewing.\n", info.width, info.height);
  }
  if (info.random_weights) fmt::print("The weights are random, so the pictures mean nothing.\n");
}

// The session that an interrupt ends.
class Running {
 public:
  void set(Session* session) {
    const std::lock_guard lock(mutex_);
    session_ = session;
    if (stopped_ && session_ != nullptr) session_->drain();
  }
  void stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    if (session_ != nullptr) session_->drain();
  }

 private:
  std::mutex mutex_;
  Session* session_ = nullptr;
  bool stopped_ = false;
};

// Makes one video after the other; results are added to `results` as they are complete.
Status make_videos(const GenerateSettings& settings, const Engine& engine,
                   SessionOptions session_options, const std::vector<std::string>& prompts,
                   const InterruptGuard& interrupt, Running& running, ProgressLine& progress,
                   nlohmann::ordered_json& results) {
  const EngineInfo info = engine.info();
  std::optional<Session> session;
  // Before the session goes, whatever ends this function.
  const std::shared_ptr<void> no_longer(nullptr, [&](void*) { running.set(nullptr); });
  VideoWriter writer(settings, engine);
  for (size_t i = 0; i < prompts.size() && !interrupt.interrupted(); ++i) {
    session_options.prompt = prompts[i];
    if (session) {
      UF_TRY(session->restart(session_options));
    } else {
      UF_ASSIGN(Session started, engine.start(session_options));
      session.emplace(std::move(started));
    }
    running.set(&*session);
    UF_TRY(writer.open(prompts[i], settings.output_path(i, prompts.size()),
                       settings.save_lr.empty() ? std::string()
                                                : settings.low_resolution_path(i, prompts.size())));
    const Result<Written> written = writer.run(*session, progress);
    if (!written.ok()) return written.status();
    if (settings.json) {
      results.push_back(to_json(*written, info, session->stats()));
    } else {
      print(*written, info);
    }
    if (written->outcome.code() != StatusCode::kEnd) return written->outcome;
  }
  return {};
}

int run_generate(CLI::App& app, GenerateSettings& settings) {
  if (const Status status = settings.complete(app); !status.ok()) return fail(status);
  const Result<std::vector<std::string>> prompts = settings.prompts();
  if (!prompts.ok()) return fail(prompts.status());
  const Result<Recipe> recipe = Recipe::find(settings.engine.recipe);
  if (!recipe.ok()) return fail(recipe.status());
  const Result<SessionOptions> session_options = settings.session_options(*recipe);
  if (!session_options.ok()) return fail(session_options.status());
  Result<EngineOptions> engine_options = settings.engine_options();
  if (!engine_options.ok()) return fail(engine_options.status());
  engine_options->log = stderr_logger();

  // The signal thread must exist before the library starts others, so that only it gets signals.
  Running running;
  const InterruptGuard interrupt("finishing the current chunk", [&] { running.stop(); });
  ProgressLine progress;
  engine_options->progress = [&](const Progress& p) {
    progress.update(p.total > 0 ? static_cast<double>(p.done) / static_cast<double>(p.total) : -1.0,
                    fmt::format("loading {}", p.stage));
    return !interrupt.interrupted();
  };
  const Result<Engine> engine = Engine::load(*recipe, *engine_options);
  progress.finish();
  if (!engine.ok()) return fail(engine.status());
  if (!settings.save_text_embedding.empty()) {
    const Status saved = engine->save_text_embedding((*prompts)[0], settings.save_text_embedding);
    if (!saved.ok()) return fail(saved);
  }
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  const Status made = make_videos(settings, *engine, *session_options, *prompts, interrupt, running,
                                  progress, results);
  if (settings.json) fmt::print("{}\n", dump_json(results, 2));
  if (!made.ok()) return fail(made);
  return interrupt.interrupted() ? status_code_info(StatusCode::kCancelled).exit_status : 0;
}

}  // namespace

void add_generate(CLI::App& app, Command& chosen) {
  auto settings = std::make_shared<GenerateSettings>();
  CLI::App* command = app.add_subcommand("generate", "Make a video from a prompt");
  settings->add_to(*command);
  command->callback([command, settings, &chosen] {
    chosen = [command, settings] { return run_generate(*command, *settings); };
  });
}

}  // namespace ultraflash::cli

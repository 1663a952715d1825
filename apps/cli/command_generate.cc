// ultraflash generate: a prompt becomes a video file.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common.h"
#include "interrupt.h"
#include "media/frame_sink.h"
#include "settings.h"
#include "ultraflash/engine.h"
#include "ultraflash/recipe.h"
#include "ultraflash/version.h"

namespace ultraflash::cli {
namespace {

constexpr int64_t kMaxPrompts = 10'000;
constexpr double kDefaultSeconds = 5.0;

struct GenerateSettings {
  EngineSettings engine;
  StreamSettings stream;
  std::string prompt;
  std::string prompt_file;
  std::vector<std::string> prompt_at;
  std::string switch_mode = "plain";
  std::string text_embedding;
  std::string save_text_embedding;
  double seconds = 0.0;
  int64_t frames = 0;
  int64_t chunks = 0;
  bool endless = false;
  std::string out;
  std::string format;
  std::string codec = "auto";
  int crf = 0;
  int64_t bitrate = 0;
  std::string preset;
  std::string save_lr;
  bool json = false;
};

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

Result<std::vector<std::string>> read_prompts(const GenerateSettings& settings) {
  if (settings.prompt_file.empty()) return std::vector<std::string>{settings.prompt};
  std::error_code error;
  if (!std::filesystem::is_regular_file(settings.prompt_file, error)) {
    return Status(StatusCode::kNotFound,
                  fmt::format("{}: no such file of prompts", settings.prompt_file));
  }
  std::ifstream stream(settings.prompt_file);
  std::vector<std::string> prompts;
  for (std::string line; std::getline(stream, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ' || line.back() == '\t')) {
      line.pop_back();
    }
    if (line.empty()) continue;
    prompts.push_back(std::move(line));
    if (static_cast<int64_t>(prompts.size()) > kMaxPrompts) {
      return Status(StatusCode::kInvalidArgument,
                    fmt::format("{}: more than {} prompts", settings.prompt_file, kMaxPrompts));
    }
  }
  if (stream.bad()) {
    return Status(StatusCode::kIo, fmt::format("{}: cannot be read", settings.prompt_file));
  }
  if (prompts.empty()) {
    return Status(StatusCode::kInvalidArgument,
                  fmt::format("{}: no prompt in it; write one per line", settings.prompt_file));
  }
  return prompts;
}

// CHUNK=TEXT
Result<PromptSwitch> parse_switch(const std::string& text) {
  const size_t equals = text.find('=');
  PromptSwitch change;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + std::min(equals, text.size()), change.chunk);
  if (equals == std::string::npos || error != std::errc() || end != text.data() + equals) {
    return Status(StatusCode::kInvalidArgument,
                  "--prompt-at takes CHUNK=TEXT, for example --prompt-at '4=a blue star'");
  }
  change.prompt = text.substr(equals + 1);
  return change;
}

// Where the video of prompt `index` of `count` goes: for several prompts, a number before the
// ending.
std::string output_path(const GenerateSettings& settings, size_t index, size_t count) {
  if (count == 1) return settings.out;
  const std::filesystem::path path(settings.out);
  const std::string number = fmt::format("-{:04}", index);
  return (path.parent_path() / (path.stem().string() + number + path.extension().string()))
      .string();
}

Result<std::unique_ptr<FrameSink>> open_output(const GenerateSettings& settings,
                                               const std::string& path, int64_t width,
                                               int64_t height, int64_t fps,
                                               const nlohmann::ordered_json& stored) {
  SinkOptions options;
  options.path = path;
  options.format = settings.format;
  options.codec = settings.codec;
  options.crf = settings.crf;
  options.bitrate = settings.bitrate;
  options.preset = settings.preset;
  options.metadata = {
      {"title", stored.value("prompt", "")},
      {"ultraflash_version", stored.value("version", "")},
      {"ultraflash_recipe", stored["settings"].value("recipe", "")},
      {"ultraflash_prompt", stored.value("prompt", "")},
      {"ultraflash_seed", fmt::format("{}", stored["settings"].value("seed", uint64_t{0}))},
      {"ultraflash_settings", stored.dump()}};
  return open_sink(options, {width, height, fps, 1});
}

// Everything that is needed to make the same video again.
nlohmann::ordered_json stored_settings(const GenerateSettings& settings, const Engine& engine,
                                       const std::string& prompt) {
  const EngineInfo info = engine.info();
  nlohmann::ordered_json json;
  json["version"] = fmt::format("{} ({})", version(), commit());
  json["prompt"] = prompt;
  nlohmann::ordered_json& all = json["settings"];
  settings.engine.write(all);
  settings.stream.write(all);
  all["prompt_at"] = settings.prompt_at;
  all["switch"] = settings.switch_mode;
  all["text_embedding"] = settings.text_embedding;
  all["seconds"] = settings.seconds;
  all["frames"] = settings.frames;
  all["chunks"] = settings.chunks;
  json["device"] = info.device;
  json["dtype"] = info.dtype;
  json["sources"] = info.sources;
  return json;
}

struct Written {
  std::string path;
  std::string low_resolution_path;
  std::string sink;
  int64_t frames = 0;
  int64_t width = 0;
  int64_t height = 0;
  double seconds = 0.0;        // from the start of the stream until the file was complete
  double first_seconds = 0.0;  // until the first pictures
  int64_t bytes = 0;
  Status outcome;
};

class Writer {
 public:
  Writer(const GenerateSettings& settings, const Engine& engine)
      : settings_(settings), engine_(engine) {}

  Result<Written> run(Session& session, const std::string& prompt, const std::string& path,
                      ProgressLine& progress) {
    const EngineInfo info = engine_.info();
    const nlohmann::ordered_json stored = stored_settings(settings_, engine_, prompt);
    UF_ASSIGN(
        const std::unique_ptr<FrameSink> sink,
        open_output(settings_, path, info.width, info.height, info.frames_per_second, stored));
    std::unique_ptr<FrameSink> small;
    const auto begin = std::chrono::steady_clock::now();
    Written written;
    written.path = path;
    written.sink = sink->name();
    written.width = info.width;
    written.height = info.height;
    const int64_t planned = session.planned_frames();
    Status failed;
    for (;;) {
      Result<Frames> frames = session.next();
      if (!frames.ok()) {
        written.outcome = frames.status();
        break;
      }
      if (written.frames == 0) written.first_seconds = seconds_since(begin);
      for (int64_t i = 0; i < frames->count && failed.ok(); ++i) {
        failed = sink->write(
            RgbFrame::contiguous(frames->picture(i).data(), frames->width, frames->height));
      }
      if (failed.ok() && frames->low_resolution_count > 0) {
        failed = write_small(*frames, stored, info.frames_per_second, small);
      }
      if (!failed.ok()) {
        session.cancel();
        break;
      }
      written.frames += frames->count;
      report(progress, written.frames, planned, seconds_since(begin), info.frames_per_second);
    }
    progress.finish();
    // What was made is kept, whatever ended the stream.
    const Status finished = written.frames > 0 || failed.ok() ? sink->finish() : Status();
    if (small) {
      written.low_resolution_path = settings_.save_lr;
      UF_TRY(small->finish());
    }
    written.seconds = seconds_since(begin);
    written.bytes = sink->stats().bytes_written;
    UF_TRY(failed);
    UF_TRY(finished);
    return written;
  }

 private:
  Status write_small(const Frames& frames, const nlohmann::ordered_json& stored, int64_t fps,
                     std::unique_ptr<FrameSink>& small) {
    if (!small) {
      UF_ASSIGN(small, open_output(settings_, settings_.save_lr, frames.low_resolution_width,
                                   frames.low_resolution_height, fps, stored));
    }
    for (int64_t i = 0; i < frames.low_resolution_count; ++i) {
      UF_TRY(small->write(RgbFrame::contiguous(frames.low_resolution_picture(i).data(),
                                               frames.low_resolution_width,
                                               frames.low_resolution_height)));
    }
    return {};
  }

  static void report(ProgressLine& progress, int64_t done, int64_t planned, double seconds,
                     int64_t fps) {
    const double rate = static_cast<double>(done) / std::max(seconds, 1e-9);
    if (planned == 0) {
      progress.update(-1.0,
                      fmt::format("{} frames ({:.1f} s of video), {:.1f} frames/s", done,
                                  static_cast<double>(done) / static_cast<double>(fps), rate));
      return;
    }
    const double left = static_cast<double>(planned - done) / std::max(rate, 1e-9);
    progress.update(
        static_cast<double>(done) / static_cast<double>(planned),
        fmt::format("{} of {} frames, {:.1f} frames/s, {:.0f} s left", done, planned, rate, left));
  }

  const GenerateSettings& settings_;
  const Engine& engine_;
};

Status check_settings(GenerateSettings& settings) {
  const bool has_prompt = !settings.prompt.empty() || !settings.prompt_file.empty();
  if (!has_prompt && settings.text_embedding.empty()) {
    return {StatusCode::kInvalidArgument,
            "no prompt; give --prompt TEXT, --prompt-file FILE or --text-embedding FILE"};
  }
  const int lengths = (settings.seconds != 0.0 ? 1 : 0) + (settings.frames != 0 ? 1 : 0) +
                      (settings.chunks != 0 ? 1 : 0) + (settings.endless ? 1 : 0);
  if (lengths > 1) {
    return {StatusCode::kInvalidArgument,
            "give one of --seconds, --frames, --chunks and --endless, not several"};
  }
  if (lengths == 0) settings.seconds = kDefaultSeconds;
  if (settings.frames < 0 || settings.chunks < 0 || settings.seconds < 0.0 ||
      !std::isfinite(settings.seconds) || settings.seconds > 1e9) {
    return {StatusCode::kInvalidArgument,
            "--seconds, --frames and --chunks must be positive; --endless never stops"};
  }
  return {};
}

nlohmann::ordered_json to_json(const Written& w, int64_t fps, const SessionStats& stats) {
  nlohmann::ordered_json json;
  json["file"] = w.path;
  if (!w.low_resolution_path.empty()) json["low_resolution_file"] = w.low_resolution_path;
  json["container"] = w.sink;
  json["frames"] = w.frames;
  json["width"] = w.width;
  json["height"] = w.height;
  json["frames_per_second"] = fps;
  json["seconds_of_video"] = static_cast<double>(w.frames) / static_cast<double>(fps);
  json["seconds_to_make"] = w.seconds;
  json["seconds_to_first_frames"] = w.first_seconds;
  json["frames_per_second_made"] = static_cast<double>(w.frames) / std::max(w.seconds, 1e-9);
  json["bytes"] = w.bytes;
  json["denoising_passes"] = stats.denoising_passes;
  json["context_passes"] = stats.context_passes;
  json["skipped_context_passes"] = stats.skipped_context_passes;
  json["outcome"] = status_code_info(w.outcome.code()).name;
  return json;
}

int run_generate(GenerateSettings settings) {
  if (const Status status = check_settings(settings); !status.ok()) return fail(status);
  const Result<std::vector<std::string>> prompts = read_prompts(settings);
  if (!prompts.ok()) return fail(prompts.status());
  const Result<Recipe> recipe = Recipe::find(settings.engine.recipe);
  if (!recipe.ok()) return fail(recipe.status());
  Result<EngineOptions> engine_options = settings.engine.engine_options();
  if (!engine_options.ok()) return fail(engine_options.status());
  engine_options->log = stderr_logger();
  engine_options->low_resolution = !settings.save_lr.empty();
  engine_options->no_text_encoder = !settings.text_embedding.empty() &&
                                    settings.prompt_at.empty() &&
                                    settings.save_text_embedding.empty();
  ProgressLine progress(/*quiet=*/false);
  engine_options->progress = [&](const Progress& p) {
    progress.update(p.total > 0 ? static_cast<double>(p.done) / static_cast<double>(p.total) : -1.0,
                    fmt::format("loading {}", p.stage));
    return true;
  };

  SessionOptions session_options;
  session_options.text_embedding_file = settings.text_embedding;
  session_options.chunks = settings.chunks;
  session_options.frames = settings.frames;
  if (settings.seconds > 0.0) {
    session_options.frames =
        std::llround(settings.seconds * static_cast<double>(recipe->frames_per_second()));
    if (session_options.frames == 0) {
      return fail({StatusCode::kInvalidArgument,
                   fmt::format("{} seconds are less than one frame", settings.seconds)});
    }
  }
  for (const std::string& text : settings.prompt_at) {
    Result<PromptSwitch> change = parse_switch(text);
    if (!change.ok()) return fail(change.status());
    session_options.prompt_switches.push_back(*std::move(change));
  }
  session_options.switch_mode =
      settings.switch_mode == "recache" ? SwitchMode::kRecache : SwitchMode::kPlain;
  if (const Status status = settings.stream.fill(session_options); !status.ok())
    return fail(status);

  // The signal thread must exist before the library starts others, so that only it gets signals.
  std::mutex mutex;
  Session* running = nullptr;
  InterruptGuard interrupt([&] {
    const std::lock_guard lock(mutex);
    if (running != nullptr) running->drain();
  });
  const Result<Engine> engine = Engine::load(*recipe, *engine_options);
  progress.finish();
  if (!engine.ok()) return fail(engine.status());
  if (!settings.save_text_embedding.empty()) {
    const Status saved = engine->save_text_embedding((*prompts)[0], settings.save_text_embedding);
    if (!saved.ok()) return fail(saved);
  }

  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  std::optional<Session> session;
  int exit_status = 0;
  for (size_t i = 0; i < prompts->size() && !interrupt.interrupted(); ++i) {
    session_options.prompt = (*prompts)[i];
    if (!session) {
      Result<Session> started = engine->start(session_options);
      if (!started.ok()) return fail(started.status());
      session.emplace(*std::move(started));
    } else if (const Status status = session->restart(session_options); !status.ok()) {
      return fail(status);
    }
    {
      const std::lock_guard lock(mutex);
      running = &*session;
    }
    Writer writer(settings, *engine);
    const Result<Written> written =
        writer.run(*session, (*prompts)[i], output_path(settings, i, prompts->size()), progress);
    {
      const std::lock_guard lock(mutex);
      running = nullptr;
    }
    if (!written.ok()) return fail(written.status());
    const EngineInfo info = engine->info();
    if (settings.json) {
      results.push_back(to_json(*written, info.frames_per_second, session->stats()));
    } else if (written->path != "-") {
      fmt::print(
          "{}: {} frames, {}x{}, {:.2f} s at {} frames/s, {}; made in {:.2f} s ({:.1f} "
          "frames/s), first frames after {:.2f} s\n",
          written->path, written->frames, written->width, written->height,
          static_cast<double>(written->frames) / static_cast<double>(info.frames_per_second),
          info.frames_per_second, written->sink, written->seconds,
          static_cast<double>(written->frames) / std::max(written->seconds, 1e-9),
          written->first_seconds);
      if (!written->low_resolution_path.empty()) {
        fmt::print("{}: the same moments at the generator's own size\n",
                   written->low_resolution_path);
      }
      if (info.random_weights) {
        fmt::print("The weights are random, so the pictures mean nothing yet.\n");
      }
    }
    if (written->outcome.code() != StatusCode::kEnd) exit_status = fail(written->outcome);
  }
  if (settings.json) fmt::print("{}\n", results.dump(2));
  if (exit_status == 0 && interrupt.interrupted()) {
    exit_status = status_code_info(StatusCode::kCancelled).exit_status;
  }
  return exit_status;
}

}  // namespace

void add_generate(CLI::App& app, Command& chosen) {
  auto settings = std::make_shared<GenerateSettings>();
  CLI::App* command = app.add_subcommand("generate", "Make a video from a prompt");
  command->set_config("--settings", "", "Read options from a file (TOML or INI, see the docs)");
  command->add_option("-p,--prompt", settings->prompt, "What the video shows");
  command
      ->add_option("--prompt-file", settings->prompt_file,
                   "A file with one prompt per line; each becomes a video of its own")
      ->excludes("--prompt");
  command
      ->add_option("--prompt-at", settings->prompt_at,
                   "CHUNK=TEXT: another prompt from that chunk on (may be repeated)")
      ->allow_extra_args(false);
  command
      ->add_option("--switch", settings->switch_mode,
                   "How prompts change: 'plain', or 'recache' (run the window again)")
      ->check(CLI::IsMember({"plain", "recache"}))
      ->capture_default_str();
  command->add_option("--text-embedding", settings->text_embedding,
                      "Read the text embedding from this file instead of encoding a prompt");
  command->add_option("--save-text-embedding", settings->save_text_embedding,
                      "Also write the prompt's text embedding to this file");
  command->add_option("-s,--seconds", settings->seconds, "Length in seconds; default 5");
  command->add_option("--frames", settings->frames, "Length in frames");
  command->add_option("--chunks", settings->chunks, "Length in chunks of latent frames");
  command->add_flag("--endless", settings->endless, "Until Ctrl-C");
  command
      ->add_option("-o,--out", settings->out,
                   "Output: .mp4, .y4m, .png (pattern or folder), .rgb, or - for y4m on stdout")
      ->default_val("ultraflash.mp4");
  command->add_option("--format", settings->format, "mp4, y4m, png or raw; default: by the ending");
  command->add_option("--codec", settings->codec, "Of mp4: auto, x264, openh264 or mpeg4")
      ->capture_default_str();
  command->add_option("--crf", settings->crf, "Of mp4: quality, 1 (best) to 51; default 18");
  command->add_option("--bitrate", settings->bitrate, "Of mp4: bits per second instead of --crf");
  command->add_option("--encoder-preset", settings->preset, "Of x264: ultrafast to veryslow");
  command->add_option("--save-lr", settings->save_lr,
                      "Also write the generator's own pictures, at scale 1, to this file");
  command->add_flag("--json", settings->json, "Print the result as JSON");
  settings->engine.add_to(*command);
  settings->stream.add_to(*command);
  command->callback(
      [settings, &chosen] { chosen = [settings] { return run_generate(*settings); }; });
}

}  // namespace ultraflash::cli

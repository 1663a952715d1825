// ultraflash bench: how fast a recipe runs here, end to end and stage by stage.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench_trace.h"
#include "common.h"
#include "media/frame_sink.h"
#include "options.h"
#include "settings.h"
#include "ultraflash/engine.h"
#include "ultraflash/recipe.h"
#include "ultraflash/version.h"

namespace ultraflash::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct BenchSettings {
  EngineSettings engine;
  StreamSettings stream;
  std::string settings_file;
  // 60 tokens where no text encoder is loaded: a few dozen are what people write, and
  // cross-attention takes as long as there are.
  std::string prompt =
      "A red tram crosses a wide stone bridge at dusk while rain falls on the river below; people "
      "with umbrellas walk along the railing, street lamps shine in the wet cobbles, and the "
      "camera moves slowly from left to right, close to the water.";
  int64_t clips = 5;
  int64_t chunks = 7;  // 21 latent frames, as the published clips
  bool no_encode = false;
  bool operations = false;
  std::string trace_file;
  std::string json_file;
  bool json = false;
};

constexpr size_t kPrintedOperations = 40;  // the JSON has all of them
constexpr int64_t kMostWarmUpChunks = 8;
// A chunk has thousands of operations.
constexpr int64_t kMostTracedChunks = 32;

double seconds_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

double percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  const double position = p * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(position);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (position - static_cast<double>(low)) * (values[high] - values[low]);
}

// "VmHWM:" of /proc/self/status, in bytes.
uint64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) * 1024;
  }
  return 0;
}

struct ClipTimes {
  double total = 0.0;
  double first = 0.0;
  std::vector<double> intervals;  // between deliveries, after the first
  int64_t frames = 0;
  std::vector<double> fps_with_encoder;
};

// Runs the stream that `session` has begun; writes to `sink` when not null.
Result<ClipTimes> run_clip(Session& session, Clock::time_point begin, FrameSink* sink) {
  ClipTimes times;
  Clock::time_point last = begin;
  for (;;) {
    Result<Frames> frames = session.next();
    if (!frames.ok()) {
      if (frames.status().code() != StatusCode::kEnd) return frames.status();
      break;
    }
    const Clock::time_point now = Clock::now();
    if (times.frames == 0) {
      times.first = seconds_between(begin, now);
    } else {
      times.intervals.push_back(seconds_between(last, now));
    }
    last = now;
    times.frames += frames->count;
    for (int64_t i = 0; sink != nullptr && i < frames->count; ++i) {
      UF_TRY(sink->write(
          RgbFrame::contiguous(frames->picture(i).data(), frames->width, frames->height)));
    }
  }
  if (sink != nullptr) UF_TRY(sink->finish());
  times.total = seconds_between(begin, Clock::now());
  return times;
}

struct Measured {
  EngineInfo info;
  double load_seconds = 0.0;
  double start_seconds = 0.0;  // memory of a session and its warm-up
  double cold_first = 0.0;     // that included
  std::vector<ClipTimes> clips;
  std::optional<ClipTimes> encoded;
  std::vector<TraceEvent> trace;  // of one clip more, when asked for
  std::string encoder;
  SessionStats stats;  // of the last clip
  int64_t arena_requests_after_warm_up = 0;
};

Result<Measured> measure(const BenchSettings& settings, const Recipe& recipe,
                         ProgressLine& progress) {
  Measured m;
  UF_ASSIGN(EngineOptions engine_options, settings.engine.engine_options());
  engine_options.log = stderr_logger();
  engine_options.warm_up = true;
  const Clock::time_point begin = Clock::now();
  UF_ASSIGN(const Engine engine, Engine::load(recipe, engine_options));
  m.load_seconds = seconds_between(begin, Clock::now());
  m.info = engine.info();

  SessionOptions options;
  options.prompt = settings.prompt;
  options.chunks = settings.chunks;
  settings.stream.fill(options);
  const auto total = static_cast<double>(settings.clips + (settings.no_encode ? 1 : 2));
  progress.update(0.0, "warm-up clip");
  Clock::time_point start = Clock::now();
  SessionOptions first = options;
  first.chunks = std::min<int64_t>(settings.chunks, kMostWarmUpChunks);
  UF_ASSIGN(Session session, engine.start(first));
  m.start_seconds = seconds_between(start, Clock::now());
  UF_ASSIGN(const ClipTimes cold, run_clip(session, start, nullptr));
  m.cold_first = cold.first;
  const int64_t requests = session.stats().arena_requests;
  for (int64_t i = 0; i < settings.clips; ++i) {
    progress.update(static_cast<double>(i + 1) / total,
                    fmt::format("clip {} of {}", i + 1, settings.clips));
    options.seed = settings.stream.seed + static_cast<uint64_t>(i) + 1;
    start = Clock::now();
    UF_TRY(session.restart(options));
    UF_ASSIGN(ClipTimes clip, run_clip(session, start, nullptr));
    m.clips.push_back(std::move(clip));
  }
  m.stats = session.stats();
  m.arena_requests_after_warm_up = m.stats.arena_requests - requests;
  if (settings.operations || !settings.trace_file.empty()) {
    SessionOptions traced = options;
    traced.trace = true;
    traced.chunks = std::min<int64_t>(settings.chunks, kMostTracedChunks);
    start = Clock::now();
    UF_TRY(session.restart(traced));
    UF_TRY(run_clip(session, start, nullptr).status());
    m.trace = session.take_trace();
  }
  if (settings.no_encode || available_video_encoders().empty()) return m;

  progress.update((total - 1.0) / total, "clip with encoding");
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / fmt::format("ultraflash-bench-{}.mp4", getpid());
  SinkOptions sink_options;
  sink_options.path = file.string();
  start = Clock::now();
  UF_TRY(session.restart(options));
  UF_ASSIGN(const std::unique_ptr<FrameSink> sink,
            open_sink(sink_options, {m.info.width, m.info.height, m.info.frames_per_second, 1}));
  m.encoder = sink->name();
  Result<ClipTimes> encoded = run_clip(session, start, sink.get());
  std::error_code error;
  std::filesystem::remove(file, error);
  if (!encoded.ok()) return encoded.status();
  m.encoded = *std::move(encoded);
  return m;
}

std::vector<double> rates(const std::vector<ClipTimes>& clips) {
  std::vector<double> values;
  for (const ClipTimes& clip : clips)
    values.push_back(static_cast<double>(clip.frames) / clip.total);
  return values;
}

nlohmann::ordered_json to_json(const BenchSettings& settings, const Measured& m) {
  nlohmann::ordered_json json;
  json["version"] = version();
  json["commit"] = commit();
  nlohmann::ordered_json& all = json["settings"];
  settings.engine.write(all);
  settings.stream.write(all);
  all["prompt"] = settings.prompt;
  all["clips"] = settings.clips;
  all["chunks"] = settings.chunks;
  json["device"] = m.info.device;
  json["dtype"] = m.info.dtype;
  json["attention"] = m.info.attention;
  json["fp8_sums"] = m.info.fp8_sums;
  json["width"] = m.info.width;
  json["height"] = m.info.height;
  json["random_weights"] = m.info.random_weights;
  json["load_seconds"] = m.load_seconds;
  json["start_seconds"] = m.start_seconds;
  json["first_frames_cold_seconds"] = m.cold_first;
  std::vector<double> firsts;
  std::vector<double> intervals;
  for (const ClipTimes& clip : m.clips) {
    firsts.push_back(clip.first);
    intervals.insert(intervals.end(), clip.intervals.begin(), clip.intervals.end());
  }
  json["first_frames_warm_seconds"] = percentile(firsts, 0.5);
  json["frames_per_clip"] = m.clips.front().frames;
  const std::vector<double> fps = rates(m.clips);
  json["fps"] = {{"median", percentile(fps, 0.5)},
                 {"min", percentile(fps, 0.0)},
                 {"max", percentile(fps, 1.0)}};
  // The published clips count what the decoder made, before the first pictures are trimmed.
  json["frames_decoded_per_clip"] = m.stats.frames_decoded;
  json["fps_decoded"] = percentile(fps, 0.5) * static_cast<double>(m.stats.frames_decoded) /
                        static_cast<double>(std::max<int64_t>(m.clips.front().frames, 1));
  json["real_time_factor"] =
      static_cast<double>(m.info.frames_per_second) / std::max(percentile(fps, 0.5), 1e-9);
  json["delivery_interval_seconds"] = {{"p50", percentile(intervals, 0.5)},
                                       {"p95", percentile(intervals, 0.95)},
                                       {"p99", percentile(intervals, 0.99)},
                                       {"count", intervals.size()}};
  if (const double p50 = percentile(intervals, 0.5); p50 > 0.0) {
    json["delivery_interval_p99_over_p50"] = percentile(intervals, 0.99) / p50;
  }
  if (m.encoded) {
    json["fps_with_encoding"] = static_cast<double>(m.encoded->frames) / m.encoded->total;
    json["encoder"] = m.encoder;
  }
  nlohmann::ordered_json stages = nlohmann::ordered_json::array();
  for (const SessionStats::Stage& stage : m.stats.stages) {
    stages.push_back(
        {{"stage", stage.name},
         {"calls", stage.calls},
         {"ms_per_call",
          1e3 * stage.seconds / static_cast<double>(std::max<int64_t>(stage.calls, 1))},
         {"ms_of_last_calls", 1e3 * stage.recent_seconds},
         {"ms_per_frame",
          1e3 * stage.seconds / static_cast<double>(std::max<int64_t>(m.stats.frames, 1))}});
  }
  json["stages"] = stages;
  json["memory"] = {{"weights_bytes", m.info.weight_bytes},
                    {"arena_peak_bytes", m.stats.arena_peak_bytes},
                    {"arena_reserved_bytes", m.stats.arena_reserved_bytes},
                    {"peak_resident_bytes", peak_resident_bytes()},
                    {"device_used_bytes", m.stats.device_used_bytes},
                    {"arena_requests_after_warm_up", m.arena_requests_after_warm_up}};
  if (!m.trace.empty()) {
    json["operations"] =
        operations_json(m.trace, ceilings_of(m.info.device), m.info.dtype == "fp8");
  }
  return json;
}

void print(const nlohmann::ordered_json& json, const std::string& recipe) {
  const auto number = [&](const char* key) { return json[key].get<double>(); };
  fmt::print("{} at {}x{} on {}, {}{}, attention in {}{}\n", recipe, json["width"].get<int64_t>(),
             json["height"].get<int64_t>(), json["device"].get<std::string>(),
             json["dtype"].get<std::string>(),
             json["fp8_sums"].get<std::string>() == "fast" ? " with fast sums" : "",
             json["attention"].get<std::string>(),
             json["random_weights"].get<bool>() ? ", random weights" : "");
  fmt::print(
      "  frames per second    {:8.2f}   (median of {} clips of {} frames; {:.2f} to {:.2f})\n",
      json["fps"]["median"].get<double>(), json["settings"]["clips"].get<int64_t>(),
      json["frames_per_clip"].get<int64_t>(), json["fps"]["min"].get<double>(),
      json["fps"]["max"].get<double>());
  fmt::print("  of decoded frames    {:8.2f}   ({} a clip)\n", number("fps_decoded"),
             json["frames_decoded_per_clip"].get<int64_t>());
  if (json.contains("fps_with_encoding")) {
    fmt::print("  with encoding        {:8.2f}   ({})\n", number("fps_with_encoding"),
               json["encoder"].get<std::string>());
  }
  fmt::print("  real-time factor     {:8.3f}   (below 1 keeps up)\n", number("real_time_factor"));
  fmt::print("  first frames         {:8.3f} s warm, {:.3f} s cold, after {:.3f} s of loading\n",
             number("first_frames_warm_seconds"), number("first_frames_cold_seconds"),
             number("load_seconds"));
  const auto& interval = json["delivery_interval_seconds"];
  fmt::print("  delivery interval    {:8.3f} s p50, {:.3f} s p95, {:.3f} s p99 (of {})\n",
             interval["p50"].get<double>(), interval["p95"].get<double>(),
             interval["p99"].get<double>(), interval["count"].get<size_t>());
  fmt::print("  {:<12} {:>6} {:>12} {:>13} {:>13}\n", "stage", "calls", "ms per call",
             "last 8 calls", "ms per frame");
  for (const auto& stage : json["stages"]) {
    fmt::print("  {:<12} {:>6} {:>12.2f} {:>13.2f} {:>13.3f}\n", stage["stage"].get<std::string>(),
               stage["calls"].get<int64_t>(), stage["ms_per_call"].get<double>(),
               stage["ms_of_last_calls"].get<double>(), stage["ms_per_frame"].get<double>());
  }
  const auto& memory = json["memory"];
  fmt::print(
      "  memory: weights {}, caches and activations {} ({} held), {} of the device, resident peak "
      "{}; "
      "{} requests to the system after the warm-up\n",
      human_bytes(memory["weights_bytes"].get<uint64_t>()),
      human_bytes(memory["arena_peak_bytes"].get<uint64_t>()),
      human_bytes(memory["arena_reserved_bytes"].get<uint64_t>()),
      human_bytes(memory["device_used_bytes"].get<uint64_t>()),
      human_bytes(memory["peak_resident_bytes"].get<uint64_t>()),
      memory["arena_requests_after_warm_up"].get<int64_t>());
  if (json.contains("operations")) print_operations(json["operations"], kPrintedOperations);
}

Status cannot_write(const std::string& path) {
  return {StatusCode::kIo, fmt::format("{}: cannot be written: {}", path, std::strerror(errno))};
}

int run_bench(CLI::App& app, const BenchSettings& settings) {
  if (!settings.settings_file.empty()) {
    const Status status = apply_settings_file(app, settings.settings_file, {});
    if (!status.ok()) return fail(status);
  }
  const Result<Recipe> recipe = Recipe::find(settings.engine.recipe);
  if (!recipe.ok()) return fail(recipe.status());
  std::ofstream file;
  if (!settings.json_file.empty()) {
    // Opened now: minutes of measuring must not end in a name that cannot be written.
    file.open(settings.json_file, std::ios::app);
    if (!file) return fail(cannot_write(settings.json_file));
    file.close();
  }
  ProgressLine progress;
  const Result<Measured> measured = measure(settings, *recipe, progress);
  progress.finish();
  if (!measured.ok()) return fail(measured.status());
  const nlohmann::ordered_json json = to_json(settings, *measured);
  if (!settings.json_file.empty()) {
    file.open(settings.json_file, std::ios::trunc);
    file << dump_json(json, 2) << "\n";
    if (!file.flush()) return fail(cannot_write(settings.json_file));
  }
  if (!settings.trace_file.empty()) {
    if (const Status status = write_trace(settings.trace_file, measured->trace); !status.ok()) {
      return fail(status);
    }
  }
  if (settings.json) {
    fmt::print("{}\n", dump_json(json, 2));
  } else {
    print(json, recipe->name());
  }
  return 0;
}

}  // namespace

void add_bench(CLI::App& app, Command& chosen) {
  auto settings = std::make_shared<BenchSettings>();
  CLI::App* command = app.add_subcommand("bench", "Measure speed and memory of a recipe");
  add_settings_file(*command, settings->settings_file);
  add_text(*command, "-p,--prompt", settings->prompt, "TEXT",
           "Prompt of the clips; without text encoder 4 bytes of it count as a token");
  add_integer(*command, "--clips", settings->clips, int64_t{1}, int64_t{10'000},
              "Measured clips, after one to warm up");
  add_integer(*command, "--chunks", settings->chunks, int64_t{1}, int64_t{1'000'000},
              "Chunks of a clip");
  command->add_flag("--no-encode", settings->no_encode,
                    "Leave out the clip that is encoded to MP4");
  command->add_flag("--operations", settings->operations,
                    "Trace one clip more and print time and rate of every operation");
  add_text(*command, "--trace", settings->trace_file, "FILE",
           "Write the traced clip in Chrome's trace format");
  add_text(*command, "--json-file", settings->json_file, "FILE",
           "Also write the result to this file, as JSON");
  command->add_flag("--json", settings->json, "Print JSON instead of a table");
  settings->engine.add_to(*command);
  settings->stream.add_to(*command);
  command->callback([command, settings, &chosen] {
    chosen = [command, settings] { return run_bench(*command, *settings); };
  });
}

}  // namespace ultraflash::cli

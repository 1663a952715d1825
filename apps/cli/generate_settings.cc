#include "generate_settings.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <utility>

#include "options.h"
#include "text/prompt_cleaning.h"

namespace ultraflash::cli {
namespace {

constexpr int64_t kMaxPrompts = 10'000;
constexpr double kDefaultSeconds = 5.0;
constexpr int64_t kMaxLength = int64_t{1} << 40;  // of frames and chunks, as the library's

Status invalid(std::string message) { return {StatusCode::kInvalidArgument, std::move(message)}; }

// `what` begins the message: the option, or the line of a file.
Status check_prompt(const std::string& prompt, const std::string& what) {
  const Result<std::string> cleaned = clean_prompt(prompt);
  if (!cleaned.ok()) {
    return {cleaned.status().code(), fmt::format("{}: {}", what, cleaned.status().message())};
  }
  if (cleaned->empty()) return invalid(fmt::format("{}: the prompt is empty", what));
  return {};
}

// CHUNK=TEXT
Result<PromptSwitch> parse_switch(const std::string& text) {
  const size_t equals = text.find('=');
  const std::optional<int64_t> chunk = parse_integer<int64_t>(text.substr(0, equals));
  if (equals == std::string::npos || !chunk || *chunk < 1 || *chunk > kMaxLength) {
    return invalid(
        "--prompt-at takes CHUNK=TEXT with a chunk from 1 on, such as --prompt-at '4=a blue star'");
  }
  PromptSwitch change{*chunk, text.substr(equals + 1)};
  UF_TRY(check_prompt(change.prompt, fmt::format("--prompt-at {}", *chunk)));
  return change;
}

std::string numbered(const std::string& path, size_t index, size_t count) {
  if (count == 1) return path;
  std::filesystem::path whole(path);
  const bool folder = !whole.has_filename();
  if (folder) whole = whole.parent_path();
  const std::string name =
      fmt::format("{}-{:04}{}", whole.stem().string(), index, whole.extension().string());
  return (whole.parent_path() / name).string() + (folder ? "/" : "");
}

// Found out now rather than after gigabytes of weights were read.
Status check_output_place(const std::string& path) {
  if (goes_to_stdout(path)) return {};
  std::filesystem::path whole(path);
  if (!whole.has_filename()) whole = whole.parent_path();
  const std::filesystem::path folder = whole.has_parent_path() ? whole.parent_path() : ".";
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    return {StatusCode::kNotFound,
            fmt::format("{}: there is no folder '{}' to write it to", path, folder.string())};
  }
  return {};
}

}  // namespace

bool goes_to_stdout(const std::string& path) { return path == "-" || path == "/dev/stdout"; }

void GenerateSettings::add_to(CLI::App& app) {
  add_settings_file(app, settings_file);
  add_text(app, "-p,--prompt", prompt, "TEXT", "What the video shows");
  add_text(app, "--prompt-file", prompt_file, "FILE",
           "A file with one prompt per line; each becomes a video of its own, with a number in its "
           "name");
  app.add_option("--prompt-at", prompt_at,
                 "Another prompt from that chunk on, 1 or later (may be repeated)")
      ->option_text("CHUNK=TEXT")
      ->allow_extra_args(false);
  add_choice(app, "--switch", switch_mode, {"plain", "recache"},
             "How prompts change: from the next chunk on, or with the window run again");
  add_text(app, "--text-embedding", text_embedding, "FILE",
           "Read the text embedding from this file instead of encoding a prompt");
  add_text(app, "--save-text-embedding", save_text_embedding, "FILE",
           "Also write the prompt's text embedding to this file");
  add_number(app, "-s,--seconds", seconds, 0.0, 1e9, "Length in seconds; the last chunk is cut",
             {fmt::format("{}", kDefaultSeconds)});
  add_integer(app, "--frames", frames, int64_t{1}, kMaxLength,
              "Length in frames; the last chunk is cut", {"by --seconds"});
  add_integer(app, "--chunks", chunks, int64_t{1}, kMaxLength,
              "Length in chunks of latent frames (see 'ultraflash list NAME')", {"by --seconds"});
  app.add_flag("--endless", endless, "Until Ctrl-C");
  add_text(app, "-o,--out", out, "PATH",
           "Output: .mp4, .y4m, .png (pattern such as out_%05d.png, or a folder), .rgb, or - for "
           "y4m on stdout");
  add_choice(app, "--format", format, {"mp4", "y4m", "png", "raw"}, "Container",
             {"by the output's ending"});
  add_choice(app, "--codec", codec, {"auto", "x264", "openh264", "mpeg4"},
             "Encoder of mp4; auto takes the first there is");
  add_integer(app, "--crf", crf, 1, 51, "Quality of mp4, 1 is best", {"18"});
  add_integer(app, "--bitrate", bitrate, int64_t{1}, int64_t{1'000'000'000},
              "Bits per second of mp4, instead of --crf", {"by --crf"});
  add_choice(app, "--encoder-preset", preset,
             {"ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower",
              "veryslow"},
             "Effort of x264", {"veryfast"});
  add_text(app, "--save-lr", save_lr, "PATH",
           "Also write the generator's own pictures, at scale 1, to this file");
  add_integer(app, "--enlarge", enlarge, 1, 8,
              "Enlarge the pictures so many times for viewing, without adding detail");
  app.add_flag("--json", json, "Print the result as JSON");
  engine.add_to(app);
  stream.add_to(app);
}

Status GenerateSettings::complete(CLI::App& app) {
  const std::vector<std::vector<std::string>> exclusive = {
      {"seconds", "frames", "chunks", "endless"}, {"prompt", "prompt-file", "text-embedding"}};
  if (!settings_file.empty()) UF_TRY(apply_settings_file(app, settings_file, exclusive));

  const int texts = (app.count("--prompt") > 0 ? 1 : 0) + (prompt_file.empty() ? 0 : 1) +
                    (text_embedding.empty() ? 0 : 1);
  if (texts == 0) {
    return invalid("no prompt; give --prompt TEXT, --prompt-file FILE or --text-embedding FILE");
  }
  if (texts > 1) {
    return invalid("give one of --prompt, --prompt-file and --text-embedding, not several");
  }
  if (!save_text_embedding.empty() && !text_embedding.empty()) {
    return invalid("--save-text-embedding needs a prompt, not --text-embedding");
  }
  const int lengths = (app.count("--seconds") > 0 ? 1 : 0) + (frames != 0 ? 1 : 0) +
                      (chunks != 0 ? 1 : 0) + (endless ? 1 : 0);
  if (lengths > 1) {
    return invalid("give one of --seconds, --frames, --chunks and --endless, not several");
  }
  if (lengths == 0) seconds = kDefaultSeconds;
  if (goes_to_stdout(out) && json) {
    return invalid("--json prints where --out - puts the video; write the video to a file");
  }
  if (goes_to_stdout(out) && !prompt_file.empty()) {
    return invalid("--prompt-file makes several videos, which --out - cannot take");
  }
  if (goes_to_stdout(save_lr)) return invalid("--save-lr cannot write to stdout; name a file");
  if (goes_to_stdout(out) && isatty(STDOUT_FILENO) == 1) {
    return invalid("--out - would put a video on the terminal; send it to a pipe or a file");
  }
  if (!save_lr.empty() && std::filesystem::path(save_lr).lexically_normal() ==
                              std::filesystem::path(out).lexically_normal()) {
    return invalid(fmt::format("--out and --save-lr both name {}", out));
  }
  UF_TRY(check_output_place(out));
  if (!save_lr.empty()) UF_TRY(check_output_place(save_lr));
  if (!save_text_embedding.empty()) UF_TRY(check_output_place(save_text_embedding));
  return {};
}

Result<std::vector<std::string>> GenerateSettings::prompts() const {
  if (!text_embedding.empty()) return std::vector<std::string>{std::string()};
  if (prompt_file.empty()) {
    UF_TRY(check_prompt(prompt, "--prompt"));
    return std::vector<std::string>{prompt};
  }
  std::error_code error;
  if (!std::filesystem::is_regular_file(prompt_file, error)) {
    return Status(StatusCode::kNotFound, fmt::format("{}: no such file of prompts", prompt_file));
  }
  std::ifstream lines(prompt_file, std::ios::binary);
  std::vector<std::string> prompts;
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    if (++number == 1 && line.starts_with("\xEF\xBB\xBF")) line.erase(0, 3);  // byte order mark
    line.erase(line.find_last_not_of(" \t\r") + 1);
    if (line.empty()) continue;
    UF_TRY(check_prompt(line, fmt::format("{}, line {}", prompt_file, number)));
    prompts.push_back(std::move(line));
    if (static_cast<int64_t>(prompts.size()) > kMaxPrompts) {
      return invalid(fmt::format("{}: more than {} prompts", prompt_file, kMaxPrompts));
    }
  }
  if (!lines.eof()) {
    return Status(StatusCode::kIo, fmt::format("{}: cannot be read", prompt_file));
  }
  if (prompts.empty()) {
    return invalid(fmt::format("{}: no prompt in it; write one per line", prompt_file));
  }
  return prompts;
}

Result<SessionOptions> GenerateSettings::session_options(const Recipe& recipe) const {
  SessionOptions options;
  options.text_embedding_file = text_embedding;
  options.chunks = chunks;
  options.frames = frames;
  if (frames == 0 && chunks == 0 && !endless) {
    options.frames = std::llround(seconds * static_cast<double>(recipe.frames_per_second()));
    if (options.frames == 0) {
      return invalid(fmt::format("--seconds {} is less than one frame", seconds));
    }
  }
  for (const std::string& text : prompt_at) {
    UF_ASSIGN(PromptSwitch change, parse_switch(text));
    options.prompt_switches.push_back(std::move(change));
  }
  options.switch_mode = switch_mode == "recache" ? SwitchMode::kRecache : SwitchMode::kPlain;
  stream.fill(options);
  return options;
}

Result<EngineOptions> GenerateSettings::engine_options() const {
  UF_ASSIGN(EngineOptions options, engine.engine_options());
  options.low_resolution = !save_lr.empty();
  options.no_text_encoder =
      !text_embedding.empty() && prompt_at.empty() && save_text_embedding.empty();
  return options;
}

std::string GenerateSettings::output_path(size_t index, size_t count) const {
  return numbered(out, index, count);
}

std::string GenerateSettings::low_resolution_path(size_t index, size_t count) const {
  return numbered(save_lr, index, count);
}

nlohmann::ordered_json GenerateSettings::stored(const std::string& made_of) const {
  nlohmann::ordered_json all;
  engine.write(all);
  stream.write(all);
  all["prompt"] = made_of;
  all["prompt_at"] = prompt_at;
  all["switch"] = switch_mode;
  all["text_embedding"] = text_embedding;
  if (frames != 0) {
    all["frames"] = frames;
  } else if (chunks != 0) {
    all["chunks"] = chunks;
  } else if (endless) {
    all["endless"] = true;
  } else {
    all["seconds"] = seconds;
  }
  all["codec"] = codec;
  if (crf != 0) all["crf"] = crf;
  if (enlarge != 1) all["enlarge"] = enlarge;
  if (bitrate != 0) all["bitrate"] = bitrate;
  all["encoder_preset"] = preset;
  return all;
}

}  // namespace ultraflash::cli

// Help, usage errors, list, doctor, verify and bench.
#include <filesystem>
#include <regex>
#include <set>

#include "cli/program.h"
#include "ultraflash/recipe.h"
#include "ultraflash/status.h"

namespace ultraflash::cli_test {
namespace {

class CommandsTest : public CliTest {
 protected:
  // A recorded file of this repository.
  static std::string golden(const std::string& name) {
    const char* source = std::getenv("UF_SOURCE_DIR");
    return std::string(source == nullptr ? "." : source) + "/tests/golden/" + name;
  }
};

const std::vector<std::string> kEngineOptions = {
    "--recipe",  "--weights", "--random-weights", "--weights-seed", "--scale",
    "--device",  "--dtype",   "--attention",      "--memory-limit", "--cuda-graphs",
    "--overlap", "--threads", "--window",         "--sink",         "--fp8-sums"};
const std::vector<std::string> kStreamOptions = {"--seed",
                                                 "--trim",
                                                 "--condition-noise",
                                                 "--dcm-steps",
                                                 "--dcm-sr-cache",
                                                 "--dcm-refresh",
                                                 "--dcm-refresh-threshold",
                                                 "--dcm-sr-kv-len-min",
                                                 "--dcm-sr-warmup",
                                                 "--settings",
                                                 "--prompt",
                                                 "--chunks",
                                                 "--json"};

std::map<std::string, std::vector<std::string>> all_options() {
  std::map<std::string, std::vector<std::string>> all = {
      {"generate",
       {"--prompt-file", "--prompt-at", "--switch", "--text-embedding", "--save-text-embedding",
        "--seconds", "--frames", "--endless", "--out", "--format", "--codec", "--crf", "--bitrate",
        "--encoder-preset", "--save-lr", "--enlarge"}},
      {"verify",
       {"files", "--device", "--dtype", "--inject-masks", "--tolerance", "--threads", "--json"}},
      {"bench", {"--clips", "--no-encode", "--json-file", "--operations", "--trace"}},
      {"inspect", {"file", "--tensors", "--count", "--json"}},
      {"convert",
       {"input", "output", "--dtype", "--lora", "--lora-scale", "--average", "--average-share",
        "--shard", "--key", "--output-key", "--prefix", "--drop", "--no-ema", "--keep-names"}},
      {"make-weights", {"recipe", "folder", "--seed", "--scale", "--dtype", "--no-text-encoder"}},
      {"list", {"recipe", "--json"}},
      {"doctor", {"--json"}}};
  for (const char* command : {"generate", "bench"}) {
    auto& options = all[command];
    options.insert(options.end(), kEngineOptions.begin(), kEngineOptions.end());
    options.insert(options.end(), kStreamOptions.begin(), kStreamOptions.end());
  }
  return all;
}

TEST_F(CommandsTest, HelpNamesEveryOptionWithItsRangeAndDefault) {
  const Outcome help = run({"--help"});
  ASSERT_TRUE(is_success(help));
  EXPECT_EQ(help.err, "");
  for (const auto& [command, options] : all_options()) {
    EXPECT_NE(help.out.find("\n  " + command + " "), std::string::npos) << command;
    const Outcome own = run({command, "--help"});
    ASSERT_TRUE(is_success(own)) << command;
    std::set<std::string> documented;
    // An option's entry: its head, and the lines of its description.
    const std::regex entry(
        R"((?:^|\n)  (?:-\w,)?(--[\w-]+|\w+)( \S+)?( +[^\n]*(?:\n {34}[^\n]*)*|\n {34}[^\n]*(?:\n {34}[^\n]*)*))");
    for (std::sregex_iterator i(own.out.begin(), own.out.end(), entry), end; i != end; ++i) {
      const std::string name = (*i)[1];
      const std::string kind = (*i)[2];
      const std::string text = (*i)[3];
      documented.insert(name);
      EXPECT_NE(text.find_first_not_of(" \n"), std::string::npos) << command << " " << name;
      if (kind == " N" || kind == " X" || kind == " SIZE" || kind == " NAME") {
        EXPECT_TRUE(text.find("default:") != std::string::npos || !name.starts_with("--"))
            << command << " " << name << text;
      }
      if (kind == " N" || kind == " X") {
        EXPECT_TRUE(std::regex_search(text, std::regex(R"(\[-?[\d.]+\s+to\s+[\d.e+]+;)")))
            << command << " " << name << text;
      }
    }
    for (const std::string& option : options) {
      EXPECT_EQ(documented.count(option), 1U) << command << " " << option << "\n" << own.out;
    }
    documented.erase("--help");
    documented.erase("--help-all");
    EXPECT_EQ(documented.size(), std::set<std::string>(options.begin(), options.end()).size())
        << command << ": an option that this test does not know";
  }
}

TEST_F(CommandsTest, HelpTellsEveryExitStatus) {
  const std::string help = run({"--help"}).out;
  const std::string table = help.substr(help.find("Exit statuses:"));
  std::set<int> wanted = {1, 130};
  for (const StatusCodeInfo& info : status_code_table()) wanted.insert(info.exit_status);
  std::set<int> found;
  const std::regex row(R"(\n +(\d+)  (\w[^\n]*))");
  for (std::sregex_iterator i(table.begin(), table.end(), row), end; i != end; ++i) {
    found.insert(std::stoi((*i)[1]));
  }
  EXPECT_EQ(found, wanted) << table;
}

TEST_F(CommandsTest, MisuseIsOneSentence) {
  EXPECT_TRUE(is_sentence(run(std::vector<std::string>{}), 2, "no command given"));
  EXPECT_TRUE(is_sentence(run({"fly"}), 2, "no command 'fly'; see 'ultraflash --help'"));
  EXPECT_TRUE(is_sentence(run({"--fly"}), 2, "no command '--fly'"));
  for (const auto& [command, options] : all_options()) {
    std::vector<std::string> arguments = {command, "--fly", "a", "b", "c"};
    EXPECT_TRUE(is_sentence(run(arguments), 2, "see 'ultraflash " + command + " --help'"));
    arguments = {command, "one\ntwo\x1b[31m", "a", "--flies"};
    EXPECT_TRUE(is_sentence(run(arguments), 2, "ultraflash: "));
  }
  EXPECT_TRUE(is_sentence(run({"list", "--json=maybe"}), 2, "--json"));
  EXPECT_EQ(names_in(folder_), (std::vector<std::string>{"tiny.json"}));
}

TEST_F(CommandsTest, ListShowsEveryRecipe) {
  const Outcome shown = run({"list"});
  ASSERT_TRUE(is_success(shown));
  const nlohmann::json all = json_of(run({"list", "--json"}));
  EXPECT_EQ(all.size(), Recipe::presets().size());
  for (const std::string& name : Recipe::presets()) {
    EXPECT_NE(shown.out.find(name + ": "), std::string::npos) << name;
  }
  for (const nlohmann::json& recipe : all) {
    EXPECT_EQ(recipe["frames_per_second"], 16) << recipe["name"];
    EXPECT_EQ(recipe["width"].get<int64_t>() % 16, 0);
    EXPECT_GE(recipe["networks"].size(), 3U);
    for (const nlohmann::json& network : recipe["networks"]) EXPECT_GT(network["parameters"], 0);
  }
  // A recipe as it is printed is a recipe file.
  const Outcome whole = run({"list", "pocket"});
  write_file(file("copy.json"), whole.out);
  EXPECT_EQ(run({"list", "./copy.json"}).out, whole.out);
  EXPECT_TRUE(is_sentence(run({"list", "nothing"}), 3, "no recipe 'nothing'"));
  ProgramRun full;
  full.arguments = {"list"};
  full.stdout_file = "/dev/full";
  EXPECT_TRUE(is_sentence(run(full), 11, "standard output"));
}

TEST_F(CommandsTest, DoctorTellsWhatThereIs) {
  const nlohmann::json found = json_of(run({"doctor", "--json"}));
  EXPECT_EQ(found["devices"][0]["name"], "cpu");
  EXPECT_EQ(found["devices"][0]["usable"], true);
  EXPECT_GT(found["memory_bytes"], 0);
  EXPECT_EQ(found["video_encoders"].empty(), !has_ffmpeg());
  EXPECT_FALSE(found["shipped_models"].get<std::string>().empty());
  EXPECT_TRUE(is_success(run({"doctor"})));
}

TEST_F(CommandsTest, VerifyAnswersByItsExitStatus) {
  const std::string good = golden("flow_match_scheduler.safetensors");
  const std::string other = golden("latent_upsampler_v1_x2.safetensors");
  const Outcome agree = run({"verify", good, other, "--json"});
  ASSERT_TRUE(is_success(agree));
  const nlohmann::json report = json_of(agree);
  ASSERT_EQ(report["files"].size(), 2U);
  EXPECT_EQ(report["files"][1]["ok"], true);
  EXPECT_GT(report["files"][1]["outputs"][0]["value"], 0.0);
  const Outcome strict = run({"verify", other, "--tolerance", "1e-30"});
  EXPECT_EQ(strict.status, 1) << strict.err;
  EXPECT_NE(strict.out.find("FAIL"), std::string::npos);
  EXPECT_EQ(strict.err, "");

  // What cannot be replayed has its own status, and the other files are still told about.
  const std::string bytes = read_file(other);
  write_file(file("cut.safetensors"), bytes.substr(0, bytes.size() - 9));
  const Outcome cut = run({"verify", "cut.safetensors", good});
  EXPECT_EQ(cut.status, 4) << cut.err;
  EXPECT_NE(cut.out.find("1 of 2 files agree"), std::string::npos) << cut.out;
  std::string unknown = bytes;
  const size_t module = unknown.find("\"module\":\"latent_upsampler_v1\"");
  ASSERT_NE(module, std::string::npos);
  unknown.replace(module, 30, "\"module\":\"latent_upsampler_v9\"");
  write_file(file("unknown.safetensors"), unknown);
  const Outcome refused = run({"verify", "unknown.safetensors"});
  EXPECT_EQ(refused.status, 5) << refused.err;
  EXPECT_NE(refused.err.find("unknown.safetensors"), std::string::npos) << refused.err;
  EXPECT_EQ(run({"verify", "none.safetensors"}).status, 3);
  EXPECT_TRUE(is_sentence(run({"verify"}), 2, "files"));
  EXPECT_TRUE(is_sentence(run({"verify", good, "--tolerance", "-1"}), 2, "--tolerance"));
  EXPECT_TRUE(is_sentence(run({"verify", good, "--dtype", "f16"}), 2, "--dtype"));
  EXPECT_TRUE(is_sentence(run({"verify", good, "--device", "quantum"}), 2, "quantum"));
}

TEST_F(CommandsTest, BenchMeasures) {
  const std::vector<std::string> small = {"-q", "bench",    "-r", "./tiny.json", "--clips",
                                          "2",  "--chunks", "2",  "--scale",     "1"};
  std::vector<std::string> arguments = small;
  arguments.insert(arguments.end(), {"--json", "--json-file", "result.json"});
  const Outcome outcome = run(arguments);
  ASSERT_TRUE(is_success(outcome));
  const nlohmann::json result = json_of(outcome);
  EXPECT_EQ(outcome.out, read_file(file("result.json")));
  EXPECT_EQ(result["fp8_sums"], "exact");
  EXPECT_EQ(result["settings"]["fp8_sums"], "exact");
  EXPECT_EQ(result["frames_per_clip"], 21);
  EXPECT_EQ(result["frames_decoded_per_clip"], 24);
  EXPECT_EQ(result["width"], 64);
  EXPECT_GT(result["fps"]["median"], 0.0);
  EXPECT_LE(result["fps"]["min"], result["fps"]["max"]);
  EXPECT_NEAR(result["real_time_factor"].get<double>() * result["fps"]["median"].get<double>(),
              16.0, 1e-6);
  EXPECT_GT(result["load_seconds"], 0.0);
  EXPECT_EQ(result.contains("fps_with_encoding"), has_ffmpeg());
  for (const char* key : {"weights_bytes", "arena_peak_bytes", "peak_resident_bytes"}) {
    EXPECT_GT(result["memory"][key], 0) << key;
  }
  EXPECT_EQ(result["memory"]["arena_requests_after_warm_up"], 0);
  std::set<std::string> stages;
  for (const nlohmann::json& stage : result["stages"]) stages.insert(stage["stage"]);
  EXPECT_TRUE(stages.count("generator") == 1 && stages.count("decoder") == 1);
  arguments = small;
  arguments.insert(arguments.end(), {"--json-file", "none/result.json"});
  EXPECT_TRUE(is_sentence(run(arguments), 11, "none/result.json"));
  EXPECT_TRUE(is_sentence(run({"-q", "bench", "--clips", "0"}), 2, "--clips"));
  EXPECT_TRUE(is_sentence(run({"-q", "bench", "--chunks", "-1"}), 2, "--chunks"));
}

TEST_F(CommandsTest, BenchTracesOperations) {
  const Outcome outcome = run({"-q", "bench", "-r", "./tiny.json", "--clips", "1", "--chunks", "2",
                               "--no-encode", "--json", "--operations", "--trace", "trace.json"});
  ASSERT_TRUE(is_success(outcome));
  const nlohmann::json result = json_of(outcome);
  // What is made of products; the rest only moves bytes.
  const std::set<std::string> counted = {
      "linear",           "feed_forward",           "attention",     "cross_attention",
      "attention_cached", "block_sparse_attention", "temporal_grow", "conv2d"};
  double generator_ms = 0.0;
  std::set<std::string> names;
  for (const nlohmann::json& row : result["operations"]) {
    if (row["stage"] == "generator") generator_ms += row["ms"].get<double>();
    names.insert(row["operation"]);
    EXPECT_GT(row["calls"], 0);
    EXPECT_EQ(row["tflops"] > 0.0, counted.count(row["operation"]) > 0) << row.dump();
  }
  for (const char* name :
       {"linear", "feed_forward", "attention_cached", "cross_attention", "qkv_to_cache",
        "residual_modulate", "conv2d", "block_sparse_attention"}) {
    EXPECT_EQ(names.count(name), 1U) << name;
  }
  // The trace holds the same operations, inside the stages that ran them.
  const nlohmann::json trace = nlohmann::json::parse(read_file(file("trace.json")));
  double stage_ms = 0.0;
  double operations_ms = 0.0;
  for (const nlohmann::json& event : trace["traceEvents"]) {
    if (event["ph"] != "X") continue;
    EXPECT_GE(event["dur"].get<double>(), 0.0);
    if (event["tid"] == 2 && event["name"] == "generator") stage_ms += event["dur"].get<double>();
    if (event["cat"] == "generator") operations_ms += event["dur"].get<double>();
  }
  EXPECT_NEAR(operations_ms * 1e-3, generator_ms, 1e-3 * generator_ms);
  EXPECT_LE(operations_ms, stage_ms);
  EXPECT_GT(operations_ms, 0.2 * stage_ms);
}

}  // namespace
}  // namespace ultraflash::cli_test

// --settings, and the order of precedence: command line, environment, file, default.
#include "cli/program.h"

namespace ultraflash::cli_test {
namespace {

class SettingsTest : public CliTest {
 protected:
  // What the stored settings of a short stream say.
  nlohmann::json stored(std::vector<std::string> arguments,
                        const std::map<std::string, std::string>& environment = {}) {
    arguments.insert(arguments.begin(), {"-q", "bench", "--json", "--clips", "1", "--chunks", "1",
                                         "--no-encode", "--settings", "s.json"});
    ProgramRun what;
    what.arguments = arguments;
    what.environment = environment;
    const Outcome outcome = run(what);
    EXPECT_TRUE(is_success(outcome));
    return outcome.status == 0 ? json_of(outcome)["settings"] : nlohmann::json();
  }
  Outcome refused(const std::string& text) {
    write_file(file("s.json"), text);
    return run({"-q", "generate", "--settings", "s.json", "-p", "a", "-o", "a.y4m"});
  }
};

TEST_F(SettingsTest, CommandLineThenEnvironmentThenFileThenDefault) {
  write_file(file("s.json"),
             R"({"recipe": "./tiny.json", "seed": 5, "threads": 1, "scale": 1, "dcm_sr_cache": true,
                 "prompt": "from the file", "weights": "", "dcm-steps": 2})");
  nlohmann::json all = stored({});
  EXPECT_EQ(all["seed"], 5);
  EXPECT_EQ(all["threads"], 1);
  EXPECT_EQ(all["dcm_steps"], 2);
  EXPECT_EQ(all["dcm_sr_cache"], true);
  EXPECT_EQ(all["prompt"], "from the file");
  EXPECT_EQ(all["trim"], "intended");
  all = stored({"--seed", "9"}, {{"UF_THREADS", "2"}});
  EXPECT_EQ(all["seed"], 9);
  EXPECT_EQ(all["threads"], 2);
  all = stored({"--threads", "1"}, {{"UF_THREADS", "2"}});
  EXPECT_EQ(all["threads"], 1);
}

// "seconds" of the file contradicts --frames, and the command line wins.
TEST_F(SettingsTest, WhatExcludesAnOptionOfTheCommandLineIsIgnored) {
  write_file(file("s.json"), R"({"recipe": "./tiny.json", "scale": 1, "seconds": 5, "prompt": "a",
                                 "prompt_at": ["1=b"], "switch": "recache"})");
  ASSERT_TRUE(
      is_success(run({"-q", "generate", "--settings", "s.json", "--frames", "3", "-o", "a.y4m"})));
  EXPECT_EQ(read_video(file("a.y4m")).frames, 3);
}

TEST_F(SettingsTest, WhatIsWrongIsNamed) {
  EXPECT_TRUE(is_sentence(refused(R"({"sede": 5})"), 2, "s.json: 'sede' is no setting"));
  EXPECT_TRUE(is_sentence(refused(R"({"settings": "t.json"})"), 2, "'settings' is no setting"));
  EXPECT_TRUE(is_sentence(refused(R"({"help": true})"), 2, "'help' is no setting"));
  EXPECT_TRUE(is_sentence(refused(R"({"": 1})"), 2, "'' is no setting"));
  EXPECT_TRUE(is_sentence(refused(R"({"seed": -5})"), 2, "--seed: '-5' is not a whole number"));
  EXPECT_TRUE(is_sentence(refused(R"({"seed": 1.5})"), 2, "--seed: '1.5' is not a whole number"));
  EXPECT_TRUE(is_sentence(refused(R"({"seed": null})"), 2, "'seed' must be a number or a text"));
  EXPECT_TRUE(is_sentence(refused(R"({"json": 1})"), 2, "'json' must be true or false"));
  EXPECT_TRUE(is_sentence(refused(R"({"prompt_at": "1=a"})"), 2, "'prompt_at' must be a list"));
  EXPECT_TRUE(is_sentence(refused(R"({"seed": 1, "seed": 2})"), 4, "s.json"));
  EXPECT_TRUE(is_sentence(refused("[1]"), 4, "one JSON object"));
  EXPECT_TRUE(is_sentence(refused("seed = 5"), 4, "s.json"));
  EXPECT_TRUE(is_sentence(refused(""), 4, "s.json"));
  EXPECT_TRUE(is_sentence(run({"generate", "--settings", "none.json"}), 3, "none.json"));
  EXPECT_TRUE(is_sentence(run({"generate", "--settings", "."}), 2, "not a file"));
  EXPECT_EQ(names_in(folder_), (std::vector<std::string>{"s.json", "tiny.json"}));
}

// What the machine lacks, or what was asked for beside it does not do, is said instead of left out.
TEST_F(SettingsTest, FastSumsAreOfProductsInFp8) {
  const auto with = [&](const std::vector<std::string>& options) {
    std::vector<std::string> arguments = {"-q", "bench",    "-r", "./tiny.json", "--clips",
                                          "1",  "--chunks", "1",  "--no-encode"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    return run(arguments);
  };
  const std::string need = "fast sums of products in fp8 need --device cuda and --dtype fp8";
  EXPECT_TRUE(is_sentence(with({"--fp8-sums", "fast"}), 5, need));
  EXPECT_TRUE(is_sentence(with({"--fp8-sums", "fast", "--dtype", "bf16"}), 5, need));
  EXPECT_TRUE(is_sentence(with({"--fp8-sums", "fast", "--device", "cpu"}), 5, need));
  EXPECT_TRUE(is_sentence(with({"--fp8-sums", "fast", "--device", "cpu", "--dtype", "fp8"}), 5,
                          "fp8 products need --device cuda"));
  EXPECT_TRUE(is_sentence(with({"--fp8-sums", "some"}), 2, "--fp8-sums"));
  EXPECT_TRUE(is_sentence(refused(R"({"recipe": "./tiny.json", "fp8_sums": "fast"})"), 5, need));
}

}  // namespace
}  // namespace ultraflash::cli_test

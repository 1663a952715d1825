#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <sentencepiece_processor.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/code_points.h"
#include "text/prompt_cleaning.h"
#include "text/spiece_model.h"
#include "text/support.h"

namespace ultraflash {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// A safetensors file in memory: enough of the format for a golden file.
struct Golden {
  std::map<std::string, std::string> metadata;
  std::map<std::string, std::string> tensors;  // the bytes

  [[nodiscard]] std::vector<int64_t> integers(const std::string& name) const {
    const std::string& bytes = tensors.at(name);
    std::vector<int64_t> values(bytes.size() / sizeof(int64_t));
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(int64_t));
    return values;
  }
};

Golden read_golden(const std::filesystem::path& path) {
  const std::string file = read_text(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  const nlohmann::json header = nlohmann::json::parse(file.substr(8, header_bytes));
  Golden golden;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      golden.metadata = value.get<std::map<std::string, std::string>>();
    } else {
      const auto begin = value["data_offsets"][0].get<size_t>();
      const auto end = value["data_offsets"][1].get<size_t>();
      golden.tensors[name] = file.substr(8 + header_bytes + begin, end - begin);
    }
  }
  return golden;
}

Tokenizer pocket_tokenizer() {
  static const Tokenizer tokenizer = *Tokenizer::load(source_path("models/pocket/spiece.model"));
  return tokenizer;
}

Tokenizer tokenizer_of(const std::string& model, const TokenizerOptions& options = {}) {
  Result<Tokenizer> tokenizer = Tokenizer::from_bytes(as_byte_span(model), options);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().to_string();
  return *std::move(tokenizer);
}

/// The tokens without padding.
std::vector<int64_t> ids_of(const Tokenizer& tokenizer, std::string_view text) {
  const Result<TokenIds> result = tokenizer.encode(text, 256);
  EXPECT_TRUE(result.ok()) << result.status().to_string();
  return {result->ids.begin(), result->ids.begin() + result->length};
}

// Recorded by record_fixtures.py from the fast tokenizer of the transformers library.
TEST(TokenizerGoldenTest, AgreesWithTheFastTokenizer) {
  const Golden golden = read_golden(source_path("tests/golden/tokenizer_t5.safetensors"));
  ASSERT_EQ(golden.metadata.at("module"), "tokenizer");
  const nlohmann::json config = nlohmann::json::parse(golden.metadata.at("config"));
  const int64_t extra_ids = config["extra_ids"].get<int64_t>();
  const Tokenizer tokenizer =
      tokenizer_of(golden.tensors.at("w.spiece_model"), {.extra_ids = extra_ids});
  ASSERT_GT(config["cases"].size(), 100U);
  for (size_t i = 0; i < config["cases"].size(); ++i) {
    const nlohmann::json& row = config["cases"][i];
    const auto prompt = row["prompt"].get<std::string>();
    const auto max_tokens = row["max_tokens"].get<int64_t>();
    const Result<TokenIds> result = row["clean"].get<bool>()
                                        ? encode_prompt(tokenizer, prompt, max_tokens)
                                        : tokenizer.encode(prompt, max_tokens);
    ASSERT_TRUE(result.ok()) << result.status().to_string();
    EXPECT_EQ(result->ids, golden.integers("out.ids." + std::to_string(i)))
        << "case " << i << ": " << row.dump(-1, ' ', /*ensure_ascii=*/true);
    EXPECT_EQ(result->mask(), golden.integers("out.mask." + std::to_string(i)));
  }
}

TEST(TokenizerTest, PadsTruncatesAndCounts) {
  const Tokenizer tokenizer = tokenizer_of(model_with({piece_message("\u2581a", -1)}));
  const Result<TokenIds> padded = tokenizer.encode("a a", 5);
  ASSERT_TRUE(padded.ok());
  EXPECT_THAT(padded->ids, ElementsAre(4, 4, 1, 0, 0));
  EXPECT_THAT(padded->mask(), ElementsAre(1, 1, 1, 0, 0));
  EXPECT_FALSE(padded->truncated);
  const Result<TokenIds> cut = tokenizer.encode("a a a a a", 3);
  ASSERT_TRUE(cut.ok());
  EXPECT_THAT(cut->ids, ElementsAre(4, 4, 1));
  EXPECT_TRUE(cut->truncated);
  EXPECT_EQ(cut->dropped_tokens, 3);
  const Result<TokenIds> exact = tokenizer.encode("a a", 3);
  ASSERT_TRUE(exact.ok());
  EXPECT_FALSE(exact->truncated);
  EXPECT_EQ(exact->dropped_tokens, 0);
  const Result<TokenIds> only_end = tokenizer.encode("a", 1);
  ASSERT_TRUE(only_end.ok());
  EXPECT_THAT(only_end->ids, ElementsAre(1));
}

TEST(TokenizerTest, EmptyAndBlankPromptsAreTheEndAlone) {
  for (const char* prompt : {"", "   ", "\n\t", "&nbsp;"}) {
    const Result<TokenIds> result = encode_prompt(pocket_tokenizer(), prompt, 4);
    ASSERT_TRUE(result.ok());
    EXPECT_THAT(result->ids, ElementsAre(1, 0, 0, 0));
    EXPECT_EQ(result->length, 1);
  }
}

TEST(TokenizerTest, RefusesBadArguments) {
  const Tokenizer tokenizer = pocket_tokenizer();
  for (const int64_t max_tokens :
       {int64_t{0}, int64_t{-1}, kMaxTokens + 1, std::numeric_limits<int64_t>::max()}) {
    EXPECT_EQ(tokenizer.encode("a", max_tokens).status().code(), StatusCode::kInvalidArgument);
  }
  const Status not_utf8 = encode_prompt(tokenizer, "red \xc3( circle", 8).status();
  EXPECT_EQ(not_utf8.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(not_utf8.message(), HasSubstr("byte 4"));
  EXPECT_EQ(tokenizer.encode("\xff", 8).status().code(), StatusCode::kInvalidArgument);
  const std::string long_text(kMaxPromptBytes + 1, 'a');
  EXPECT_EQ(tokenizer.encode(long_text, 8).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(encode_prompt(tokenizer, long_text, 8).status().code(), StatusCode::kInvalidArgument);
}

TEST(TokenizerTest, TheLongestPromptIsTruncatedNotRefused) {
  std::string prompt;
  while (prompt.size() + 4 <= kMaxPromptBytes) prompt += "red ";
  const Result<TokenIds> result = encode_prompt(pocket_tokenizer(), prompt, 512);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->length, 512);
  EXPECT_EQ(result->dropped_tokens, static_cast<int64_t>(kMaxPromptBytes / 4) - 511);
}

TEST(TokenizerTest, SentinelsCountDownFromTheEnd) {
  const std::string model = model_with({piece_message("\u2581a", -1)});
  const Tokenizer tokenizer = tokenizer_of(model, {.extra_ids = 300});
  EXPECT_EQ(tokenizer.vocabulary_size(), 305);
  EXPECT_EQ(tokenizer.piece(304), "<extra_id_0>");
  EXPECT_EQ(tokenizer.piece(5), "<extra_id_299>");
  EXPECT_THAT(ids_of(tokenizer, "<extra_id_0>a<extra_id_299>"), ElementsAre(304, 4, 5, 1));
  // Without sentinels the same text is text, and no id is out of range.
  for (const int64_t id : ids_of(tokenizer_of(model), "<extra_id_0>")) EXPECT_LT(id, 5);
  EXPECT_EQ(Tokenizer::from_bytes(as_byte_span(model), {.extra_ids = -1}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(
      Tokenizer::from_bytes(as_byte_span(model), {.extra_ids = kMaxExtraIds + 1}).status().code(),
      StatusCode::kInvalidArgument);
  const std::string own = model_with({piece_message("<extra_id_7>", 0, 4)});
  EXPECT_EQ(Tokenizer::from_bytes(as_byte_span(own), {.extra_ids = 300}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_THAT(ids_of(tokenizer_of(own), "<extra_id_7>"), ElementsAre(4, 1));
}

TEST(TokenizerTest, SpecialTokensInTheTextAreTokens) {
  const Tokenizer tokenizer =
      tokenizer_of(model_with({piece_message("\u2581", -3), piece_message("a", -1)}));
  EXPECT_THAT(ids_of(tokenizer, "a</s><pad>a<unk>"), ElementsAre(4, 5, 1, 0, 4, 5, 3, 1));
}

TEST(TokenizerTest, UnknownCharactersFuseAndBytePiecesAreNoFallback) {
  const Tokenizer tokenizer =
      tokenizer_of(model_with({piece_message("\u2581", -3), piece_message("<0xE2>", 0, 6),
                               piece_message("<0x98>", 0, 6), piece_message("<0x83>", 0, 6)}));
  EXPECT_THAT(ids_of(tokenizer, "\u2603\u2603 \u2603"), ElementsAre(4, 3, 4, 3, 1));
  EXPECT_THAT(ids_of(tokenizer, "<0xE2>"), ElementsAre(4, 5, 1));
}

TEST(TokenizerTest, PiecesNeverSpanWords) {
  const Tokenizer tokenizer =
      tokenizer_of(model_with({piece_message("\u2581a", -5), piece_message("\u2581a\u2581a", -1)}));
  EXPECT_THAT(ids_of(tokenizer, "a a"), ElementsAre(4, 4, 1));
}

TEST(TokenizerTest, FileErrorsSayWhatIsWrong) {
  EXPECT_EQ(Tokenizer::load("/nonexistent/spiece.model").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(Tokenizer::load(std::filesystem::temp_directory_path()).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(Tokenizer::load("/dev/zero").status().code(), StatusCode::kInvalidArgument);
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("uf_tokenizer_" + std::to_string(::getpid()));
  std::ofstream(path).close();
  const Status empty = Tokenizer::load(path).status();
  EXPECT_EQ(empty.code(), StatusCode::kMalformed);
  EXPECT_THAT(empty.message(), HasSubstr(path.filename().string()));
  std::filesystem::resize_file(path, kMaxModelBytes + 1);
  EXPECT_EQ(Tokenizer::load(path).status().code(), StatusCode::kUnsupported);
  std::filesystem::remove(path);
}

TEST(PocketTokenizerTest, HasTheIdsOfUmt5AndFitsItsPlace) {
  const Tokenizer tokenizer = pocket_tokenizer();
  EXPECT_LE(tokenizer.vocabulary_size(), 1000);
  EXPECT_EQ(tokenizer.pad_id(), 0);
  EXPECT_EQ(tokenizer.end_id(), 1);
  EXPECT_EQ(tokenizer.piece(2), "<s>");
  EXPECT_EQ(tokenizer.unknown_id(), 3);
  EXPECT_LT(std::filesystem::file_size(source_path("models/pocket/spiece.model")), 40U << 10);
}

TEST(PocketTokenizerTest, CaptionWordsAreSingleTokens) {
  const Tokenizer tokenizer = pocket_tokenizer();
  const std::string caption =
      "a large striped red circle moving slowly to the right on a navy background";
  EXPECT_EQ(std::ssize(ids_of(tokenizer, caption)), 14 + 1);
  for (const char* word :
       {"circle",   "square",     "triangle", "star",     "ring",     "cross",    "red",
        "orange",   "yellow",     "green",    "cyan",     "blue",     "purple",   "pink",
        "white",    "plain",      "striped",  "dotted",   "small",    "large",    "checkered",
        "still",    "left",       "right",    "up",       "down",     "circling", "bouncing",
        "spinning", "slowly",     "fast",     "black",    "grey",     "navy",     "brown",
        "dark",     "starry",     "sky",      "gradient", "vertical", "moves",    "Circle",
        "Red",      "background", "Large"}) {
    EXPECT_LE(std::ssize(ids_of(tokenizer, word)), std::isupper(word[0]) != 0 ? 5 : 2) << word;
  }
}

TEST(PocketTokenizerTest, NoAsciiTextHasUnknownTokens) {
  const Tokenizer tokenizer = pocket_tokenizer();
  std::string all;
  for (char c = '!'; c <= '~'; ++c) all += std::string(1, c) + " " + c;
  for (const int64_t id : ids_of(tokenizer, all.substr(0, 150))) EXPECT_NE(id, 3);
  for (char c = '!'; c <= '~'; ++c) {
    EXPECT_THAT(ids_of(tokenizer, std::string(1, c)), ::testing::Not(::testing::Contains(3))) << c;
  }
}

// The SentencePiece library is a second reader of the model file. It agrees as long as the text
// needs none of what the fast tokenizer does differently.
TEST(PocketTokenizerTest, AgreesWithSentencePieceOnPlainText) {
  sentencepiece::SentencePieceProcessor reference;
  ASSERT_TRUE(reference.Load(source_path("models/pocket/spiece.model").string()).ok());
  const Tokenizer tokenizer = pocket_tokenizer();
  ASSERT_EQ(reference.GetPieceSize(), tokenizer.vocabulary_size());
  EXPECT_TRUE(rc::check("same ids", [&] {
    const auto words = *rc::gen::container<std::vector<std::string>>(rc::gen::oneOf(
        rc::gen::element<std::string>("a", "large", "striped", "circle", "moving", "Navy", "STAR",
                                      "background.", "polka-dot", "slowly,", "upwards;"),
        rc::gen::nonEmpty(rc::gen::container<std::string>(
            rc::gen::oneOf(rc::gen::inRange<char>('!', '<'), rc::gen::inRange<char>('=', 0x7f))))));
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
    std::vector<int> expected;
    RC_ASSERT(reference.Encode(text, &expected).ok());
    const Result<TokenIds> result = tokenizer.encode(text, 4096);
    RC_ASSERT(result.ok());
    // Two ways may be equally good; the library adds scores as float, this one as double.
    const auto score = [&](const auto& ids, int64_t count) {
      double sum = 0;
      std::string spelled;
      for (int64_t i = 0; i < count; ++i) {
        const auto id = static_cast<int>(ids[static_cast<size_t>(i)]);
        sum += static_cast<double>(reference.GetScore(id));
        spelled += reference.IdToPiece(id);
      }
      return std::pair(spelled, sum);
    };
    const auto [their_text, their_score] = score(expected, std::ssize(expected));
    const auto [our_text, our_score] = score(result->ids, result->length - 1);
    RC_ASSERT(our_text == their_text);
    RC_ASSERT(our_score > their_score - 1e-4 * (1 - their_score));
  }));
}

RC_GTEST_PROP(TokenizerProperty, EncodingKeepsItsPromises, ()) {
  const std::string text =
      encode_utf8(*rc::gen::container<std::u32string>(rc::gen::weightedOneOf<char32_t>(
          {{8, rc::gen::inRange<char32_t>(0, 0x80)},
           {1, rc::gen::inRange<char32_t>(0x80, 0xd800)},
           {1, rc::gen::inRange<char32_t>(0xe000, 0x20000)},
           {2, rc::gen::element<char32_t>(U' ', U'<', U'>', U'/', U's', U'\u2581')}})));
  const auto max_tokens = *rc::gen::inRange<int64_t>(1, 40);
  const Tokenizer tokenizer = pocket_tokenizer();
  const Result<TokenIds> result = encode_prompt(tokenizer, text, max_tokens);
  RC_ASSERT(result.ok());
  RC_ASSERT(std::ssize(result->ids) == max_tokens);
  RC_ASSERT(result->length >= 1 && result->length <= max_tokens);
  RC_ASSERT(result->ids[static_cast<size_t>(result->length - 1)] == tokenizer.end_id());
  RC_ASSERT(result->truncated == (result->dropped_tokens > 0));
  RC_ASSERT(!result->truncated || result->length == max_tokens);
  const std::vector<int64_t> mask = result->mask();
  for (int64_t i = 0; i < max_tokens; ++i) {
    const int64_t id = result->ids[static_cast<size_t>(i)];
    RC_ASSERT(id >= 0 && id < tokenizer.vocabulary_size());
    RC_ASSERT(mask[static_cast<size_t>(i)] == (i < result->length ? 1 : 0));
    if (i >= result->length) RC_ASSERT(id == tokenizer.pad_id());
  }
  // The tokens that fit are those of a longer encoding.
  const Result<TokenIds> longer = encode_prompt(tokenizer, text, max_tokens + 7);
  RC_ASSERT(longer.ok());
  RC_ASSERT(std::equal(result->ids.begin(), result->ids.begin() + (result->length - 1),
                       longer->ids.begin()));
}

}  // namespace
}  // namespace ultraflash

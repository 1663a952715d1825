#include "text/spiece_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "text/character_map.h"
#include "text/support.h"
#include "text/tokenizer.h"

namespace ultraflash {
namespace {

using ::testing::HasSubstr;

Status parse_status(const std::string& bytes) {
  return parse_spiece_model(as_byte_span(bytes), "test.model").status();
}

TEST(SpieceModelTest, ReadsPiecesAndIds) {
  const std::string bytes = model_with({piece_message("\u2581cat", -2.5F), piece_message("s", -1)});
  const Result<SpieceModel> model = parse_spiece_model(as_byte_span(bytes), "test.model");
  ASSERT_TRUE(model.ok()) << model.status().to_string();
  ASSERT_EQ(model->pieces.size(), 6U);
  EXPECT_EQ(model->pieces[4].text, "\u2581cat");
  EXPECT_EQ(model->pieces[4].score, -2.5F);
  EXPECT_EQ(model->pad_id, 0);
  EXPECT_EQ(model->end_id, 1);
  EXPECT_EQ(model->unknown_id, 3);
}

TEST(SpieceModelTest, SkipsFieldsItDoesNotKnow) {
  const std::string bytes = MessageWriter()
                                .raw(model_with({piece_message("a")}))
                                .varint(900, 1)
                                .bytes(4, "self test")
                                .fixed32(777, 1.0F)
                                .str();
  EXPECT_TRUE(parse_status(bytes).ok());
}

struct Hostile {
  std::string what;
  std::string bytes;
  StatusCode code;
  std::string message;
};

std::vector<Hostile> hostile_models() {
  const std::string good = model_with({piece_message("a", -1)});
  const auto replaced = [](std::string bytes, std::string_view from, std::string_view to) {
    bytes.replace(bytes.find(from), from.size(), to);
    return bytes;
  };
  constexpr StatusCode kMalformed = StatusCode::kMalformed;
  constexpr StatusCode kUnsupported = StatusCode::kUnsupported;
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<Hostile> cases = {
      {"empty file", "", kMalformed, "no pieces"},
      {"text file", "hello, this is not a model", kMalformed, "not a SentencePiece model"},
      {"html page", "<!DOCTYPE html><html></html>", kMalformed, "test.model"},
      {"model cut off", good.substr(0, good.size() - 3), kMalformed, "bytes where"},
      {"number without end", "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", kMalformed,
       "more than 64 bits"},
      {"number cut off", "\x0a\xff", kMalformed, "cut off"},
      {"huge length", "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", kMalformed, "bytes where 0"},
      {"group", "\x0b\x0c", kMalformed, "wire type 3"},
      {"field number 0", std::string("\x00\x00", 2), kMalformed, "field number 0"},
      {"short fixed number", model_with({MessageWriter().bytes(1, "a").raw("\x15\x01").str()}),
       kMalformed, "cut off"},
      {"piece of another type", MessageWriter().varint(1, 5).str(), kMalformed, "another type"},
      {"score as text", model_with({MessageWriter().bytes(1, "a").bytes(2, "x").str()}), kMalformed,
       "field 2 of another type"},
      {"model type as text", model_with({}, MessageWriter().bytes(3, "x").str()), kMalformed,
       "field 3 of another type"},
      {"empty piece", model_with({piece_message("")}), kMalformed, "piece 4 is empty"},
      {"piece without text", model_with({MessageWriter().fixed32(2, 0).str()}), kMalformed,
       "piece 4 is empty"},
      {"piece that is not UTF-8", model_with({piece_message("\xff")}), kMalformed, "not UTF-8"},
      {"long piece", model_with({piece_message(std::string(kMaxPieceBytes + 1, 'a'))}), kMalformed,
       "257 bytes"},
      {"infinite score", model_with({piece_message("a", infinity)}), kMalformed, "not finite"},
      {"score that is no number", model_with({piece_message("a", std::nanf(""))}), kMalformed,
       "not finite"},
      {"unknown type of piece", model_with({piece_message("a", 0, 7)}), kMalformed, "type 7"},
      {"type 0", model_with({piece_message("a", 0, 0)}), kMalformed, "type 0"},
      {"duplicate piece", model_with({piece_message("a"), piece_message("b"), piece_message("a")}),
       kMalformed, "pieces 4 and 6 are the same"},
      {"no <pad>", replaced(good, "<pad>", "<dap>"), kMalformed, "<pad>"},
      {"no </s>", replaced(good, "</s>", "</t>"), kMalformed, "</s>"},
      {"no <unk>", replaced(good, "<unk>", "<nuk>"), kMalformed, "<unk>"},
      {"<unk> elsewhere", model_with({}, MessageWriter().varint(40, 0).str()), kMalformed,
       "is number 3, but the settings in the file say 0"},
      {"</s> elsewhere", model_with({}, MessageWriter().varint(42, 77).str()), kMalformed,
       "say 77"},
      {"<pad> elsewhere", model_with({}, MessageWriter().varint(43, 1).str()), kMalformed, "say 1"},
      {"BPE", model_with({}, MessageWriter().varint(3, 2).str()), kUnsupported, "BPE"},
      {"word", model_with({}, MessageWriter().varint(3, 3).str()), kUnsupported, "word"},
      {"character", model_with({}, MessageWriter().varint(3, 4).str()), kUnsupported, "character"},
      {"future", model_with({}, MessageWriter().varint(3, 1ULL << 60).str()), kUnsupported, "new"},
      {"spaces as suffix", model_with({}, MessageWriter().varint(24, 1).str()), kUnsupported,
       "U+2581"},
      {"spaces not escaped", model_with({}, {}, MessageWriter().varint(5, 0).str()), kUnsupported,
       "U+2581"},
  };
  std::string many;
  for (size_t i = 0; i <= kMaxPieces; ++i) {
    many += MessageWriter().bytes(1, MessageWriter().bytes(1, std::to_string(i)).str()).str();
  }
  cases.push_back({"too many pieces", many, kUnsupported, "more than 1048576 pieces"});
  cases.push_back({"too large", std::string(kMaxModelBytes + 1, '\0'), kUnsupported, "16777217"});
  return cases;
}

TEST(SpieceModelTest, RefusesHostileModels) {
  for (const Hostile& c : hostile_models()) {
    const Status status = parse_status(c.bytes);
    EXPECT_EQ(status.code(), c.code) << c.what << ": " << status.to_string();
    EXPECT_THAT(status.message(), HasSubstr(c.message)) << c.what;
    EXPECT_THAT(status.message(), HasSubstr("test.model")) << c.what;
  }
}

TEST(SpieceModelTest, SettingsThatTheFileLacksAreNotHeldAgainstIt) {
  MessageWriter model;
  model.bytes(1, piece_message("<unk>", 0, 2)).bytes(1, piece_message("</s>", 0, 3));
  model.bytes(1, piece_message("<pad>", 0, 3));
  const Result<SpieceModel> parsed = parse_spiece_model(as_byte_span(model.str()), "test.model");
  ASSERT_TRUE(parsed.ok()) << parsed.status().to_string();
  EXPECT_EQ(parsed->pad_id, 2);
  EXPECT_EQ(parsed->unknown_id, 0);
}

TEST(SpieceModelTest, EveryPrefixOfTheShippedModelIsRefusedOrRead) {
  const std::string bytes = read_text(source_path("models/pocket/spiece.model"));
  ASSERT_GT(bytes.size(), 1000U);
  for (size_t size = 0; size < bytes.size(); size += 7) {
    static_cast<void>(Tokenizer::from_bytes(as_byte_span(bytes.substr(0, size))).ok());
  }
}

/// `units` as the table of a character map, with `replacements`.
std::string character_map(const std::vector<uint32_t>& units, std::string_view replacements) {
  std::string bytes;
  const auto put = [&bytes](uint32_t value) {
    for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<char>(value >> (8 * i)));
  };
  put(static_cast<uint32_t>(4 * units.size()));
  for (const uint32_t unit : units) put(unit);
  return bytes + std::string(replacements);
}

TEST(CharacterMapTest, RefusesSizesThatDoNotAddUp) {
  const std::string_view nul("\0", 1);
  for (const std::string& bytes :
       {std::string("\x01"), std::string("\x00\x00\x00\x00", 4), std::string("\x08\x00\x00\x00", 4),
        std::string("\xff\xff\xff\xff", 4), std::string("\x03\x00\x00\x00\x01\x02\x03\x00", 8),
        character_map({0}, ""), character_map({0}, "no end"),
        character_map({0}, std::string("\xff") + std::string(nul))}) {
    EXPECT_EQ(CharacterMap::parse(bytes, "test.model").status().code(), StatusCode::kMalformed);
    const std::string model = model_with({}, {}, MessageWriter().bytes(2, bytes).str());
    EXPECT_EQ(Tokenizer::from_bytes(as_byte_span(model)).status().code(), StatusCode::kMalformed);
  }
  EXPECT_TRUE(CharacterMap::parse("", "test.model").ok());
}

TEST(CharacterMapTest, LinksOutOfTheTableMapNothing) {
  const std::string_view replacements("\xc3\xa9\0", 3);
  // Offsets and values beyond the table, loops, and a value inside a character.
  for (const uint32_t unit :
       {0xffffffffU, 0x7fffffffU, 0x80000001U, 0x00000161U, 0x00000461U, 0U}) {
    std::vector<uint32_t> units(256, unit);
    const Result<CharacterMap> map =
        CharacterMap::parse(character_map(units, replacements), "test.model");
    ASSERT_TRUE(map.ok());
    const std::string text = "a\u00e9\u4e16 \U0001f3ac";
    EXPECT_FALSE(map->normalise(text).empty());
  }
}

}  // namespace
}  // namespace ultraflash

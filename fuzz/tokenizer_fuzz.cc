// Prompts and tokenizer files from outside. The first byte chooses the reader, the rest is its
// input:
//   0: a spiece.model, which then encodes some texts;
//   1: a prompt for the pocket model;
//   2: a text for the pocket model as it is, without cleaning;
//   3: the character map of a model, in front of a text (the second byte is the text's length).
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <string_view>

#include "core/utf8.h"
#include "text/character_map.h"
#include "text/code_points.h"
#include "text/prompt_cleaning.h"
#include "text/tokenizer.h"

namespace {

using namespace ultraflash;

/// Ends the run: what should hold for every input does not.
void require(bool condition) {
  if (!condition) std::abort();
}

void check_tokens(const Tokenizer& tokenizer, const Result<TokenIds>& result, int64_t max_tokens) {
  if (!result.ok()) {
    require(result.status().code() == StatusCode::kInvalidArgument);
    return;
  }
  require(std::ssize(result->ids) == max_tokens);
  require(result->length >= 1 && result->length <= max_tokens);
  require(result->ids[static_cast<size_t>(result->length - 1)] == tokenizer.end_id());
  require(result->truncated == (result->dropped_tokens > 0));
  for (int64_t i = 0; i < max_tokens; ++i) {
    const int64_t id = result->ids[static_cast<size_t>(i)];
    require(id >= 0 && id < tokenizer.vocabulary_size());
    require(i < result->length || id == tokenizer.pad_id());
  }
}

void read_model(std::string_view bytes) {
  const TokenizerOptions options{.extra_ids = static_cast<int64_t>(bytes.size() % 2 * 100)};
  const Result<Tokenizer> tokenizer =
      Tokenizer::from_bytes(std::as_bytes(std::span(bytes.data(), bytes.size())), options);
  if (!tokenizer.ok()) return;
  constexpr std::string_view kTexts[] = {"", "a large striped red circle", "</s><pad> <extra_id_0>",
                                         "\xe2\x98\x83 \xc3\xa9\xcc\x81 \xe2\x96\x81\xe2\x96\x81x"};
  for (const std::string_view text : kTexts) {
    check_tokens(*tokenizer, tokenizer->encode(text, 16), 16);
  }
  // The file's own text: what its pieces are made of.
  check_tokens(*tokenizer, tokenizer->encode(bytes.substr(0, 4096), 64), 64);
  require(tokenizer->piece(tokenizer->pad_id()) == "<pad>");
}

const Tokenizer& pocket_tokenizer() {
  static const Tokenizer tokenizer = [] {
    const std::filesystem::path here = std::filesystem::path(__FILE__).parent_path();
    return *Tokenizer::load(here.parent_path() / "models" / "pocket" / "spiece.model");
  }();
  return tokenizer;
}

void read_prompt(std::string_view prompt) {
  const Result<std::string> cleaned = clean_prompt(prompt);
  if (cleaned.ok()) {
    require(validate_utf8(*cleaned).ok());
    require(cleaned->find("  ") == std::string::npos);
  }
  check_tokens(pocket_tokenizer(), encode_prompt(pocket_tokenizer(), prompt, 48), 48);
}

void read_character_map(std::string_view bytes) {
  if (bytes.empty()) return;
  const size_t text_size = static_cast<uint8_t>(bytes[0]);
  bytes.remove_prefix(1);
  if (bytes.size() < text_size) return;
  const std::string_view text = bytes.substr(bytes.size() - text_size);
  const Result<CharacterMap> map =
      CharacterMap::parse(bytes.substr(0, bytes.size() - text_size), "fuzz");
  if (!map.ok() || !validate_utf8(text).ok()) return;
  require(validate_utf8(map->normalise(text)).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      read_model(rest);
      break;
    case 1:
      read_prompt(rest);
      break;
    case 2:
      check_tokens(pocket_tokenizer(), pocket_tokenizer().encode(rest, 48), 48);
      break;
    default:
      read_character_map(rest);
      break;
  }
  return 0;
}

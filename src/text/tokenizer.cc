#include "text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "core/exceptions.h"
#include "core/input_file.h"
#include "core/utf8.h"
#include "text/character_map.h"
#include "text/code_points.h"
#include "text/prompt_cleaning.h"
#include "text/spiece_model.h"
#include "text/unigram.h"

namespace ultraflash {
namespace {

constexpr std::string_view kSentinel = "<extra_id_";
constexpr std::string_view kSpaceMark = "\xe2\x96\x81";  // U+2581

/// Trailing white space removed; runs of two or more spaces, and then single ones, made kSpaceMark.
std::string mark_spaces(std::string_view text) {
  size_t size = 0;
  for (size_t offset = 0; offset < text.size();) {
    if (!is_white_space(next_code_point(text, offset))) size = offset;
  }
  std::string out;
  out.reserve(size + kSpaceMark.size());
  for (size_t i = 0; i < size; ++i) {
    if (text[i] != ' ') {
      out.push_back(text[i]);
    } else if (i == 0 || text[i - 1] != ' ') {
      out += kSpaceMark;
    }
  }
  return out;
}

}  // namespace

struct Tokenizer::Vocabulary {
  static Result<std::shared_ptr<const Vocabulary>> parse(std::span<const std::byte> bytes,
                                                         const TokenizerOptions& options,
                                                         std::string_view name);
  [[nodiscard]] Result<TokenIds> encode(std::string_view text, int64_t max_tokens) const;

  SpieceModel model;                // without the sentinels
  std::vector<std::string> extras;  // the sentinels, by id
  CharacterMap character_map;
  Unigram unigram;
  Trie specials;                     // tokens that are found in the text as they stand
  std::vector<int64_t> special_ids;  // by index in `specials`

  [[nodiscard]] int64_t size() const { return std::ssize(model.pieces) + std::ssize(extras); }
  [[nodiscard]] std::string_view piece(int64_t id) const {
    const auto pieces = std::ssize(model.pieces);
    return id < pieces ? model.pieces[static_cast<size_t>(id)].text
                       : extras[static_cast<size_t>(id - pieces)];
  }

  /// Appends the ids of text between special tokens.
  void append_ids(std::string_view text, std::vector<int64_t>& ids) const;
};

void Tokenizer::Vocabulary::append_ids(std::string_view text, std::vector<int64_t>& ids) const {
  std::string marked = mark_spaces(character_map.normalise(text));
  if (marked.empty()) return;
  if (marked.compare(0, kSpaceMark.size(), kSpaceMark) != 0) marked.insert(0, kSpaceMark);
  const std::string_view view = marked;
  for (size_t begin = 0; begin < view.size();) {
    const size_t end = std::min(view.find(kSpaceMark, begin + kSpaceMark.size()), view.size());
    unigram.append_ids(view.substr(begin, end - begin), ids);
    begin = end;
  }
}

std::vector<int64_t> TokenIds::mask() const {
  std::vector<int64_t> result(ids.size(), 0);
  std::fill_n(result.begin(), length, 1);
  return result;
}

Tokenizer::Tokenizer(std::shared_ptr<const Vocabulary> vocabulary)
    : vocabulary_(std::move(vocabulary)) {}

Result<Tokenizer> Tokenizer::load(const std::filesystem::path& path,
                                  const TokenizerOptions& options) {
  return without_exceptions([&]() -> Result<Tokenizer> {
    UF_ASSIGN(InputFile file, InputFile::open_regular(path.string()));
    UF_ASSIGN(const std::vector<uint8_t> bytes, file.read_rest(kMaxModelBytes));
    return from_bytes(std::as_bytes(std::span(bytes)), options, path.filename().string());
  });
}

Result<Tokenizer> Tokenizer::from_bytes(std::span<const std::byte> bytes,
                                        const TokenizerOptions& options, std::string_view name) {
  return without_exceptions([&]() -> Result<Tokenizer> {
    UF_ASSIGN(auto vocabulary, Vocabulary::parse(bytes, options, name));
    return Tokenizer(std::move(vocabulary));
  });
}

Result<std::shared_ptr<const Tokenizer::Vocabulary>> Tokenizer::Vocabulary::parse(
    std::span<const std::byte> bytes, const TokenizerOptions& options, std::string_view name) {
  if (options.extra_ids < 0 || options.extra_ids > kMaxExtraIds) {
    return make_status(StatusCode::kInvalidArgument, "extra_ids is {}, expected 0 to {}",
                       options.extra_ids, kMaxExtraIds);
  }
  auto vocabulary = std::make_shared<Vocabulary>();
  UF_ASSIGN(vocabulary->model, parse_spiece_model(bytes, name));
  const SpieceModel& model = vocabulary->model;
  UF_ASSIGN(vocabulary->character_map, CharacterMap::parse(model.character_map, name));
  for (int64_t k = options.extra_ids - 1; k >= 0; --k) {
    vocabulary->extras.push_back(fmt::format("{}{}>", kSentinel, k));
  }

  std::vector<std::string_view> texts;
  std::vector<double> scores;
  std::vector<std::string_view> specials;
  const auto add = [&](std::string_view text, float score, bool special) {
    if (special) {
      specials.push_back(text);
      vocabulary->special_ids.push_back(std::ssize(texts));
    }
    texts.push_back(text);
    scores.push_back(static_cast<double>(score));
  };
  for (const Piece& piece : model.pieces) {
    if (options.extra_ids > 0 && piece.text.compare(0, kSentinel.size(), kSentinel) == 0) {
      return make_status(StatusCode::kInvalidArgument,
                         "{}: piece {} is a sentinel of the file's own; load it with extra_ids 0",
                         name, texts.size());
    }
    const int64_t id = std::ssize(texts);
    add(piece.text, piece.score,
        piece.type == PieceType::kControl || piece.type == PieceType::kUserDefined ||
            id == model.unknown_id || id == model.end_id || id == model.pad_id);
  }
  for (const std::string& extra : vocabulary->extras) add(extra, 0, /*special=*/true);
  vocabulary->specials = Trie(specials);
  vocabulary->unigram = Unigram(texts, std::move(scores), static_cast<int32_t>(model.unknown_id));
  return std::shared_ptr<const Vocabulary>(std::move(vocabulary));
}

Result<TokenIds> Tokenizer::encode(std::string_view text, int64_t max_tokens) const {
  return without_exceptions([&] { return vocabulary_->encode(text, max_tokens); });
}

Result<TokenIds> Tokenizer::Vocabulary::encode(std::string_view text, int64_t max_tokens) const {
  if (max_tokens < 1 || max_tokens > kMaxTokens) {
    return make_status(StatusCode::kInvalidArgument, "max_tokens is {}, expected 1 to {}",
                       max_tokens, kMaxTokens);
  }
  if (text.size() > kMaxPromptBytes) {
    return make_status(StatusCode::kInvalidArgument, "the text has {} bytes; at most {} are read",
                       text.size(), kMaxPromptBytes);
  }
  UF_TRY(validate_utf8(text, "the text"));

  TokenIds result;
  size_t begin = 0;  // of the text since the last special token
  for (size_t i = 0; i < text.size();) {
    const int32_t special = specials.find_longest_prefix(text.substr(i));
    if (special == Trie::kNone) {
      ++i;
      continue;
    }
    append_ids(text.substr(begin, i - begin), result.ids);
    const int64_t id = special_ids[static_cast<size_t>(special)];
    result.ids.push_back(id);
    i += piece(id).size();
    begin = i;
  }
  append_ids(text.substr(begin), result.ids);

  const int64_t room = max_tokens - 1;
  result.dropped_tokens = std::max<int64_t>(0, std::ssize(result.ids) - room);
  result.truncated = result.dropped_tokens > 0;
  result.ids.resize(result.ids.size() - static_cast<size_t>(result.dropped_tokens));
  result.ids.push_back(model.end_id);
  result.length = std::ssize(result.ids);
  result.ids.resize(static_cast<size_t>(max_tokens), model.pad_id);
  return result;
}

int64_t Tokenizer::vocabulary_size() const { return vocabulary_->size(); }
int64_t Tokenizer::pad_id() const { return vocabulary_->model.pad_id; }
int64_t Tokenizer::end_id() const { return vocabulary_->model.end_id; }
int64_t Tokenizer::unknown_id() const { return vocabulary_->model.unknown_id; }

std::string_view Tokenizer::piece(int64_t id) const {
  return id < 0 || id >= vocabulary_size() ? std::string_view() : vocabulary_->piece(id);
}

Result<TokenIds> encode_prompt(const Tokenizer& tokenizer, std::string_view prompt,
                               int64_t max_tokens) {
  return without_exceptions([&]() -> Result<TokenIds> {
    UF_ASSIGN(const std::string text, clean_prompt(prompt));
    return tokenizer.encode(text, max_tokens);
  });
}

}  // namespace ultraflash

// Tokenizer: text into the token ids of T5 and UMT5, from the model's spiece.model alone.
//
// The published models were trained and are run with the FAST tokenizer of the transformers
// library, whose results differ from those of the SentencePiece library on the same file. This
// follows the fast one, as transformers 4.57 converts it and tokenizers 0.22 runs it:
// - Special tokens written out in the text ("</s>", "<extra_id_0>", user-defined pieces) are found
//   first, the longest at each place, and become their ids.
// - What lies between is normalised: the model's character map (see CharacterMap), white space at
//   the end removed, two or more spaces made one U+2581.
// - Spaces become U+2581, one is put in front unless there is one, and each word with the U+2581
//   before it is split by itself (see Unigram). No piece spans words.
// - Characters that no piece covers become "<unk>", one for a run of them, whether or not the model
//   has byte pieces; "<0x41>" in the text is the byte piece of that name.
// - "</s>" comes last, nothing first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {

/// Sentinels that UMT5 adds after the pieces of its file: ids 256000 to 256299.
inline constexpr int64_t kUmt5ExtraIds = 300;

struct TokenizerOptions {
  /// Number of sentinels "<extra_id_0>", "<extra_id_1>", ... whose ids follow those of the pieces,
  /// the last sentinel first: <extra_id_k> = vocabulary_size() - 1 - k. 0 to kMaxExtraIds. The
  /// embedding table of the text encoder must have a row for each.
  int64_t extra_ids = 0;
};
inline constexpr int64_t kMaxExtraIds = 10'000;

/// Longest sequence that encode() makes; the models take 512.
inline constexpr int64_t kMaxTokens = 1 << 20;

struct TokenIds {
  /// As many as were asked for: the tokens, then padding.
  std::vector<int64_t> ids;
  /// Tokens, the final "</s>" included. The attention mask is 1 below it and 0 from there on.
  int64_t length = 0;
  /// True when the text had more tokens than fit; the end of it was dropped.
  bool truncated = false;
  /// How many; for a warning.
  int64_t dropped_tokens = 0;

  /// 1 for tokens, 0 for padding.
  [[nodiscard]] std::vector<int64_t> mask() const;
};

/// Immutable; cheap to copy; may be used from several threads at once.
class Tokenizer {
 public:
  /// Reads a spiece.model. Fails with kNotFound, kIo, and as parse_spiece_model() does.
  static Result<Tokenizer> load(const std::filesystem::path& path,
                                const TokenizerOptions& options = {});
  /// `name` is for messages.
  static Result<Tokenizer> from_bytes(std::span<const std::byte> bytes,
                                      const TokenizerOptions& options = {},
                                      std::string_view name = "tokenizer model");

  /// Token ids of cleaned text (see clean_prompt()), cut or padded to `max_tokens`. Empty text is
  /// "</s>" alone. Fails with kInvalidArgument on text that is not UTF-8 or longer than
  /// kMaxPromptBytes, and on max_tokens outside 1 to kMaxTokens.
  [[nodiscard]] Result<TokenIds> encode(std::string_view text, int64_t max_tokens) const;

  /// Number of ids, sentinels included.
  [[nodiscard]] int64_t vocabulary_size() const;
  [[nodiscard]] int64_t pad_id() const;
  [[nodiscard]] int64_t end_id() const;
  [[nodiscard]] int64_t unknown_id() const;
  /// Text of a piece; empty when there is no such id.
  [[nodiscard]] std::string_view piece(int64_t id) const;

 private:
  struct Vocabulary;
  explicit Tokenizer(std::shared_ptr<const Vocabulary> vocabulary);

  std::shared_ptr<const Vocabulary> vocabulary_;
};

/// Cleans a prompt as it came from outside and encodes it. Fails as clean_prompt() and encode() do.
Result<TokenIds> encode_prompt(const Tokenizer& tokenizer, std::string_view prompt,
                               int64_t max_tokens);

}  // namespace ultraflash

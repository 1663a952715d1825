// The character map of a SentencePiece model ("precompiled_charsmap"): text normalisation as data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {

/// Maps characters, and short grapheme clusters, to replacements.
///
/// Format: the size of a table in bytes (32 bits, little-endian), the table (a double-array trie of
/// 32-bit units, as the Darts-clone library writes it), then the replacements, each ended by a zero
/// byte. A value in the trie is the offset of a replacement.
class CharacterMap {
 public:
  /// Maps nothing.
  CharacterMap() = default;

  /// Fails with kMalformed when the sizes do not add up or the replacements are not UTF-8. Unsound
  /// links inside the trie are found when they are followed, and then map nothing.
  static Result<CharacterMap> parse(std::string_view bytes, std::string_view name);

  [[nodiscard]] bool empty() const { return units_.empty(); }

  /// Replaces as the Precompiled normaliser of the tokenizers library does, which differs from
  /// SentencePiece: a grapheme cluster of under six bytes is looked up as a whole, and the SHORTEST
  /// entry it begins with replaces all of it; a longer or unknown one goes character by character.
  [[nodiscard]] std::string normalise(std::string_view text) const;

 private:
  [[nodiscard]] std::optional<std::string_view> find(std::string_view key) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace ultraflash

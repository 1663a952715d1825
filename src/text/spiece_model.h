// The SentencePiece model file (spiece.model): a protocol buffer, read here with a small reader of
// its own. Nothing in the file is believed before it was checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {

/// What a piece is for; the numbers are those of the file.
enum class PieceType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,      // "</s>": never found in text
  kUserDefined = 4,  // always kept in one piece
  kUnused = 5,
  kByte = 6,  // "<0x41>"
};

struct Piece {
  std::string text;  // UTF-8, U+2581 for a space
  float score = 0;   // logarithm of the probability
  PieceType type = PieceType::kNormal;
};

/// A checked unigram model. The id of a piece is its index.
struct SpieceModel {
  std::vector<Piece> pieces;
  int64_t unknown_id = 0;
  int64_t end_id = 0;  // "</s>"
  int64_t pad_id = 0;  // "<pad>"
  /// "precompiled_charsmap": see CharacterMap. Empty for none.
  std::string character_map;
};

/// Reads and checks a model. `name` is for messages.
///
/// Fails with kMalformed when the bytes are no such file, a piece is empty, too long, not UTF-8,
/// there twice or has a score that is not finite, or when "<unk>", "</s>" or "<pad>" is missing or
/// not where the file says; with kUnsupported for BPE, word and character models, for models that
/// mark spaces in another way, and past the limits below.
Result<SpieceModel> parse_spiece_model(std::span<const std::byte> bytes, std::string_view name);

inline constexpr size_t kMaxModelBytes = size_t{16} << 20;  // that of UMT5 has 4.5 MB
inline constexpr size_t kMaxPieces = size_t{1} << 20;       // UMT5: 256,000
inline constexpr size_t kMaxPieceBytes = 256;

}  // namespace ultraflash

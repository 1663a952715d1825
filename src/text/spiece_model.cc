#include "text/spiece_model.h"

#include <bit>
#include <cmath>
#include <optional>
#include <unordered_map>
#include <utility>

#include "core/check.h"
#include "core/utf8.h"
#include "text/code_points.h"

namespace ultraflash {
namespace {

constexpr std::string_view kUnknownText = "<unk>";
constexpr std::string_view kEndText = "</s>";
constexpr std::string_view kPadText = "<pad>";

enum class WireType : uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

/// One field of a message: its number and its value, in the member that fits the wire type.
struct Field {
  uint64_t number = 0;
  WireType type = WireType::kVarint;
  uint64_t integer = 0;    // kVarint, kFixed64, kFixed32
  std::string_view bytes;  // kBytes
};

/// Reads the fields of one protocol buffer message in order.
class MessageReader {
 public:
  /// `origin` is the offset of `message` in the file, for messages.
  MessageReader(std::string_view message, size_t origin, std::string_view file)
      : message_(message), origin_(origin), file_(file) {}

  [[nodiscard]] bool done() const { return position_ == message_.size(); }
  /// Offset in the file of the next byte.
  [[nodiscard]] size_t offset() const { return origin_ + position_; }

  Result<Field> next() {
    Field field;
    UF_ASSIGN(const uint64_t tag, varint());
    field.number = tag >> 3;
    if (field.number == 0) return malformed("field number 0");
    switch (tag & 7) {
      case 0: {
        UF_ASSIGN(field.integer, varint());
        return field;
      }
      case 1:
        field.type = WireType::kFixed64;
        UF_TRY(fixed(8, field.integer));
        return field;
      case 2: {
        field.type = WireType::kBytes;
        UF_ASSIGN(const uint64_t size, varint());
        if (size > message_.size() - position_) {
          return malformed(fmt::format("a field of {} bytes where {} are left", size,
                                       message_.size() - position_));
        }
        field.bytes = message_.substr(position_, static_cast<size_t>(size));
        position_ += static_cast<size_t>(size);
        return field;
      }
      case 5:
        field.type = WireType::kFixed32;
        UF_TRY(fixed(4, field.integer));
        return field;
      default:
        return malformed(fmt::format("wire type {}", tag & 7));
    }
  }

  /// A reader of the message inside `field`, which next() returned last.
  [[nodiscard]] MessageReader inside(const Field& field) const {
    return {field.bytes, offset() - field.bytes.size(), file_};
  }

  [[nodiscard]] Status malformed(std::string_view what) const {
    return make_status(StatusCode::kMalformed,
                       "{}: {} before byte {}; not a SentencePiece model, or a damaged one", file_,
                       what, offset());
  }

 private:
  Result<uint64_t> varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (done()) return malformed("a number cut off at the end");
      const auto byte = static_cast<uint8_t>(message_[position_++]);
      if (shift == 63 && byte > 1) break;
      value |= uint64_t{byte & 0x7fU} << shift;
      if (byte < 0x80) return value;
    }
    return malformed("a number of more than 64 bits");
  }

  Status fixed(size_t size, uint64_t& value) {
    if (size > message_.size() - position_) return malformed("a number cut off at the end");
    for (size_t i = 0; i < size; ++i) {
      value |= uint64_t{static_cast<uint8_t>(message_[position_ + i])} << (8 * i);
    }
    position_ += size;
    return {};
  }

  std::string_view message_;
  size_t position_ = 0;
  size_t origin_;
  std::string_view file_;
};

/// What the settings in the file say, with the defaults of the format.
struct Settings {
  uint64_t model_type = 1;  // unigram
  bool space_as_suffix = false;
  bool escape_spaces = true;
  std::optional<int64_t> unknown_id, end_id, pad_id;
  std::string_view character_map;
};

/// Field numbers, of sentencepiece_model.proto.
namespace model_field {
constexpr uint64_t kPiece = 1, kTrainer = 2, kNormalizer = 3;
}
namespace piece_field {
constexpr uint64_t kText = 1, kScore = 2, kType = 3;
}
namespace trainer_field {
constexpr uint64_t kModelType = 3, kSpaceAsSuffix = 24, kUnknownId = 40, kEndId = 42, kPadId = 43;
}
namespace normalizer_field {
constexpr uint64_t kCharacterMap = 2, kEscapeSpaces = 5;
}

Status expect_type(const MessageReader& reader, const Field& field, WireType type) {
  if (field.type == type) return {};
  return reader.malformed(fmt::format("field {} of another type", field.number));
}

/// Proto integers of 32 bits are sent with their sign in 64.
int64_t as_signed(uint64_t value) { return std::bit_cast<int64_t>(value); }

Result<Piece> read_piece(MessageReader reader, size_t index) {
  Piece piece;
  while (!reader.done()) {
    UF_ASSIGN(const Field field, reader.next());
    if (field.number == piece_field::kText) {
      UF_TRY(expect_type(reader, field, WireType::kBytes));
      if (field.bytes.size() > kMaxPieceBytes) {
        return reader.malformed(fmt::format("piece {} has {} bytes, more than {}", index,
                                            field.bytes.size(), kMaxPieceBytes));
      }
      piece.text = field.bytes;
    } else if (field.number == piece_field::kScore) {
      UF_TRY(expect_type(reader, field, WireType::kFixed32));
      piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.integer));
    } else if (field.number == piece_field::kType) {
      UF_TRY(expect_type(reader, field, WireType::kVarint));
      if (field.integer < 1 || field.integer > 6) {
        return reader.malformed(fmt::format("piece {} of type {}", index, field.integer));
      }
      piece.type = static_cast<PieceType>(field.integer);
    }
  }
  if (piece.text.empty()) return reader.malformed(fmt::format("piece {} is empty", index));
  if (!validate_utf8(piece.text).ok()) {
    return reader.malformed(fmt::format("piece {} is not UTF-8", index));
  }
  if (!std::isfinite(piece.score)) {
    return reader.malformed(fmt::format("the score of piece {} is not finite", index));
  }
  return piece;
}

Status read_trainer(MessageReader reader, Settings& settings) {
  while (!reader.done()) {
    UF_ASSIGN(const Field field, reader.next());
    switch (field.number) {
      case trainer_field::kModelType:
        settings.model_type = field.integer;
        break;
      case trainer_field::kSpaceAsSuffix:
        settings.space_as_suffix = field.integer != 0;
        break;
      case trainer_field::kUnknownId:
        settings.unknown_id = as_signed(field.integer);
        break;
      case trainer_field::kEndId:
        settings.end_id = as_signed(field.integer);
        break;
      case trainer_field::kPadId:
        settings.pad_id = as_signed(field.integer);
        break;
      default:
        continue;
    }
    UF_TRY(expect_type(reader, field, WireType::kVarint));
  }
  return {};
}

Status read_normalizer(MessageReader reader, Settings& settings) {
  while (!reader.done()) {
    UF_ASSIGN(const Field field, reader.next());
    if (field.number == normalizer_field::kCharacterMap) {
      UF_TRY(expect_type(reader, field, WireType::kBytes));
      settings.character_map = field.bytes;
    } else if (field.number == normalizer_field::kEscapeSpaces) {
      UF_TRY(expect_type(reader, field, WireType::kVarint));
      settings.escape_spaces = field.integer != 0;
    }
  }
  return {};
}

Status check_settings(const Settings& settings, std::string_view name) {
  constexpr std::string_view kTypes[] = {"", "unigram", "BPE", "word", "character"};
  if (settings.model_type != 1) {
    return make_status(
        StatusCode::kUnsupported, "{}: a {} model; only unigram models (T5, UMT5) are read", name,
        settings.model_type < std::size(kTypes) ? kTypes[settings.model_type] : "new kind of");
  }
  if (settings.space_as_suffix || !settings.escape_spaces) {
    return make_status(StatusCode::kUnsupported,
                       "{}: spaces are not marked at the start of a word with U+2581, as T5 does",
                       name);
  }
  return {};
}

/// Id of the piece `text`, which `expected`, when the file has it, must confirm.
Result<int64_t> special_id(const std::unordered_map<std::string_view, int64_t>& ids,
                           std::string_view text, std::optional<int64_t> expected,
                           std::string_view name) {
  const auto found = ids.find(text);
  if (found == ids.end()) {
    return make_status(StatusCode::kMalformed,
                       "{}: no piece \"{}\", which T5 and UMT5 need; train the model with it", name,
                       text);
  }
  if (expected.has_value() && *expected >= 0 && *expected != found->second) {
    return make_status(StatusCode::kMalformed,
                       "{}: piece \"{}\" is number {}, but the settings in the file say {}", name,
                       text, found->second, *expected);
  }
  return found->second;
}

}  // namespace

Result<SpieceModel> parse_spiece_model(std::span<const std::byte> bytes, std::string_view name) {
  if (bytes.size() > kMaxModelBytes) {
    return make_status(StatusCode::kUnsupported, "{}: {} bytes, more than the {} that are read",
                       name, bytes.size(), kMaxModelBytes);
  }
  SpieceModel model;
  Settings settings;
  MessageReader reader({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, 0, name);
  while (!reader.done()) {
    UF_ASSIGN(const Field field, reader.next());
    if (field.number > model_field::kNormalizer) continue;
    UF_TRY(expect_type(reader, field, WireType::kBytes));
    if (field.number == model_field::kPiece) {
      if (model.pieces.size() == kMaxPieces) {
        return make_status(StatusCode::kUnsupported, "{}: more than {} pieces", name, kMaxPieces);
      }
      UF_ASSIGN(Piece piece, read_piece(reader.inside(field), model.pieces.size()));
      model.pieces.push_back(std::move(piece));
    } else if (field.number == model_field::kTrainer) {
      UF_TRY(read_trainer(reader.inside(field), settings));
    } else {
      UF_TRY(read_normalizer(reader.inside(field), settings));
    }
  }
  if (model.pieces.empty()) {
    return make_status(StatusCode::kMalformed, "{}: no pieces; not a SentencePiece model", name);
  }
  UF_TRY(check_settings(settings, name));
  model.character_map = settings.character_map;

  std::unordered_map<std::string_view, int64_t> ids;
  ids.reserve(model.pieces.size());
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const auto [existing, inserted] = ids.emplace(model.pieces[i].text, static_cast<int64_t>(i));
    if (!inserted) {
      return make_status(StatusCode::kMalformed, "{}: pieces {} and {} are the same", name,
                         existing->second, i);
    }
  }
  UF_ASSIGN(model.unknown_id, special_id(ids, kUnknownText, settings.unknown_id.value_or(0), name));
  UF_ASSIGN(model.end_id, special_id(ids, kEndText, settings.end_id, name));
  UF_ASSIGN(model.pad_id, special_id(ids, kPadText, settings.pad_id, name));
  if (model.pieces[static_cast<size_t>(model.unknown_id)].type != PieceType::kUnknown) {
    return make_status(StatusCode::kMalformed, "{}: piece \"{}\" is not marked as the unknown one",
                       name, kUnknownText);
  }
  return model;
}

}  // namespace ultraflash

// What the tests of src/text share: SentencePiece models made in memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "core/bytes.h"
#include "support/files.h"

namespace ultraflash {

/// Writes protocol buffer fields.
class MessageWriter {
 public:
  MessageWriter& varint(uint64_t number, uint64_t value) {
    put(number << 3);
    put(value);
    return *this;
  }
  MessageWriter& bytes(uint64_t number, std::string_view value) {
    put(number << 3 | 2);
    put(value.size());
    text_ += value;
    return *this;
  }
  MessageWriter& fixed32(uint64_t number, float value) {
    put(number << 3 | 5);
    char raw[4];
    std::memcpy(raw, &value, 4);
    text_.append(raw, 4);
    return *this;
  }
  MessageWriter& raw(std::string_view bytes) {
    text_ += bytes;
    return *this;
  }
  [[nodiscard]] const std::string& str() const { return text_; }

 private:
  void put(uint64_t value) {
    for (; value >= 0x80; value >>= 7) text_.push_back(static_cast<char>(value | 0x80));
    text_.push_back(static_cast<char>(value));
  }
  std::string text_;
};

/// A piece of a model as the file has it; type 1 is a normal one.
inline std::string piece_message(std::string_view text, float score = 0, uint64_t type = 1) {
  return MessageWriter().bytes(1, text).fixed32(2, score).varint(3, type).str();
}

/// A model with <pad>, </s>, <s>, <unk> and `pieces`, messages made by piece_message().
inline std::string model_with(std::initializer_list<std::string> pieces,
                              const std::string& trainer = {}, const std::string& normalizer = {}) {
  MessageWriter model;
  model.bytes(1, piece_message("<pad>", 0, 3)).bytes(1, piece_message("</s>", 0, 3));
  model.bytes(1, piece_message("<s>", 0, 3)).bytes(1, piece_message("<unk>", 0, 2));
  for (const std::string& piece : pieces) model.bytes(1, piece);
  model.bytes(2, MessageWriter()
                     .varint(3, 1)
                     .varint(40, 3)
                     .varint(41, 2)
                     .varint(42, 1)
                     .varint(43, 0)
                     .raw(trainer)
                     .str());
  model.bytes(3, normalizer);
  return model.str();
}

}  // namespace ultraflash

// JSON from files that nobody vouches for.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {

struct JsonLimits {
  uint32_t max_bytes = uint32_t{1} << 30;
  int max_depth = 16;                     // of nested objects and arrays
  int64_t max_values = int64_t{4} << 20;  // in the whole document
};

class JsonDocument;
struct JsonMember;

/// A value of a document, which must outlive it. Cheap to copy.
class JsonValue {
 public:
  enum class Kind : uint8_t { kNull, kBool, kUnsigned, kNegative, kReal, kText, kArray, kObject };

  [[nodiscard]] Kind kind() const;
  [[nodiscard]] bool is_object() const { return kind() == Kind::kObject; }
  [[nodiscard]] bool is_array() const { return kind() == Kind::kArray; }
  /// Nothing unless it is a whole number without sign.
  [[nodiscard]] std::optional<uint64_t> unsigned_number() const;
  /// Nothing unless it is a text.
  [[nodiscard]] std::optional<std::string_view> text() const;
  /// Number of elements of an array or members of an object; 0 for other values.
  [[nodiscard]] size_t size() const;
  /// The member with this key; nothing when there is none, or when it is no object. Takes time in
  /// proportion to size().
  [[nodiscard]] std::optional<JsonValue> find(std::string_view key) const;
  /// As JSON without spaces, for messages; what lies past `max_bytes` may be left out.
  [[nodiscard]] std::string to_string(size_t max_bytes = SIZE_MAX) const;

  /// `for (const auto& [key, value] : object)`, in the order of the file; elements of an array have
  /// no key. Other values have nothing inside.
  class Iterator;
  [[nodiscard]] Iterator begin() const;
  [[nodiscard]] Iterator end() const;

 private:
  friend class JsonDocument;
  JsonValue(const JsonDocument* document, size_t index) : document_(document), index_(index) {}
  void append_to(std::string& out, size_t max_bytes) const;

  const JsonDocument* document_;
  size_t index_;
};

struct JsonMember {
  std::string_view key;
  JsonValue value;
};

class JsonValue::Iterator {
 public:
  [[nodiscard]] JsonMember operator*() const;
  Iterator& operator++();
  [[nodiscard]] bool operator==(const Iterator& other) const { return index_ == other.index_; }

 private:
  friend class JsonValue;
  Iterator(const JsonDocument* document, size_t index, bool has_keys)
      : document_(document), index_(index), has_keys_(has_keys) {}
  [[nodiscard]] size_t value_index() const { return index_ + (has_keys_ ? 1 : 0); }

  const JsonDocument* document_;
  size_t index_;
  bool has_keys_;
};

/// A document as two arrays, whatever it holds: a hostile one cannot make many small allocations,
/// and letting it go needs no memory (nlohmann::json's destructor does, and ends the program when
/// there is none).
class JsonDocument {
 public:
  [[nodiscard]] JsonValue root() const { return {this, 0}; }

 private:
  friend class JsonValue;
  friend class JsonBuilder;

  // Values stand in the order of the text, so that a container is followed by what it holds: the
  // elements of an array, or a key (kText) and a value for every member of an object.
  struct Node {
    JsonValue::Kind kind = JsonValue::Kind::kNull;
    uint32_t size = 0;  // bytes of a text; elements or members
    uint64_t bits = 0;  // number, place of a text in texts_, index behind the last value inside
  };

  [[nodiscard]] std::string_view text(size_t index) const {
    return std::string_view(texts_).substr(static_cast<size_t>(nodes_[index].bits),
                                           nodes_[index].size);
  }
  /// Index of the value that follows the one at `index` and all that it holds.
  [[nodiscard]] size_t behind(size_t index) const;

  std::vector<Node> nodes_;
  std::string texts_;
};

/// `text` as one JSON value. On top of the grammar: a key twice in one object, nesting or a number
/// of values past the limits, and invalid UTF-8 are kMalformed. Messages start with `label`.
Result<JsonDocument> parse_json_document(std::string_view text, std::string_view label,
                                         const JsonLimits& limits = {});

/// As parse_json_document(), with the same checks, as a tree of nlohmann's: for small texts such as
/// settings. Letting go of such a tree needs memory, so it is not for checkpoints.
Result<nlohmann::json> parse_strict_json(std::string_view text, std::string_view label,
                                         const JsonLimits& limits = {});

/// `text`, which is UTF-8, as JSON has it: in quotes, with escapes.
std::string json_quoted(std::string_view text);

}  // namespace ultraflash

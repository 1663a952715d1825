#include "weights/strict_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/check.h"
#include "core/utf8.h"

namespace ultraflash {

using Kind = JsonValue::Kind;

// Builds the document from the parser's events; an event that returns false stops the parser,
// which uses no recursion of its own.
class JsonBuilder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit JsonBuilder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return add({Kind::kNull, 0, 0}); }
  bool boolean(bool value) override { return add({Kind::kBool, 0, value ? 1U : 0U}); }
  bool number_integer(number_integer_t value) override {
    return add({Kind::kNegative, 0, std::bit_cast<uint64_t>(value)});
  }
  bool number_unsigned(number_unsigned_t value) override {
    return add({Kind::kUnsigned, 0, value});
  }
  bool number_float(number_float_t value, const string_t& /*text*/) override {
    return add({Kind::kReal, 0, std::bit_cast<uint64_t>(value)});
  }
  bool string(string_t& value) override { return add(text_node(value)); }
  bool binary(binary_t& /*value*/) override { return fail("binary data in a text"); }
  bool start_object(std::size_t /*size*/) override { return open(Kind::kObject); }
  bool start_array(std::size_t /*size*/) override { return open(Kind::kArray); }
  bool end_object() override {
    const std::optional<std::string> repeated = repeated_key(open_.back());
    if (repeated) {
      return fail(fmt::format("the key \"{}\" appears twice", printable(*repeated, 80)));
    }
    return close();
  }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    nodes().push_back(text_node(name));
    return true;
  }

  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    return fail(fmt::format("byte {} is not valid JSON", position));
  }

  [[nodiscard]] const std::string& problem() const { return problem_; }
  JsonDocument take() { return std::move(document_); }

 private:
  using Node = JsonDocument::Node;

  std::vector<Node>& nodes() { return document_.nodes_; }

  bool fail(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }

  // Sizes fit: the text is shorter than JsonLimits::max_bytes.
  Node text_node(const std::string& text) {
    const Node node{Kind::kText, static_cast<uint32_t>(text.size()), document_.texts_.size()};
    document_.texts_ += text;
    return node;
  }

  bool add(const Node& node) {
    if (++values_ > limits_.max_values) {
      return fail(fmt::format("more than {} values", limits_.max_values));
    }
    if (!open_.empty()) ++nodes()[open_.back()].size;
    nodes().push_back(node);
    return true;
  }

  bool open(Kind kind) {
    if (open_.size() >= static_cast<size_t>(limits_.max_depth)) {
      return fail(fmt::format("nested deeper than {} levels", limits_.max_depth));
    }
    if (!add({kind, 0, 0})) return false;
    open_.push_back(nodes().size() - 1);
    return true;
  }

  bool close() {
    nodes()[open_.back()].bits = nodes().size();
    open_.pop_back();
    return true;
  }

  // Of the object at `index`, whose members are all there.
  std::optional<std::string> repeated_key(size_t index) {
    std::vector<std::string_view> keys;
    keys.reserve(nodes()[index].size);
    for (size_t i = index + 1; i < nodes().size(); i = document_.behind(i + 1)) {
      keys.push_back(document_.text(i));
    }
    std::sort(keys.begin(), keys.end());
    const auto found = std::adjacent_find(keys.begin(), keys.end());
    if (found == keys.end()) return std::nullopt;
    return std::string(*found);
  }

  JsonLimits limits_;
  JsonDocument document_;
  std::vector<size_t> open_;  // containers not yet closed
  int64_t values_ = 0;
  std::string problem_;
};

size_t JsonDocument::behind(size_t index) const {
  const Node& node = nodes_[index];
  const bool is_container = node.kind == Kind::kArray || node.kind == Kind::kObject;
  return is_container ? static_cast<size_t>(node.bits) : index + 1;
}

Kind JsonValue::kind() const { return document_->nodes_[index_].kind; }

std::optional<uint64_t> JsonValue::unsigned_number() const {
  if (kind() != Kind::kUnsigned) return std::nullopt;
  return document_->nodes_[index_].bits;
}

std::optional<std::string_view> JsonValue::text() const {
  if (kind() != Kind::kText) return std::nullopt;
  return document_->text(index_);
}

size_t JsonValue::size() const {
  return is_array() || is_object() ? document_->nodes_[index_].size : 0;
}

JsonValue::Iterator JsonValue::begin() const {
  return {document_, size() == 0 ? document_->behind(index_) : index_ + 1, is_object()};
}
JsonValue::Iterator JsonValue::end() const {
  return {document_, document_->behind(index_), is_object()};
}

JsonMember JsonValue::Iterator::operator*() const {
  return {has_keys_ ? document_->text(index_) : std::string_view(),
          JsonValue(document_, value_index())};
}

JsonValue::Iterator& JsonValue::Iterator::operator++() {
  index_ = document_->behind(value_index());
  return *this;
}

std::optional<JsonValue> JsonValue::find(std::string_view key) const {
  if (!is_object()) return std::nullopt;
  for (const auto& [name, value] : *this) {
    if (name == key) return value;
  }
  return std::nullopt;
}

void JsonValue::append_to(std::string& out, size_t max_bytes) const {
  const uint64_t bits = document_->nodes_[index_].bits;
  switch (kind()) {
    case Kind::kNull:
      out += "null";
      return;
    case Kind::kBool:
      out += bits != 0 ? "true" : "false";
      return;
    case Kind::kUnsigned:
      out += fmt::format("{}", bits);
      return;
    case Kind::kNegative:
      out += fmt::format("{}", std::bit_cast<int64_t>(bits));
      return;
    case Kind::kReal:
      out += fmt::format("{}", std::bit_cast<double>(bits));
      return;
    case Kind::kText:
      out += json_quoted(document_->text(index_));
      return;
    case Kind::kArray:
    case Kind::kObject:
      break;
  }
  out += is_object() ? '{' : '[';
  for (const auto& [key, value] : *this) {
    if (out.size() > max_bytes) return;
    if (out.back() != '{' && out.back() != '[') out += ',';
    if (is_object()) out += json_quoted(key) + ':';
    value.append_to(out, max_bytes);
  }
  out += is_object() ? '}' : ']';
}

std::string JsonValue::to_string(size_t max_bytes) const {
  std::string out;
  append_to(out, max_bytes);
  return out;
}

Result<JsonDocument> parse_json_document(std::string_view text, std::string_view label,
                                         const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return make_status(StatusCode::kMalformed, "{}: {} bytes, more than the {} allowed", label,
                       text.size(), limits.max_bytes);
  }
  JsonBuilder builder(limits);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
    return make_status(StatusCode::kMalformed, "{}: {}", label, builder.problem());
  }
  return builder.take();
}

Result<nlohmann::json> parse_strict_json(std::string_view text, std::string_view label,
                                         const JsonLimits& limits) {
  UF_TRY(parse_json_document(text, label, limits).status());
  return nlohmann::json::parse(text.begin(), text.end());
}

std::string json_quoted(std::string_view text) { return nlohmann::json(text).dump(); }

}  // namespace ultraflash

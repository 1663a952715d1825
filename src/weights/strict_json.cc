#include "weights/strict_json.h"

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "weights/names.h"

namespace ultraflash {
namespace {

using Json = nlohmann::json;

// Builds the document from the parser's events; an event that returns false stops the parser,
// which uses no recursion of its own.
class StrictBuilder : public nlohmann::json_sax<Json> {
 public:
  explicit StrictBuilder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t& /*text*/) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t& /*value*/) override { return fail("binary data in a text"); }
  bool start_object(std::size_t /*size*/) override { return open(Json::object()); }
  bool start_array(std::size_t /*size*/) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    const auto [position, fresh] = open_.back()->emplace(name, nullptr);
    if (!fresh) return fail(fmt::format("the key \"{}\" appears twice", printable(name, 80)));
    member_ = &*position;
    return true;
  }

  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    return fail(fmt::format("byte {} is not valid JSON", position));
  }

  [[nodiscard]] const std::string& problem() const { return problem_; }
  Json take() { return std::move(root_); }

 private:
  bool fail(std::string problem) {
    problem_ = std::move(problem);
    return false;
  }

  Json* place(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (member_ != nullptr) {
      *member_ = std::move(value);
      return std::exchange(member_, nullptr);
    }
    open_.back()->push_back(std::move(value));
    return &open_.back()->back();
  }

  bool count() {
    if (++values_ > limits_.max_values) {
      return fail(fmt::format("more than {} values", limits_.max_values));
    }
    return true;
  }

  bool add(Json value) {
    if (!count()) return false;
    place(std::move(value));
    return true;
  }

  bool open(Json value) {
    if (!count()) return false;
    if (open_.size() >= static_cast<size_t>(limits_.max_depth)) {
      return fail(fmt::format("nested deeper than {} levels", limits_.max_depth));
    }
    open_.push_back(place(std::move(value)));
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  JsonLimits limits_;
  Json root_;
  std::vector<Json*> open_;  // containers not yet closed; only the innermost one grows
  Json* member_ = nullptr;   // where the value of the last key goes
  int64_t values_ = 0;
  std::string problem_;
};

}  // namespace

Result<nlohmann::json> parse_strict_json(std::string_view text, std::string_view label,
                                         const JsonLimits& limits) {
  StrictBuilder builder(limits);
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
    return make_status(StatusCode::kMalformed, "{}: {}", label, builder.problem());
  }
  return builder.take();
}

}  // namespace ultraflash

#include "weights/names.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace ultraflash {
namespace {

// Length of the UTF-8 sequence at the start of `text`, or 0 when it is not one (truncated,
// overlong, a surrogate, or past U+10FFFF).
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned>(static_cast<unsigned char>(text[i])) : 0U;
  };
  const auto continues = [&](size_t i) { return (byte(i) & 0xc0U) == 0x80U; };
  const unsigned first = byte(0);
  if (first < 0x80U) return 1;
  if (first >= 0xc2U && first <= 0xdfU) return continues(1) ? 2 : 0;
  if (first >= 0xe0U && first <= 0xefU) {
    const bool overlong = first == 0xe0U && byte(1) < 0xa0U;
    const bool surrogate = first == 0xedU && byte(1) > 0x9fU;
    return continues(1) && continues(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (first >= 0xf0U && first <= 0xf4U) {
    const bool overlong = first == 0xf0U && byte(1) < 0x90U;
    const bool too_large = first == 0xf4U && byte(1) > 0x8fU;
    return continues(1) && continues(2) && continues(3) && !overlong && !too_large ? 4 : 0;
  }
  return 0;
}

bool is_control(std::string_view text) {
  const auto c = static_cast<unsigned char>(text.front());
  return c < 0x20 || c == 0x7f;
}

constexpr std::array<std::string_view, 3> kWrapperParts = {
    "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."};
constexpr std::array<std::string_view, 3> kHeadsBesideTheModel = {
    "_cls_pred_branch.", "_register_tokens.", "_gan_ca_blocks."};

std::string without_wrapper_parts(std::string_view name) {
  std::string out;
  out.reserve(name.size());
  bool at_component = true;
  while (!name.empty()) {
    const auto* part = kWrapperParts.end();
    if (at_component) {
      part = std::find_if(kWrapperParts.begin(), kWrapperParts.end(),
                          [&](std::string_view p) { return name.substr(0, p.size()) == p; });
    }
    if (part != kWrapperParts.end()) {
      name.remove_prefix(part->size());
      continue;
    }
    at_component = name.front() == '.';
    out += name.front();
    name.remove_prefix(1);
  }
  return out;
}

bool stands_beside_the_model(std::string_view name) {
  return std::any_of(kHeadsBesideTheModel.begin(), kHeadsBesideTheModel.end(),
                     [&](std::string_view head) { return name.substr(0, head.size()) == head; });
}

void strip_common_prefix(std::span<std::string* const> names, std::string_view prefix) {
  bool any = false;
  for (const std::string* name : names) {
    if (stands_beside_the_model(*name)) continue;
    if (std::string_view(*name).substr(0, prefix.size()) != prefix ||
        name->size() == prefix.size()) {
      return;
    }
    any = true;
  }
  if (!any) return;
  for (std::string* name : names) {
    if (std::string_view(*name).substr(0, prefix.size()) == prefix) name->erase(0, prefix.size());
  }
}

}  // namespace

const char* tensor_name_problem(std::string_view name) {
  if (name.empty()) return "is empty";
  if (name.size() > kMaxTensorNameBytes) return "is longer than 1024 bytes";
  while (!name.empty()) {
    const size_t length = utf8_length(name);
    if (length == 0) return "is not valid UTF-8";
    if (is_control(name)) return "contains a control character";
    name.remove_prefix(length);
  }
  return nullptr;
}

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    std::string piece;
    if (length == 0 || is_control(text)) {
      piece = fmt::format("\\x{:02x}", static_cast<unsigned char>(text.front()));
    } else {
      piece = text.substr(0, length);
    }
    if (out.size() + piece.size() > max_bytes) return out + "...";
    out += piece;
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return out;
}

void clean_tensor_names(std::span<std::string* const> names) {
  for (std::string* name : names) {
    // A name made of wrapper parts alone stays as it is: an empty name would say nothing.
    std::string cleaned = without_wrapper_parts(*name);
    if (!cleaned.empty()) *name = std::move(cleaned);
  }
  strip_common_prefix(names, "module.");
  strip_common_prefix(names, "model.");
}

}  // namespace ultraflash

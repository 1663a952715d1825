#include "weights/names.h"

#include <algorithm>
#include <array>

#include "core/utf8.h"

namespace ultraflash {
namespace {

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
                          [&](std::string_view p) { return name.starts_with(p); });
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
                     [&](std::string_view head) { return name.starts_with(head); });
}

void strip_common_prefix(std::span<std::string* const> names, std::string_view prefix) {
  bool any = false;
  for (const std::string* name : names) {
    if (stands_beside_the_model(*name)) continue;
    if (!name->starts_with(prefix) || name->size() == prefix.size()) return;
    any = true;
  }
  if (!any) return;
  for (std::string* name : names) {
    if (name->starts_with(prefix)) name->erase(0, prefix.size());
  }
}

}  // namespace

const char* tensor_name_problem(std::string_view name) {
  if (name.empty()) return "is empty";
  if (name.size() > kMaxTensorNameBytes) return "is longer than 1024 bytes";
  while (!name.empty()) {
    const size_t length = utf8_length(name);
    if (length == 0) return "is not valid UTF-8";
    if (starts_with_control(name)) return "contains a control character";
    name.remove_prefix(length);
  }
  return nullptr;
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

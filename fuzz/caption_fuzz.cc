// Any text as a caption of the pocket world. What is understood has one or two objects and values
// that exist, and neither case nor spacing changes it.
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "train/world/caption.h"

namespace {

using namespace ultraflash::world;  // NOLINT(google-build-using-namespace): one program

/// Ends the run: what should hold for every input does not.
void require(bool condition) {
  if (!condition) std::abort();
}

template <typename Value>
void require_up_to(Value last, const std::optional<Value>& value) {
  require(!value.has_value() || *value <= last);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto scene = parse_caption(text);
  std::string other = "  ";
  for (const char c : text) {
    other += c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
    if (c == ' ') other += ' ';
  }
  if (size > 1000) other = text;  // longer texts may pass the limit by it
  const auto again = parse_caption(other);
  require(scene.ok() == again.ok());
  if (!scene.ok()) {
    require(scene.status().code() == ultraflash::StatusCode::kInvalidArgument);
    require(!scene.status().message().empty());
    return 0;
  }
  require(*scene == *again);
  require(scene->objects.size() == 1 || scene->objects.size() == 2);
  for (const NamedObject& object : scene->objects) {
    require_up_to(Shape::kCross, object.shape);
    require_up_to(Colour::kWhite, object.colour);
    require_up_to(Texture::kCheckered, object.texture);
    require_up_to(Size::kLarge, object.size);
    require_up_to(Motion::kBouncing, object.motion);
    require_up_to(Speed::kFast, object.speed);
  }
  require_up_to(Ground::kDarkGreen, scene->ground);
  return 0;
}

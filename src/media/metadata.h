// Rules for the key and value pairs of a video file. Internal to the media layer.
#pragma once

#include <string_view>

namespace ultraflash {

/// UTF-8 without zero bytes, where libav would end it.
bool is_metadata_text(std::string_view text);

/// True for the keys that containers write for themselves, such as "major_brand" (any case).
bool is_container_key(std::string_view key);

}  // namespace ultraflash

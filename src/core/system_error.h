// What the operating system says, as a Status.
#pragma once

#include <string_view>

#include "ultraflash/status.h"

namespace ultraflash {

/// "<path>: <what>: <reason>; <likely cure>" with the code that fits `error_number`: kNotFound for
/// a missing file or folder, kInvalidArgument for a folder where a file was meant (and the like),
/// kOutOfMemory, kIo for the rest. `what` is a part of a sentence: "cannot be read".
Status system_error(int error_number, std::string_view path, std::string_view what);

}  // namespace ultraflash

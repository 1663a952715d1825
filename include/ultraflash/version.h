// Version of the library.
#pragma once

namespace ultraflash {

/// "0.1.0": semantic versioning of the public API and the file formats.
const char* version();
/// Twelve hex digits of the commit this was configured at, or "unknown".
const char* commit();

}  // namespace ultraflash

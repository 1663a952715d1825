#include "core/exceptions.h"

namespace ultraflash {

Status status_of_exception(FunctionRef<std::string()> describe) {
  try {
    try {
      throw;
    } catch (const Error& error) {
      return error.status();
    } catch (const std::bad_alloc&) {
      return Status(StatusCode::kOutOfMemory, describe());
    }
  } catch (const std::bad_alloc&) {
    // Short enough for std::string to keep it without memory of its own.
    return Status(StatusCode::kOutOfMemory, "out of memory");
  }
}

}  // namespace ultraflash

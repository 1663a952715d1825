#include "core/system_error.h"

#include <cerrno>
#include <system_error>

#include "core/check.h"

namespace ultraflash {
namespace {

struct Advice {
  int error_number;
  StatusCode code;
  const char* cure;
};

constexpr Advice kAdvice[] = {
    {ENOENT, StatusCode::kNotFound, "check the spelling, and that the folder exists"},
    {ENOTDIR, StatusCode::kNotFound, "a part of the path is a file where a folder is expected"},
    {EISDIR, StatusCode::kInvalidArgument, "name a file inside the folder"},
    {ENAMETOOLONG, StatusCode::kInvalidArgument, "use a shorter name"},
    {ELOOP, StatusCode::kInvalidArgument, "the link points to itself"},
    {ENXIO, StatusCode::kInvalidArgument, "this kind of file cannot be used here"},
    {ENOMEM, StatusCode::kOutOfMemory, "free some memory"},
    {EACCES, StatusCode::kIo, "check the permissions of the file and of its folder"},
    {EPERM, StatusCode::kIo, "check the permissions of the file and of its folder"},
    {EROFS, StatusCode::kIo, "choose a folder on a file system that can be written"},
    {ENOSPC, StatusCode::kIo, "free some space or choose another disk"},
    {EDQUOT, StatusCode::kIo, "the quota of this user is used up; free some space"},
    {EFBIG, StatusCode::kIo, "the limit on file sizes is reached (see ulimit -f)"},
    {EPIPE, StatusCode::kIo, "the reader closed the pipe"},
    {EMFILE, StatusCode::kIo, "close some files or raise the limit (ulimit -n)"},
};

}  // namespace

Status system_error(int error_number, std::string_view path, std::string_view what) {
  // std::error_code's text, because strerror() is not safe with threads.
  const std::string reason = std::error_code(error_number, std::generic_category()).message();
  for (const Advice& advice : kAdvice) {
    if (advice.error_number != error_number) continue;
    return make_status(advice.code, "{}: {}: {}; {}", path, what, reason, advice.cure);
  }
  return make_status(StatusCode::kIo, "{}: {}: {}", path, what, reason);
}

}  // namespace ultraflash

#include "ultraflash/status.h"

#include <array>
#include <cstdio>
#include <cstdlib>

namespace ultraflash {
namespace {

// Exit statuses are part of the command line's interface (docs/command-line.md); a test walks this
// table, and `ultraflash --help` prints it. 1 is left free for "the command ran and its answer is
// no" (verify over its tolerance), 130 for a program stopped by a second Ctrl-C.
constexpr std::array<StatusCodeInfo, 13> kTable = {{
    {StatusCode::kOk, "ok", 0, 200, "done"},
    {StatusCode::kEnd, "end", 0, 200, "the stream has delivered everything"},
    {StatusCode::kInvalidArgument, "invalid_argument", 2, 400,
     "an option, argument or setting cannot be used"},
    {StatusCode::kNotFound, "not_found", 3, 404, "a file, recipe, tensor or device does not exist"},
    {StatusCode::kMalformed, "malformed", 4, 422,
     "a file does not follow its format, or weights do not fit the recipe"},
    {StatusCode::kUnsupported, "unsupported", 5, 501,
     "valid, but this build, device or model cannot do it"},
    {StatusCode::kOutOfMemory, "out_of_memory", 6, 507,
     "memory is exhausted, or a stated limit would be passed"},
    {StatusCode::kBusy, "busy", 7, 503, "in use by another program; try again later"},
    {StatusCode::kCancelled, "cancelled", 8, 499,
     "stopped by Ctrl-C or SIGTERM; what was made so far is complete and playable"},
    {StatusCode::kDeadline, "deadline", 9, 504, "a time limit passed"},
    {StatusCode::kDevice, "device", 10, 500, "an accelerator or its driver failed"},
    {StatusCode::kIo, "io", 11, 500,
     "reading or writing failed: disk full, permission, broken pipe"},
    {StatusCode::kInternal, "internal", 70, 500, "a defect of this program; please report it"},
}};

}  // namespace

std::span<const StatusCodeInfo> status_code_table() { return kTable; }

const StatusCodeInfo& status_code_info(StatusCode code) {
  for (const StatusCodeInfo& info : kTable) {
    if (info.code == code) return info;
  }
  return kTable.back();
}

std::string Status::to_string() const {
  if (ok()) return "ok";
  return std::string(status_code_info(code_).name) + ": " + message_;
}

namespace internal {

void die_on_empty_result(const Status& status) {
  std::fprintf(stderr, "ultraflash: a Result without a value was used: %s\n",
               status.to_string().c_str());
  std::abort();
}

}  // namespace internal
}  // namespace ultraflash

#include "ultraflash/status.h"

#include <array>
#include <cstdio>
#include <cstdlib>

namespace ultraflash {
namespace {

// Exit statuses are part of the command line's interface (docs/command-line.md); a test walks this
// table. 1 is left free for "the command ran and its answer is no" (verify over its tolerance).
constexpr std::array<StatusCodeInfo, 13> kTable = {{
    {StatusCode::kOk, "ok", 0, 200},
    {StatusCode::kEnd, "end", 0, 200},
    {StatusCode::kInvalidArgument, "invalid_argument", 2, 400},
    {StatusCode::kNotFound, "not_found", 3, 404},
    {StatusCode::kMalformed, "malformed", 4, 422},
    {StatusCode::kUnsupported, "unsupported", 5, 501},
    {StatusCode::kOutOfMemory, "out_of_memory", 6, 507},
    {StatusCode::kBusy, "busy", 7, 503},
    {StatusCode::kCancelled, "cancelled", 8, 499},
    {StatusCode::kDeadline, "deadline", 9, 504},
    {StatusCode::kDevice, "device", 10, 500},
    {StatusCode::kIo, "io", 11, 500},
    {StatusCode::kInternal, "internal", 70, 500},
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

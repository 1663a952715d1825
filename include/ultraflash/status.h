// Status, Result and Error: how every part of the library reports what went wrong.
//
// Library code never prints, exits or aborts on what came from outside. Whatever reads a file, a
// message or a setting returns Result<T>; operations and models, which run on checked input, throw
// one Error when the device fails, and the session turns it back into a Status.
#pragma once

#include <cstdint>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace ultraflash {

enum class StatusCode : int32_t {
  kOk = 0,
  kEnd,              // a stream has delivered everything it will deliver
  kInvalidArgument,  // a setting or argument cannot be used
  kNotFound,         // a file, recipe, tensor or device does not exist
  kMalformed,        // a file or message does not follow its format
  kUnsupported,      // valid, but this build, device or model cannot do it
  kOutOfMemory,      // host or device memory is exhausted, or would pass a stated limit
  kBusy,             // try again later: nothing is ready, or a queue is full
  kCancelled,        // the caller asked to stop
  kDeadline,         // a time limit passed
  kDevice,           // an accelerator or its driver failed
  kIo,               // reading or writing failed (disk full, permission, broken pipe)
  kInternal,         // a defect of this library
};

/// One row per code: the name used in messages and JSON, the exit status of the command line
/// program, the status of the HTTP server, and what the code means, for people.
struct StatusCodeInfo {
  StatusCode code;
  const char* name;
  int exit_status;
  int http_status;
  const char* meaning;
};

/// All codes in the order of the enumeration.
std::span<const StatusCodeInfo> status_code_table();

/// The row of `code`. Never fails: an unknown value maps to kInternal.
const StatusCodeInfo& status_code_info(StatusCode code);

/// The outcome of an operation without a value: a code, and one sentence for people.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  [[nodiscard]] bool ok() const { return code_ == StatusCode::kOk; }
  [[nodiscard]] StatusCode code() const { return code_; }
  /// Says where, what, the numbers and the likely cure. Empty when ok().
  [[nodiscard]] const std::string& message() const { return message_; }
  /// "malformed: wan.safetensors: ..." for logs.
  [[nodiscard]] std::string to_string() const;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

/// Thrown inside the library only, by operations and models; no Error crosses the public API.
class Error : public std::exception {
 public:
  explicit Error(Status status) : status_(std::move(status)) {}
  Error(StatusCode code, std::string message) : status_(code, std::move(message)) {}
  [[nodiscard]] const Status& status() const { return status_; }
  [[nodiscard]] const char* what() const noexcept override { return status_.message().c_str(); }

 private:
  Status status_;
};

namespace internal {
/// Ends the program: a Result without a value was dereferenced, a mistake of the calling code.
[[noreturn]] void die_on_empty_result(const Status& status);
}  // namespace internal

/// A value, or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT(google-explicit-constructor): by design
  Result(Status status) : status_(std::move(status)) {  // NOLINT(google-explicit-constructor)
    if (status_.ok())
      status_ = Status(StatusCode::kInternal, "a Result was made from an ok Status");
  }
  Result(StatusCode code, std::string message) : Result(Status(code, std::move(message))) {}

  [[nodiscard]] bool ok() const { return value_.has_value(); }
  explicit operator bool() const { return ok(); }
  /// Ok when there is a value.
  [[nodiscard]] const Status& status() const { return status_; }

  T& value() & { return require(); }
  const T& value() const& { return const_cast<Result*>(this)->require(); }
  T&& value() && { return std::move(require()); }
  T& operator*() & { return require(); }
  const T& operator*() const& { return const_cast<Result*>(this)->require(); }
  T&& operator*() && { return std::move(require()); }
  T* operator->() { return &require(); }
  const T* operator->() const { return &const_cast<Result*>(this)->require(); }

 private:
  T& require() {
    if (!value_.has_value()) internal::die_on_empty_result(status_);
    return *value_;
  }
  std::optional<T> value_;
  Status status_;
};

}  // namespace ultraflash

#define UF_CONCAT_INNER(a, b) a##b
#define UF_CONCAT(a, b) UF_CONCAT_INNER(a, b)

/// Returns the Status of `expression` from the enclosing function unless it is ok.
#define UF_TRY(expression)                                                                \
  do {                                                                                    \
    if (::ultraflash::Status uf_status = (expression); !uf_status.ok()) return uf_status; \
  } while (false)

/// `UF_ASSIGN(auto x, f())` declares x from a Result, or returns its Status.
#define UF_ASSIGN(declaration, expression) \
  UF_ASSIGN_INNER(UF_CONCAT(uf_result_, __LINE__), declaration, expression)
#define UF_ASSIGN_INNER(result, declaration, expression) \
  auto result = (expression);                            \
  if (!result.ok()) return result.status();              \
  declaration = *std::move(result)

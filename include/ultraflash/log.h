// Logging and progress: the library never prints; it calls what the caller gave it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace ultraflash {

enum class LogLevel : int32_t { kDebug, kInfo, kWarning, kError };

/// Receives one line without a line break. May be called from any thread, never concurrently for
/// one Logger.
using LogFn = std::function<void(LogLevel level, std::string_view line)>;

/// Cheap to copy; all copies share one callback. A default Logger drops everything.
class Logger {
 public:
  Logger() = default;
  explicit Logger(LogFn callback);

  void log(LogLevel level, std::string_view line) const;
  void debug(std::string_view line) const { log(LogLevel::kDebug, line); }
  void info(std::string_view line) const { log(LogLevel::kInfo, line); }
  void warning(std::string_view line) const { log(LogLevel::kWarning, line); }
  void error(std::string_view line) const { log(LogLevel::kError, line); }

 private:
  struct Sink;
  std::shared_ptr<Sink> sink_;
};

/// What a long operation has done so far.
struct Progress {
  std::string_view stage;  // "loading generator", "frames", ...
  int64_t done = 0;
  int64_t total = 0;  // 0 when unknown
};

/// Returns false to ask the operation to stop; it then ends with kCancelled.
using ProgressFn = std::function<bool(const Progress&)>;

}  // namespace ultraflash

#include "ultraflash/log.h"

#include <mutex>

namespace ultraflash {

struct Logger::Sink {
  std::mutex mutex;
  LogFn callback;
};

Logger::Logger(LogFn callback) {
  if (!callback) return;
  sink_ = std::make_shared<Sink>();
  sink_->callback = std::move(callback);
}

void Logger::log(LogLevel level, std::string_view line) const {
  if (!sink_) return;
  const std::lock_guard lock(sink_->mutex);
  sink_->callback(level, line);
}

}  // namespace ultraflash

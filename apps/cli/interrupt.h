// Ctrl-C: the first asks a stream to end after its chunk, the second ends the program at once.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <thread>

namespace ultraflash::cli {

/// While it lives, SIGINT and SIGTERM are taken by a thread that says what the program is `doing`
/// about it and calls `on_first` once. A second
/// signal ends the program with ExitStatus::kStoppedAtOnce. Create it before other threads start.
class InterruptGuard {
 public:
  InterruptGuard(std::string doing, std::function<void()> on_first);
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  ~InterruptGuard();

  [[nodiscard]] bool interrupted() const { return interrupted_; }

 private:
  std::string doing_;
  std::function<void()> on_first_;
  std::atomic<bool> interrupted_{false};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace ultraflash::cli

#include "interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <utility>

#include "exit_status.h"

namespace ultraflash::cli {
namespace {

sigset_t watched_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

InterruptGuard::InterruptGuard(std::string doing, std::function<void()> on_first)
    : doing_(std::move(doing)), on_first_(std::move(on_first)) {
  const sigset_t set = watched_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this, set] {
    const timespec tick{0, 100'000'000};
    while (!stopping_) {
      if (sigtimedwait(&set, nullptr, &tick) < 0) continue;
      if (interrupted_.exchange(true)) _exit(static_cast<int>(ExitStatus::kStoppedAtOnce));
      std::fprintf(stderr, "\nultraflash: %s (again to stop at once)\n", doing_.c_str());
      on_first_();
    }
  });
}

InterruptGuard::~InterruptGuard() {
  stopping_ = true;
  thread_.join();
  const sigset_t set = watched_signals();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

}  // namespace ultraflash::cli

#include "interrupt.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <utility>

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

InterruptGuard::InterruptGuard(std::function<void()> on_first) : on_first_(std::move(on_first)) {
  const sigset_t set = watched_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this, set] {
    const timespec tick{0, 100'000'000};
    while (!stopping_) {
      if (sigtimedwait(&set, nullptr, &tick) < 0) continue;
      if (interrupted_.exchange(true)) _exit(130);
      std::fputs("\nultraflash: finishing the current chunk (again to stop at once)\n", stderr);
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

#include "train/parallel/launcher.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <thread>

#include "core/check.h"
#include "train/parallel/rank_group.h"

extern char** environ;

namespace ultraflash {
namespace {

// How long ranks that wait for a failed one get to end by themselves. One that waits inside NCCL
// never does.
constexpr double kGraceSeconds = 2.0;

sigset_t watched_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGCHLD}) sigaddset(&set, signal);
  return set;
}

double now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

Result<std::vector<std::string>> own_arguments() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  std::vector<std::string> arguments;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\0', begin), text.size());
    arguments.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  if (arguments.empty()) {
    return make_status(StatusCode::kUnsupported,
                       "/proc/self/cmdline cannot be read, so this program cannot start itself");
  }
  return arguments;
}

std::vector<char*> pointers_of(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& string : strings) pointers.push_back(string.data());
  pointers.push_back(nullptr);
  return pointers;
}

// The environment of a rank. Ranks on one host share its processors.
std::vector<std::string> environment_of(const RankGroup& group, int64_t rank) {
  std::vector<std::string> result;
  bool threads_set = false;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    result.emplace_back(*entry);
    threads_set = threads_set || result.back().starts_with("OMP_NUM_THREADS=");
  }
  if (!threads_set) {
    const auto processors = static_cast<int64_t>(std::thread::hardware_concurrency());
    result.push_back(
        fmt::format("OMP_NUM_THREADS={}", std::max<int64_t>(1, processors / group.size())));
  }
  result.push_back(group.environment_of(rank));
  return result;
}

// Ends its processes when it goes out of scope.
class Processes {
 public:
  Processes() = default;
  Processes(const Processes&) = delete;
  Processes& operator=(const Processes&) = delete;
  ~Processes() {
    signal_all(SIGKILL);
    for (const pid_t process : processes_) {
      while (process > 0 && waitpid(process, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
  }

  Status start(const RankGroup& group, std::vector<std::string>& arguments,
               const sigset_t& signals) {
    const std::vector<char*> argv = pointers_of(arguments);
    for (int64_t rank = 0; rank < group.size(); ++rank) {
      // All memory is taken before the fork: after it only calls safe in a signal handler are
      // allowed, as this process may have other threads.
      std::vector<std::string> variables = environment_of(group, rank);
      const std::vector<char*> envp = pointers_of(variables);
      const pid_t parent = getpid();
      const pid_t process = fork();
      if (process < 0) {
        return make_status(StatusCode::kOutOfMemory, "rank {} could not be started: {}", rank,
                           std::strerror(errno));
      }
      if (process == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(127);  // it died before the line above
        setpgid(0, 0);
        sigprocmask(SIG_SETMASK, &signals, nullptr);
        execve("/proc/self/exe", argv.data(), envp.data());
        _exit(127);
      }
      processes_.push_back(process);
    }
    return {};
  }

  void signal_all(int signal) const {
    for (const pid_t process : processes_) {
      if (process > 0) kill(process, signal);
    }
  }
  void signal_leader(int signal) const {
    if (!processes_.empty() && processes_[0] > 0) kill(processes_[0], signal);
  }
  [[nodiscard]] bool running() const {
    return std::any_of(processes_.begin(), processes_.end(), [](pid_t p) { return p > 0; });
  }

  struct Ended {
    int64_t rank = 0;
    int wait_status = 0;
  };
  /// A rank that has ended since the last call.
  std::optional<Ended> reap() {
    for (size_t i = 0; i < processes_.size(); ++i) {
      int wait_status = 0;
      if (processes_[i] > 0 && waitpid(processes_[i], &wait_status, WNOHANG) == processes_[i]) {
        processes_[i] = 0;
        return Ended{static_cast<int64_t>(i), wait_status};
      }
    }
    return std::nullopt;
  }

 private:
  std::vector<pid_t> processes_;  // 0: has ended
};

// What a rank's end says, empty when all is well.
Status status_of(const RankGroup& group, const Processes::Ended& ended) {
  const auto sentence = [&](StatusCode code, const std::string& what) {
    return make_status(code, "rank {} of {} {}; the other ranks were stopped", ended.rank,
                       group.size(), what);
  };
  if (WIFSIGNALED(ended.wait_status)) {
    const int signal = WTERMSIG(ended.wait_status);
    return sentence(StatusCode::kDevice,
                    fmt::format("was ended by signal {} ({})", signal, strsignal(signal)));
  }
  const int exit_status = WEXITSTATUS(ended.wait_status);
  if (exit_status == 0) return {};
  const std::optional<RankGroup::Failure> failure = group.failure();
  if (failure && failure->rank == ended.rank) {
    return sentence(failure->status.code(), fmt::format("failed: {}", failure->status.message()));
  }
  if (exit_status == 127) {
    return sentence(StatusCode::kInternal, "could not start this program again");
  }
  return sentence(StatusCode::kInternal, fmt::format("ended with exit status {}", exit_status));
}

// A rank that said why it failed comes before one that fell with it.
Status first_failure(const RankGroup& group, const Status& by_exit) {
  const std::optional<RankGroup::Failure> failure = group.failure();
  if (!failure) return by_exit;
  return make_status(failure->status.code(),
                     "rank {} of {} failed: {}; the other ranks were "
                     "stopped",
                     failure->rank, group.size(), failure->status.message());
}

}  // namespace

LaunchOutcome launch_ranks(int64_t ranks) {
  LaunchOutcome outcome;
  Result<std::unique_ptr<RankGroup>> group = RankGroup::create(ranks);
  Result<std::vector<std::string>> arguments = own_arguments();
  if (!group.ok() || !arguments.ok()) {
    outcome.status = group.ok() ? arguments.status() : group.status();
    return outcome;
  }
  const sigset_t watched = watched_signals();
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, &watched, &before);
  {
    Processes processes;
    outcome.status = processes.start(**group, *arguments, before);
    bool asked_to_stop = false;
    double deadline = 0.0;  // for the others, once a rank has failed; 0: none has
    while (outcome.status.ok() ? processes.running() : deadline > 0.0 && processes.running()) {
      const timespec tick{0, 100'000'000};
      const int signal = sigtimedwait(&watched, nullptr, &tick);
      if (signal == SIGINT || signal == SIGTERM) {
        if (asked_to_stop) {
          outcome.stopped_at_once = true;
          break;
        }
        asked_to_stop = true;
        processes.signal_leader(signal);
      }
      while (const std::optional<Processes::Ended> ended = processes.reap()) {
        const Status status = status_of(**group, *ended);
        if (status.ok() || deadline > 0.0) continue;
        outcome.status = first_failure(**group, status);
        (*group)->give_up();
        deadline = now() + kGraceSeconds;
      }
      if (deadline > 0.0 && now() > deadline) break;
    }
  }
  // A signal that came in the end stays blocked no longer than this.
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return outcome;
}

}  // namespace ultraflash

// Starts the ranks of a training run: this very program again, once a rank.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {

struct LaunchOutcome {
  Status status;                 // of the rank that failed first, in one sentence
  bool stopped_at_once = false;  // by a second signal
};

/// Runs `ranks` processes with this one's executable and arguments (RankGroup::from_environment
/// tells each its place) and waits for all. When one fails, the others are ended. The first SIGINT
/// or SIGTERM is passed on to rank 0, a second one ends all at once. The ranks are process groups
/// of their own, so that a terminal's Ctrl-C reaches them through here alone, and the kernel ends
/// them should this process be killed.
LaunchOutcome launch_ranks(int64_t ranks);

}  // namespace ultraflash

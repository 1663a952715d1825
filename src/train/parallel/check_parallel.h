// A test of what ranks train together with, apart from any training.
#pragma once

#include <string>

#include "ultraflash/status.h"

namespace ultraflash {

/// In a process of launch_ranks(): sums buffers of growing size over all ranks and checks every
/// value. Rank 0 returns a table of times and bandwidths, the others nothing. `device` as in
/// TrainOptions.
Result<std::string> check_parallel(const std::string& device);

}  // namespace ultraflash

// Calibration of dynamic cache management (ultra-flash-training 5.4): above which score of its last
// picture a chunk may go without its context pass, and whether a shrinking cache of the
// super-resolution transformer can be seen.
#pragma once

#include <ATen/ATen.h>

#include <filesystem>

#include "train/objective.h"

namespace ultraflash {

/// With the networks of a preference config: streams of config.preference.drift_groups groups for
/// held-out captions, with every context pass and with those skipped that score above quantiles of
/// all scores (stream/quality_score.h, as `generate --dcm-refresh sharpness`). What it finds goes
/// to the log and to `out`/cache_management.json, whose path it returns.
Result<std::filesystem::path> calibrate_cache_management(const TrainContext& context,
                                                         const std::filesystem::path& out);

/// Slope of the straight line through values [n] at 0, 1, ... with the least squared error.
double slope_of(const std::vector<double>& values);

}  // namespace ultraflash

// Clips made ahead of a run, for machines without video codecs and where degrading costs more time
// than a step: a folder that data.source reads.
#pragma once

#include <cstdint>
#include <filesystem>

#include "train/objective.h"

namespace ultraflash {

/// Writes clips 0 to `count` - 1 of config.data below `out` as
///   training/00000.y4m      at the largest of cascade.scales, bank.latent_frames long
///   training/00000.2x.y4m   small and damaged, for each of cascade.scales
///   training/00000.json     captions
/// and config.cascade.eval_clips held-out clips as held-out/00000.y4m and .json. A training clip is
/// damaged as a run with the same data.seed would damage it. y4m is 4:4:4 of 8 bits, which moves
/// colours by about one step. kInvalidArgument for latents and for a stage without pairs, kIo, and
/// what reading clips says.
Status prepare_clips(const TrainContext& context, int64_t count, const std::filesystem::path& out);

}  // namespace ultraflash

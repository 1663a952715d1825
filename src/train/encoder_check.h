// Files of tiny autoencoders that hold the decoder alone, as large ones are shipped: streams need
// no encoder, training does.
#pragma once

#include <string>

#include "stream/recipe_data.h"
#include "ultraflash/status.h"

namespace ultraflash {

struct TrainContext;

/// kNotFound, naming the file and what to do, when `init` (a file or folder as in config.init) has
/// no tensor of an encoder. An empty `init` stands for random numbers and passes.
Status require_encoder(const TrainContext& context, const std::string& init,
                       const DecoderSpec& spec);

}  // namespace ultraflash

// A quality score that needs no network, for refresh skipping.
#pragma once

#include <optional>

#include "ultraflash/engine.h"

namespace ultraflash {

/// Sharpness in [0, 1): v / (v + 100), v the mean squared Laplacian of the luma in grey levels. A
/// flat or blurred picture is near 0, one with crisp edges above 0.6.
std::optional<double> sharpness_score(const Picture& picture);

}  // namespace ultraflash

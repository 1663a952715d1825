// What the module of OpenCV's flow offers: one C function.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ultraflash::degrade {

inline constexpr const char* kFlowFile = "libultraflash_flow.so";
inline constexpr const char* kFlowName = "ultraflash_dense_flow";

/// Grey pictures [height, width] -> the way from each pixel of `from` to its place in `to`,
/// [height, width, 2], x first. 0, or 1 with a sentence in `message`.
using FlowFunction = int (*)(const uint8_t* from, const uint8_t* to, int height, int width,
                             float* flow, char* message, size_t message_bytes);

}  // namespace ultraflash::degrade

// Dense optical flow through OpenCV, from a module beside the program that builds with UF_OPENCV
// have. It is no part of the program: OpenCV and libtorch carry different versions of the same
// library (protobuf), so it is opened at the first use, with its own symbols before all others.
#pragma once

#include <ATen/ATen.h>

namespace ultraflash::degrade {

/// Whether the module is there and can be opened.
bool has_dense_flow();
/// As optical_flow() of motion.h, by dense inverse search at full resolution with its variational
/// refinement: it follows movements of many pixels and is smooth over flat places. Runs on the CPU,
/// one thread, so that the same clip gives the same flow. Sides of 16 pixels or more. Throws Error:
/// kUnsupported without the module, kInvalidArgument for what OpenCV refuses.
at::Tensor dense_flow(const at::Tensor& clip);

}  // namespace ultraflash::degrade

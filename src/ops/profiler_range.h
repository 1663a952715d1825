// Named spans of host time that profilers show (NVTX): stages and operations, beside the kernels
// that they queue.
#pragma once

namespace ultraflash {

/// From construction to destruction. Costs nothing to speak of while no profiler is attached, and
/// is nothing in builds without CUDA.
class ProfilerRange {
 public:
  explicit ProfilerRange(const char* name);
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;
  ~ProfilerRange();
};

}  // namespace ultraflash

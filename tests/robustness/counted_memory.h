// operator new under observation: how much is in use, and when it fails.
#pragma once

#include <cstdint>

namespace ultraflash::testing {

/// While it lives, allocations of this thread are counted and may fail.
class CountedMemory {
 public:
  enum class Failing : uint8_t { kOnce, kFromThenOn };
  static constexpr int64_t kNever = -1;

  /// The allocation number `fail_at`, from 0 on, throws std::bad_alloc.
  explicit CountedMemory(int64_t fail_at = kNever, Failing failing = Failing::kOnce);
  CountedMemory(const CountedMemory&) = delete;
  CountedMemory& operator=(const CountedMemory&) = delete;
  ~CountedMemory();

  /// Whether an allocation has failed.
  [[nodiscard]] bool has_failed() const;
  /// Most bytes in use at one time, of those allocated since it was made.
  [[nodiscard]] int64_t peak_bytes() const;
};

}  // namespace ultraflash::testing

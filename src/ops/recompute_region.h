// RecomputeRegion: marks a layer whose intermediate results may be thrown away and made again in
// the backward pass (Executor::begin_region).
#pragma once

#include <initializer_list>
#include <span>

#include "ops/executor.h"

namespace ultraflash {

class RecomputeRegion {
 public:
  explicit RecomputeRegion(Executor& ops) : ops_(ops) { ops_.begin_region(); }
  RecomputeRegion(const RecomputeRegion&) = delete;
  RecomputeRegion& operator=(const RecomputeRegion&) = delete;
  ~RecomputeRegion() {
    if (open_) ops_.drop_region();
  }

  /// Ends the region; `results` are what is used after it, besides caches that it wrote.
  void end(std::initializer_list<Tensor> results) {
    open_ = false;
    ops_.end_region(std::span(results.begin(), results.size()));
  }

 private:
  Executor& ops_;
  bool open_ = true;
};

}  // namespace ultraflash

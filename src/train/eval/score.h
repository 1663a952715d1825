// Measured scenes against what their captions asked for, and the table of it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "train/eval/measure.h"
#include "train/world/caption.h"

namespace ultraflash::world {

/// One thing a caption names, and whether the clip has it.
struct Check {
  std::string_view measure;  // one of kMeasures
  int object = 0;            // index in the caption; 0 for the background's
  bool right = false;
  std::string wanted;
  std::string seen;
};

/// Rows of the table that come straight from checks.
inline constexpr std::string_view kMeasures[] = {
    "colour", "background", "motion", "shape", "texture", "size", "speed", "spin", "gradient"};

/// Everything that `wanted` names and that can be seen at this size. The objects are paired in the
/// way that agrees best, colour before shape before the rest; one that is missing has nothing
/// right.
std::vector<Check> compare(const NamedScene& wanted, const MeasuredScene& seen);

struct Tally {
  int64_t right = 0;
  int64_t total = 0;

  void add(bool is_right) {
    right += is_right ? 1 : 0;
    ++total;
  }
};

/// Counts over clips, apart for scenes of one and of two objects.
struct ScoreRow {
  std::string name;
  Tally all;
  Tally one;
  Tally two;
};

class ScoreTable {
 public:
  ScoreTable();
  void add(const NamedScene& wanted, const std::vector<Check>& checks);
  /// kMeasures first; then "whole clip" (colour, shape and motion of every object, and the
  /// background); then "motion: left" and so on. Rows without a count are left out.
  [[nodiscard]] std::vector<ScoreRow> rows() const;
  /// The row of that name; zeros when there is none.
  [[nodiscard]] ScoreRow row(std::string_view name) const;
  [[nodiscard]] int64_t clips() const { return clips_; }

 private:
  std::vector<ScoreRow> rows_;
  int64_t clips_ = 0;
};

/// True when colour, shape, motion and background are right for every object.
bool whole_clip_right(const std::vector<Check>& checks);

}  // namespace ultraflash::world

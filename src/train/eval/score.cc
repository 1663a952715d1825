#include "train/eval/score.h"

#include <fmt/format.h>

#include <algorithm>

namespace ultraflash::world {
namespace {

std::string_view yes_no(bool value) { return value ? "yes" : "no"; }

template <typename Enum>
void check(std::vector<Check>& checks, std::string_view measure, int object,
           const std::optional<Enum>& wanted, const std::optional<Enum>& seen) {
  if (!wanted.has_value()) return;
  checks.push_back({measure, object, wanted == seen, std::string(name_of(*wanted)),
                    seen ? std::string(name_of(*seen)) : "nothing"});
}

// `textures` is false where the clip is too small to show them.
void check_object(std::vector<Check>& checks, int index, const NamedObject& wanted,
                  const MeasuredObject* seen, bool textures) {
  NamedObject is;
  if (seen != nullptr) {
    is.shape = seen->shape;
    is.colour = seen->colour;
    is.texture = seen->texture;
    is.size = seen->size;
    is.motion = seen->motion;
    is.spinning = seen->spinning;
    // One that should move and does not has no speed.
    if (seen->motion != Motion::kStill) is.speed = seen->speed;
  }
  check(checks, "colour", index, wanted.colour, is.colour);
  check(checks, "shape", index, wanted.shape, is.shape);
  check(checks, "motion", index, wanted.motion, is.motion);
  check(checks, "size", index, wanted.size, is.size);
  if (textures) check(checks, "texture", index, wanted.texture, is.texture);
  if (wanted.motion != Motion::kStill) check(checks, "speed", index, wanted.speed, is.speed);
  if (wanted.spinning.has_value()) {
    checks.push_back({"spin", index, wanted.spinning == is.spinning,
                      std::string(yes_no(*wanted.spinning)),
                      is.spinning ? std::string(yes_no(*is.spinning)) : "nothing"});
  }
}

int weight_of(std::string_view measure) {
  if (measure == "colour") return 100;
  if (measure == "shape") return 10;
  return 1;
}

std::vector<Check> check_objects(const NamedScene& wanted, const MeasuredScene& seen, bool swapped,
                                 bool textures) {
  std::vector<Check> checks;
  const auto count = std::ssize(wanted.objects);
  for (int i = 0; i < count; ++i) {
    const auto other = static_cast<size_t>(swapped ? count - 1 - i : i);
    check_object(checks, i, wanted.objects[static_cast<size_t>(i)],
                 other < seen.objects.size() ? &seen.objects[other] : nullptr, textures);
  }
  return checks;
}

int agreement(const std::vector<Check>& checks) {
  int sum = 0;
  for (const Check& c : checks) sum += c.right ? weight_of(c.measure) : 0;
  return sum;
}

bool part_of_whole(std::string_view measure) {
  return measure == "colour" || measure == "shape" || measure == "motion" ||
         measure == "background";
}

}  // namespace

std::vector<Check> compare(const NamedScene& wanted, const MeasuredScene& seen) {
  const bool textures =
      std::any_of(seen.objects.begin(), seen.objects.end(),
                  [](const MeasuredObject& object) { return object.texture.has_value(); });
  std::vector<Check> checks = check_objects(wanted, seen, /*swapped=*/false, textures);
  if (wanted.objects.size() == 2) {
    std::vector<Check> swapped = check_objects(wanted, seen, /*swapped=*/true, textures);
    if (agreement(swapped) > agreement(checks)) checks = std::move(swapped);
  }
  check(checks, "background", 0, wanted.ground, std::optional<Ground>(seen.ground));
  if (wanted.gradient.has_value()) {
    checks.push_back({"gradient", 0, *wanted.gradient == seen.gradient,
                      std::string(yes_no(*wanted.gradient)), std::string(yes_no(seen.gradient))});
  }
  return checks;
}

bool whole_clip_right(const std::vector<Check>& checks) {
  return std::all_of(checks.begin(), checks.end(),
                     [](const Check& c) { return c.right || !part_of_whole(c.measure); });
}

ScoreTable::ScoreTable() {
  for (const std::string_view name : kMeasures) rows_.push_back({std::string(name), {}, {}, {}});
  rows_.push_back({"whole clip", {}, {}, {}});
  for (const std::string_view name : kMotionNames) {
    rows_.push_back({fmt::format("motion: {}", name), {}, {}, {}});
  }
}

void ScoreTable::add(const NamedScene& wanted, const std::vector<Check>& checks) {
  const bool two = wanted.objects.size() == 2;
  const auto count = [this, two](std::string_view name, bool right) {
    const auto row = std::find_if(rows_.begin(), rows_.end(),
                                  [name](const ScoreRow& r) { return r.name == name; });
    if (row == rows_.end()) return;
    row->all.add(right);
    (two ? row->two : row->one).add(right);
  };
  for (const Check& c : checks) {
    count(c.measure, c.right);
    if (c.measure == "motion") count(fmt::format("motion: {}", c.wanted), c.right);
  }
  count("whole clip", whole_clip_right(checks));
  ++clips_;
}

std::vector<ScoreRow> ScoreTable::rows() const {
  std::vector<ScoreRow> counted;
  for (const ScoreRow& r : rows_) {
    if (r.all.total > 0) counted.push_back(r);
  }
  return counted;
}

ScoreRow ScoreTable::row(std::string_view name) const {
  for (const ScoreRow& r : rows_) {
    if (r.name == name) return r;
  }
  return {std::string(name), {}, {}, {}};
}

}  // namespace ultraflash::world

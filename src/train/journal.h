// What a run leaves for people: a log with one JSON object a line, curves and sheets as pictures.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "media/frame.h"
#include "ultraflash/status.h"

namespace ultraflash {

/// Names and values in the order in which they were measured.
using Measures = std::vector<std::pair<std::string, double>>;

class Journal {
 public:
  /// Appends to `out`/log.jsonl; what it holds already (of a run that is resumed, up to
  /// `resumed_step`) stays in the curves.
  static Result<Journal> open(const std::filesystem::path& out, int64_t resumed_step);

  /// One line: {"step": ..., "seconds": ..., ...}.
  Status add(int64_t step, double seconds, const Measures& measures);
  /// One line {"config": ...}; `json` is an object.
  Status add_config(const std::string& json);
  /// `out`/curves.png (or .ppm without libpng): every measure over the steps, one panel each.
  Status draw_curves() const;
  /// `out`/`name`.png or .ppm.
  Status save_picture(const std::string& name, const RgbImage& image) const;

 private:
  Status append(const std::string& line);

  std::filesystem::path out_;
  std::map<std::string, std::vector<std::pair<double, double>>> curves_;
};

/// "loss 0.0123  psnr 31.20"
std::string measures_text(const Measures& measures);

}  // namespace ultraflash

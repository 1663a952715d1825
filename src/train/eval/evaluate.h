// A folder of videos and captions, measured: what `ultraflash eval` does.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "media/frame.h"
#include "train/eval/scene_json.h"
#include "train/eval/score.h"

namespace ultraflash::world {

struct EvalOptions {
  std::string folder;              // with a captions.jsonl (see scene_json.h)
  std::vector<double> at = {0.0};  // seconds at which a window to measure begins
  double seconds = 5.25;           // of a window; what a video has of it, but at least half
  int threads = 0;                 // 0: all processors
  bool sheet_frames = false;       // keep frames for the contact sheet
  std::function<void(int64_t done, int64_t all)> progress;  // called under a lock
  std::function<bool()> interrupted;
};

struct ClipResult {
  std::string file;
  std::string caption;
  bool measured = false;  // false: the video has no frames at that time, or cannot be read:
  std::string failure;    // why; then everything that its caption names counts as wrong
  MeasuredScene seen;
  std::vector<Check> checks;
  std::vector<RgbImage> frames;  // of the contact sheet, six through the window
};

struct EvalWindow {
  double at = 0.0;
  ScoreTable table;
  std::vector<ClipResult> clips;  // in the order of captions.jsonl
};

struct EvalReport {
  std::string folder;
  std::vector<EvalWindow> windows;
};

/// kNotFound and what read_captions() says; kCancelled; the first reason where no video can be
/// read.
Result<EvalReport> evaluate(const EvalOptions& options);

std::string report_table(const EvalReport& report);
std::string report_json(const EvalReport& report);
/// Six frames a clip, a row each, of the first window; clips with something wrong first. Green and
/// red at the left tell whether colour, shape, motion and background are right.
Result<RgbImage> report_sheet(const EvalReport& report, int64_t max_clips);

/// Writes `count` full captions of scenes, held-out ones unless `split` says otherwise:
/// captions.jsonl for evaluate(), and captions.txt with one a line, for files named as `ultraflash
/// generate --prompt-file captions.txt --out clip.mp4` names them. With `render_scale` 1 to 3 the
/// videos are rendered too, `frames` frames each: the truth that the evaluator is checked with.
struct EvalSetOptions {
  std::string folder;
  int64_t count = 200;
  uint64_t seed = 1;
  Split split = Split::kHeldOut;
  int64_t render_scale = 0;
  int64_t frames = kClipFrames;
};
Status write_eval_set(const EvalSetOptions& options);

}  // namespace ultraflash::world

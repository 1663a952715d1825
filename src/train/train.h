// Training, seen from outside: plain types, no tensors. One call runs one stage of one config.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "ultraflash/log.h"
#include "ultraflash/status.h"

namespace ultraflash {

/// Where a run is; sent to TrainOptions::progress after every `log_every` steps.
struct TrainProgress {
  int64_t step = 0;   // steps done
  int64_t steps = 0;  // of the whole run
  double seconds = 0.0;
  double limit_seconds = 0.0;  // 0: none
  double step_seconds = 0.0;   // mean of the last interval
  std::string text;            // "loss 0.0123  psnr 31.2"
};

struct TrainOptions {
  std::filesystem::path config;
  std::filesystem::path out;     // checkpoints, log and pictures go here; created when missing
  bool resume = false;           // go on from the newest checkpoint in `out`, if there is one
  std::string device = "cpu";    // "cpu", "cuda", "cuda:N"
  int64_t ranks = 0;             // replaces the config's gpus, when positive
  int64_t steps = -1;            // replaces the config's, when not negative
  double minutes = 0.0;          // after which this process stops; 0: only config.minutes counts
  int64_t stop_after = -1;       // ends this process (not the run) after so many steps; for tests
  std::vector<std::string> set;  // "optimizer.lr=1e-3": overrides of single fields
  /// Nothing is read: networks and text embeddings are random numbers, clips are noise (data.source
  /// random). For trials of a config's speed and memory.
  bool random_weights = false;
  bool trial = false;  // writes the log alone: no checkpoint, weights, pictures, measurements
  /// Writes the text embeddings of all captions of data.source (config.bank.clips of an endless
  /// one) to this file and trains nothing.
  std::filesystem::path write_embeddings;
  /// Writes a sheet of every degradation (degrade/degrade.h) to `out` and trains nothing.
  bool degradations = false;
  /// Writes so many clips to `out`, large and small and damaged (prepare.h), and trains nothing.
  int64_t prepare = 0;
  /// Measures what dynamic cache management may skip with the networks of a preference config
  /// (calibration.h), writes `out`/cache_management.json and trains nothing.
  bool calibrate = false;
  Logger log;
  /// Returns false to stop: the step in hand is finished and a checkpoint written.
  std::function<bool(const TrainProgress&)> progress;
  /// Polled after every step; true stops as progress() does. For signals.
  std::function<bool()> interrupted;
};

struct TrainSummary {
  int64_t step = 0;
  bool finished = false;                       // all steps, or the whole time, are done
  std::vector<std::filesystem::path> weights;  // published files written
  std::filesystem::path checkpoint;
};

/// Runs a stage until it is finished or asked to stop; a run that stops leaves a checkpoint to
/// resume from and the weights so far. kInvalidArgument for a config that cannot be; kNotFound for
/// missing weights or data; kUnsupported without the device.
Result<TrainSummary> run_training(const TrainOptions& options);

/// How many ranks the run has. More than one are processes: start them with launch_ranks()
/// (parallel/launcher.h), and in each call run_training() with the same options. Only rank 0 writes
/// files, logs and reports progress.
Result<int64_t> training_ranks(const TrainOptions& options);

/// The config as it would run, every field written out, after `set`.
Result<std::string> describe_training(const TrainOptions& options);

}  // namespace ultraflash

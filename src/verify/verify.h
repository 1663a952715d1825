// Replays recorded outputs of the reference networks ("golden files", docs/formats.md) on an
// executor and compares.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "ops/executor.h"
#include "ultraflash/log.h"
#include "ultraflash/status.h"

namespace ultraflash {

struct VerifyOptions {
  DType dtype = DType::kF32;
  /// Use the recorded block masks of the sparse SR DiT instead of choosing them.
  bool inject_masks = false;
  /// Largest relative error that passes. Absent: 1e-4 in f32, 3e-2 in 16-bit types.
  std::optional<double> tolerance;
  /// Smallest share of equal entries that a chosen mask may have.
  double mask_agreement = 0.0;  // 0: exact up to ties in f32 (1e-3 of the entries), 0.99 otherwise
};

/// One output of a file.
struct VerifyRow {
  std::string output;   // "out.flow.0.1"
  std::string measure;  // "relative error", "mask agreement", "equal"
  double value = 0.0;   // ||out - ref|| / ||ref||, or the share of equal entries
  double largest_difference = 0.0;
  int64_t worst_index = -1;  // flat index of it
  double limit = 0.0;
  bool ok = false;
};

struct VerifyReport {
  std::string file;
  std::string module;
  std::vector<VerifyRow> rows;
  [[nodiscard]] bool ok() const;
};

/// Replays one file. kMalformed when it is not a golden file, kUnsupported for a module that this
/// version does not know; a wrong result is no failure of the function but a row that is not ok.
Result<VerifyReport> verify_file(const std::filesystem::path& path, Executor& executor,
                                 const VerifyOptions& options);

/// The modules that verify_file knows.
std::vector<std::string> verifiable_modules();

}  // namespace ultraflash

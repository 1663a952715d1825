// What a traced clip of bench says: time and rate per operation, and a file for a trace viewer.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ultraflash/engine.h"
#include "ultraflash/status.h"

namespace ultraflash::cli {

/// Measured ceilings of a device; zeros where they are not known.
struct Ceilings {
  double tflops = 0.0;      // large products in bf16
  double tflops_fp8 = 0.0;  // the same in e4m3
  double tbytes = 0.0;      // a copy, read and written, TB/s
};
/// By the executor's description.
Ceilings ceilings_of(const std::string& device);

/// Operations of a stage with one shape in one row each, most time first: calls, ms in all, us a
/// call, TFLOP/s, TB/s, and the time that the nearer ceiling allows as a percentage of the
/// measured.
nlohmann::ordered_json operations_json(const std::vector<TraceEvent>& events,
                                       const Ceilings& ceilings, bool fp8);
void print_operations(const nlohmann::ordered_json& operations, size_t most);

/// Chrome's trace format: stages and operations on the device, and what the host queued when.
Status write_trace(const std::string& path, const std::vector<TraceEvent>& events);

}  // namespace ultraflash::cli

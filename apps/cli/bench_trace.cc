#include "bench_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <tuple>

#include "settings.h"

namespace ultraflash::cli {
namespace {

// Products with fewer rows or narrower than this stay in bf16 (ops/cuda/cuda_products.cc).
constexpr double kLeastFp8Flops = 2.0 * 1024 * 1024 * 1024;

struct Sum {
  int64_t calls = 0;
  double seconds = 0.0;
  double flops = 0.0;
  double bytes = 0.0;
};

}  // namespace

Ceilings ceilings_of(const std::string& device) {
  // bench/cuda/h200.md: plain library calls at the cascade's own shapes.
  if (device.find("H200") != std::string::npos) return {790.0, 1500.0, 4.25};
  return {};
}

nlohmann::ordered_json operations_json(const std::vector<TraceEvent>& events,
                                       const Ceilings& ceilings, bool fp8) {
  std::map<std::tuple<std::string, std::string, std::string>, Sum> sums;
  for (const TraceEvent& event : events) {
    if (event.stage.empty()) continue;
    Sum& sum = sums[{event.stage, event.name, event.shape}];
    ++sum.calls;
    sum.seconds += event.seconds;
    sum.flops += event.flops;
    sum.bytes += event.bytes;
  }
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const auto& [key, sum] : sums) {
    const auto& [stage, name, shape] = key;
    const double seconds = std::max(sum.seconds, 1e-12);
    nlohmann::ordered_json row = {
        {"stage", stage},
        {"operation", name},
        {"shape", shape},
        {"calls", sum.calls},
        {"ms", 1e3 * sum.seconds},
        {"us_per_call", 1e6 * sum.seconds / static_cast<double>(sum.calls)},
        {"tflops", 1e-12 * sum.flops / seconds},
        {"tbytes_per_second", 1e-12 * sum.bytes / seconds}};
    if (ceilings.tflops > 0.0) {
      const bool in_fp8 = fp8 && (name == "linear" || name == "feed_forward") &&
                          sum.flops / static_cast<double>(sum.calls) >= kLeastFp8Flops;
      const double by_flops = 1e-12 * sum.flops / (in_fp8 ? ceilings.tflops_fp8 : ceilings.tflops);
      const double by_bytes = 1e-12 * sum.bytes / ceilings.tbytes;
      row["bound"] = by_flops > by_bytes ? "operations" : "bytes";
      row["percent_of_ceiling"] = 100.0 * std::max(by_flops, by_bytes) / seconds;
    }
    rows.push_back(std::move(row));
  }
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) {
    return a["ms"].template get<double>() > b["ms"].template get<double>();
  });
  return rows;
}

void print_operations(const nlohmann::ordered_json& operations, size_t most) {
  fmt::print("  {:<10} {:<23} {:<34} {:>6} {:>9} {:>9} {:>8} {:>6} {:>5}\n", "stage", "operation",
             "shape", "calls", "ms", "us a call", "TFLOP/s", "TB/s", "of");
  for (size_t i = 0; i < std::min(most, operations.size()); ++i) {
    const auto& row = operations[i];
    fmt::print("  {:<10} {:<23} {:<34} {:>6} {:>9.2f} {:>9.1f} {:>8.1f} {:>6.2f} {:>5}\n",
               row["stage"].get<std::string>(), row["operation"].get<std::string>(),
               row["shape"].get<std::string>(), row["calls"].get<int64_t>(),
               row["ms"].get<double>(), row["us_per_call"].get<double>(),
               row["tflops"].get<double>(), row["tbytes_per_second"].get<double>(),
               row.contains("percent_of_ceiling")
                   ? fmt::format("{:.0f} %", row["percent_of_ceiling"].get<double>())
                   : std::string());
  }
}

Status write_trace(const std::string& path, const std::vector<TraceEvent>& events) {
  enum : int { kHost = 1, kStages, kOperations };
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (const auto& [thread, name] : {std::pair<int, const char*>{kHost, "host: queues"},
                                     {kStages, "device: stages"},
                                     {kOperations, "device: operations"}}) {
    all.push_back({{"name", "thread_name"},
                   {"ph", "M"},
                   {"pid", 1},
                   {"tid", thread},
                   {"args", {{"name", name}}}});
  }
  for (const TraceEvent& event : events) {
    const bool stage = event.stage.empty();
    nlohmann::ordered_json json = {{"name", event.name},
                                   {"cat", stage ? "stage" : event.stage},
                                   {"ph", "X"},
                                   {"ts", 1e6 * event.begin},
                                   {"dur", 1e6 * event.seconds},
                                   {"pid", 1},
                                   {"tid", event.on_host ? kHost
                                           : stage       ? kStages
                                                         : kOperations}};
    if (!stage) {
      json["args"] = {{"shape", event.shape}, {"flops", event.flops}, {"bytes", event.bytes}};
    }
    all.push_back(std::move(json));
  }
  std::ofstream file(path, std::ios::trunc);
  file << nlohmann::ordered_json{{"displayTimeUnit", "ms"}, {"traceEvents", all}}.dump() << "\n";
  if (!file.flush()) {
    return {StatusCode::kIo, fmt::format("{}: cannot be written: {}", path, std::strerror(errno))};
  }
  return {};
}

}  // namespace ultraflash::cli

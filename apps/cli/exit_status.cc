#include "exit_status.h"

#include <fmt/format.h>

#include <map>

namespace ultraflash::cli {

std::string exit_status_help() {
  std::map<int, std::string> rows = {
      {static_cast<int>(ExitStatus::kAnswerIsNo),
       "the command ran and its answer is no (verify: an output over its tolerance)"},
      {static_cast<int>(ExitStatus::kStoppedAtOnce),
       "stopped at once by a second Ctrl-C; what was being written stays as FILE.part"}};
  for (const StatusCodeInfo& info : status_code_table()) {
    rows.emplace(info.exit_status, info.meaning);
  }
  std::string text = "Exit statuses:\n";
  for (const auto& [status, meaning] : rows) text += fmt::format("  {:>3}  {}\n", status, meaning);
  return text;
}

}  // namespace ultraflash::cli

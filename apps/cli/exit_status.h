// Exit statuses of the program. Those of failures stand in the table of status codes
// (status_code_table); these are the two that no failure has. `ultraflash --help` prints all.
#pragma once

#include <string>

#include "ultraflash/status.h"

namespace ultraflash::cli {

enum class ExitStatus : int {
  kAnswerIsNo = 1,       // the command ran and its answer is no: verify over its tolerance
  kStoppedAtOnce = 130,  // a second Ctrl-C: what was being written stays as FILE.part
};

/// "Exit statuses:" and one line for each, for the help.
std::string exit_status_help();

}  // namespace ultraflash::cli

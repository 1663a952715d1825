// Options that state their unit, range and default in the help, and refuse what is outside.
//
// CLI11's own conversions are not used for numbers: they read "010" as eight, take -1 for a large
// unsigned number and cut what does not fit into 64 bits.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <concepts>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash::cli {

/// A decimal integer and nothing else; nothing when it is none or does not fit.
template <std::integral T>
std::optional<T> parse_integer(const std::string& text);
/// A finite decimal number and nothing else.
std::optional<double> parse_number(const std::string& text);
/// "8G", "500M", "1.5GiB", "1000000" in bytes; 0 for an empty text.
Result<uint64_t> parse_bytes(const std::string& text);

/// How the default is told: its value, or what an unset option means ("the recipe's").
struct Default {
  std::string text;
};

namespace internal {
CLI::Option* add_checked(CLI::App& app, const std::string& names, const std::string& help,
                         const std::string& placeholder, std::string range,
                         const Default& shown_default,
                         std::function<std::optional<std::string>(const std::string&)> assign);
}  // namespace internal

/// `names` as CLI11 wants them ("-s,--seconds"); what `variable` holds now is the default.
template <std::integral T>
CLI::Option* add_integer(CLI::App& app, const std::string& names, T& variable, T low, T high,
                         const std::string& help, const Default& shown = {}) {
  const std::string range = fmt::format("{} to {}", low, high);
  return internal::add_checked(
      app, names, help, "N", range,
      shown.text.empty() ? Default{fmt::format("{}", variable)} : shown,
      [&variable, low, high, range](const std::string& text) -> std::optional<std::string> {
        const std::optional<T> value = parse_integer<T>(text);
        if (!value || *value < low || *value > high) {
          return fmt::format("'{}' is not a whole number from {}", text.substr(0, 60), range);
        }
        variable = *value;
        return std::nullopt;
      });
}
CLI::Option* add_number(CLI::App& app, const std::string& names, double& variable, double low,
                        double high, const std::string& help, const Default& shown = {});
/// An amount of memory, kept as text (see parse_bytes).
CLI::Option* add_bytes(CLI::App& app, const std::string& names, std::string& variable,
                       const std::string& help, const Default& shown);
CLI::Option* add_choice(CLI::App& app, const std::string& names, std::string& variable,
                        const std::vector<std::string>& choices, const std::string& help,
                        const Default& shown = {});
/// Free text; `placeholder` says what of: FILE, FOLDER, TEXT.
CLI::Option* add_text(CLI::App& app, const std::string& names, std::string& variable,
                      const std::string& placeholder, const std::string& help,
                      const Default& shown = {});
/// Lets an environment variable stand in for the option, and says so in the help.
CLI::Option* from_environment(CLI::Option* option, const std::string& variable);

/// Wraps the descriptions of options to the width of a terminal.
class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter();
  std::string make_option(const CLI::Option* option, bool is_positional) const override;
};

/// Gives the options of `command` the values of a settings file: one JSON object whose keys are the
/// long names of options, '_' for '-'. What the command line or the environment has set stays, and
/// so does what would contradict it: of each of the `exclusive` groups of keys only one can be set.
/// kNotFound and kIo for the file, kMalformed for its form, kInvalidArgument naming a key that is
/// no option or whose value cannot be used.
Status apply_settings_file(CLI::App& command, const std::string& path,
                           const std::vector<std::vector<std::string>>& exclusive);

}  // namespace ultraflash::cli

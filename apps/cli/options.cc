#include "options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "weights/strict_json.h"

namespace ultraflash::cli {
namespace {

constexpr size_t kMaxSettingsBytes = 4 << 20;
constexpr size_t kHelpColumns = 100;
constexpr size_t kHelpIndent = 34;

}  // namespace

template <std::integral T>
std::optional<T> parse_integer(const std::string& text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) return std::nullopt;
  return value;
}
template std::optional<int> parse_integer<int>(const std::string& text);
template std::optional<int64_t> parse_integer<int64_t>(const std::string& text);
template std::optional<uint64_t> parse_integer<uint64_t>(const std::string& text);

std::optional<double> parse_number(const std::string& text) {
  double value = 0.0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || !std::isfinite(value)) return std::nullopt;
  return value;
}

Result<uint64_t> parse_bytes(const std::string& text) {
  if (text.empty()) return uint64_t{0};
  static const std::vector<std::pair<std::string, double>> kUnits = {
      {"", 1.0},    {"B", 1.0},      {"k", 1e3},      {"K", 1e3},      {"M", 1e6},
      {"G", 1e9},   {"T", 1e12},     {"kB", 1e3},     {"MB", 1e6},     {"GB", 1e9},
      {"TB", 1e12}, {"KiB", 1024.0}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
  const size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  const std::optional<double> number = parse_number(text.substr(0, digits));
  const std::string unit = text.substr(digits);
  for (const auto& [name, factor] : kUnits) {
    if (unit != name || !number) continue;
    const double bytes = *number * factor;
    if (!(bytes >= 1.0) || bytes > 0x1p62) break;
    return static_cast<uint64_t>(bytes);
  }
  return Status(StatusCode::kInvalidArgument,
                fmt::format("'{}' is no amount of memory; write it like 8G, 500M or 6GiB",
                            text.substr(0, 60)));
}

namespace internal {

CLI::Option* add_checked(CLI::App& app, const std::string& names, const std::string& help,
                         const std::string& placeholder, std::string range,
                         const Default& shown_default,
                         std::function<std::optional<std::string>(const std::string&)> assign) {
  std::string facts = std::move(range);
  if (!shown_default.text.empty()) {
    facts += fmt::format("{}default: {}", facts.empty() ? "" : "; ", shown_default.text);
  }
  const std::string description = facts.empty() ? help : fmt::format("{} [{}]", help, facts);
  CLI::callback_t callback = [assign](const CLI::results_t& results) {
    return !assign(results.back()).has_value();
  };
  CLI::Option* option = app.add_option(names, callback, description);
  // The option's own sentence, rather than CLI11's about conversions.
  option->check(CLI::Validator(
      [assign](std::string& text) { return assign(text).value_or(std::string()); }, ""));
  option->option_text(placeholder);
  return option;
}

}  // namespace internal

CLI::Option* add_number(CLI::App& app, const std::string& names, double& variable, double low,
                        double high, const std::string& help, const Default& shown) {
  const std::string range = fmt::format("{} to {}", low, high);
  return internal::add_checked(
      app, names, help, "X", range,
      shown.text.empty() ? Default{fmt::format("{}", variable)} : shown,
      [&variable, low, high, range](const std::string& text) -> std::optional<std::string> {
        const std::optional<double> value = parse_number(text);
        if (!value || *value < low || *value > high) {
          return fmt::format("'{}' is not a number from {}", text.substr(0, 60), range);
        }
        variable = *value;
        return std::nullopt;
      });
}

CLI::Option* add_bytes(CLI::App& app, const std::string& names, std::string& variable,
                       const std::string& help, const Default& shown) {
  return internal::add_checked(app, names, help, "SIZE", "bytes, or with k, M, G, T, KiB, MiB, GiB",
                               shown,
                               [&variable](const std::string& text) -> std::optional<std::string> {
                                 const Result<uint64_t> bytes = parse_bytes(text);
                                 if (!bytes.ok()) return bytes.status().message();
                                 variable = text;
                                 return std::nullopt;
                               });
}

CLI::Option* add_choice(CLI::App& app, const std::string& names, std::string& variable,
                        const std::vector<std::string>& choices, const std::string& help,
                        const Default& shown) {
  const std::string range = fmt::format("{}", fmt::join(choices, ", "));
  return internal::add_checked(
      app, names, help, "NAME", range, shown.text.empty() ? Default{variable} : shown,
      [&variable, choices, range](const std::string& text) -> std::optional<std::string> {
        if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
          return fmt::format("'{}' is none of {}", text.substr(0, 60), range);
        }
        variable = text;
        return std::nullopt;
      });
}

CLI::Option* add_text(CLI::App& app, const std::string& names, std::string& variable,
                      const std::string& placeholder, const std::string& help,
                      const Default& shown) {
  return internal::add_checked(app, names, help, placeholder, "",
                               shown.text.empty() ? Default{variable} : shown,
                               [&variable](const std::string& text) -> std::optional<std::string> {
                                 variable = text;
                                 return std::nullopt;
                               });
}

CLI::Option* from_environment(CLI::Option* option, const std::string& variable) {
  return option->envname(variable)->description(
      fmt::format("{} (environment: {})", option->get_description(), variable));
}

// --- help --------------------------------------------------------------------------------------

HelpFormatter::HelpFormatter() { column_width(kHelpIndent); }

std::string HelpFormatter::make_option(const CLI::Option* option, bool is_positional) const {
  std::string head = "  " + make_option_name(option, is_positional) +
                     (option->get_option_text().empty() ? "" : " " + option->get_option_text());
  if (is_positional && !option->get_required()) head += " (optional)";
  std::string lines = head;
  size_t column = head.size();
  if (column + 1 >= kHelpIndent) {
    lines += "\n";
    column = 0;
  }
  lines += std::string(kHelpIndent - column, ' ');
  column = kHelpIndent;
  std::istringstream words(option->get_description());
  for (std::string word; words >> word;) {
    if (column > kHelpIndent && column + 1 + word.size() > kHelpColumns) {
      lines += "\n" + std::string(kHelpIndent, ' ');
      column = kHelpIndent;
    }
    if (column > kHelpIndent) {
      lines += " ";
      ++column;
    }
    lines += word;
    column += word.size();
  }
  return lines + "\n";
}

// --- settings files ----------------------------------------------------------------------------

namespace {

Result<nlohmann::json> read_settings(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return Status(StatusCode::kNotFound, fmt::format("{}: no such settings file", path));
  }
  if (!std::filesystem::is_regular_file(path, error)) {
    return Status(StatusCode::kInvalidArgument,
                  fmt::format("{}: not a file, so it holds no settings", path));
  }
  std::ifstream stream(path, std::ios::binary);
  std::string text(kMaxSettingsBytes + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (stream.bad() || (stream.fail() && !stream.eof())) {
    return Status(StatusCode::kIo, fmt::format("{}: the settings cannot be read", path));
  }
  text.resize(static_cast<size_t>(stream.gcount()));
  if (text.size() > kMaxSettingsBytes) {
    return Status(StatusCode::kMalformed, fmt::format("{}: more than {} bytes, so these are no "
                                                      "settings",
                                                      path, kMaxSettingsBytes));
  }
  UF_ASSIGN(nlohmann::json json, parse_strict_json(text, path));
  if (!json.is_object()) {
    return Status(StatusCode::kMalformed,
                  fmt::format("{}: settings are one JSON object, like {{\"seed\": 7}}", path));
  }
  return json;
}

// What the command line would have had; nothing for a value that no option can take.
std::optional<std::string> as_argument(const nlohmann::json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number()) return value.dump();
  return std::nullopt;
}

}  // namespace

Status apply_settings_file(CLI::App& command, const std::string& path,
                           const std::vector<std::vector<std::string>>& exclusive) {
  UF_ASSIGN(const nlohmann::json settings, read_settings(path));
  const auto option_of = [&](std::string key) {
    std::replace(key.begin(), key.end(), '_', '-');
    return command.get_option_no_throw("--" + key);
  };
  const auto refused = [&](const std::string& key, const std::string& why) {
    return Status(StatusCode::kInvalidArgument,
                  fmt::format("{}: '{}' {}", path, key.substr(0, 60), why));
  };
  // All that the file must not touch, found before the first of its values is set.
  std::vector<CLI::Option*> decided;
  for (CLI::Option* option : command.get_options()) {
    if (option->count() > 0) decided.push_back(option);
  }
  for (const std::vector<std::string>& group : exclusive) {
    const bool set = std::any_of(group.begin(), group.end(), [&](const std::string& key) {
      return option_of(key)->count() > 0;
    });
    for (const std::string& key : group) {
      if (set) decided.push_back(option_of(key));
    }
  }
  for (const auto& [key, value] : settings.items()) {
    CLI::Option* option = option_of(key);
    const bool is_long_name = key.size() > 1 && key[0] != '-';
    if (option == nullptr || !is_long_name || key == "help" || key == "settings") {
      return refused(key,
                     fmt::format("is no setting; see 'ultraflash {} --help'", command.get_name()));
    }
    const bool is_flag = option->get_items_expected_max() == 0;
    const bool is_list = option->get_items_expected_max() > 1;
    std::vector<std::string> arguments;
    if (is_flag) {
      if (!value.is_boolean()) return refused(key, "must be true or false");
      if (value.get<bool>()) arguments.emplace_back("true");
    } else if (is_list) {
      if (!value.is_array()) return refused(key, "must be a list");
      for (const nlohmann::json& item : value) {
        if (!item.is_string()) return refused(key, "must be a list of texts");
        arguments.push_back(item.get<std::string>());
      }
    } else {
      const std::optional<std::string> argument = as_argument(value);
      if (!argument) return refused(key, "must be a number or a text");
      // An empty text is how an unset option is written.
      if (!argument->empty()) arguments.push_back(*argument);
    }
    if (arguments.empty() || std::find(decided.begin(), decided.end(), option) != decided.end()) {
      continue;
    }
    try {
      for (const std::string& argument : arguments) option->add_result(argument);
      option->run_callback();
    } catch (const CLI::ParseError& error) {
      return {StatusCode::kInvalidArgument, fmt::format("{}: {}", path, error.what())};
    }
  }
  return {};
}

}  // namespace ultraflash::cli

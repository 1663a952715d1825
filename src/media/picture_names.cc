#include "media/picture_names.h"

#include <dirent.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "core/check.h"
#include "core/system_error.h"
#include "media/text.h"

namespace ultraflash {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_png(std::string_view name) {
  constexpr std::string_view kEnding = ".png";
  return name.size() > kEnding.size() &&
         std::equal(kEnding.rbegin(), kEnding.rend(), name.rbegin(),
                    [](char expected, char c) { return expected == to_lower(c); });
}

// Runs of digits compare as numbers, the rest as text.
bool natural_less(std::string_view a, std::string_view b) {
  size_t i = 0;
  size_t k = 0;
  while (i < a.size() && k < b.size()) {
    if (!is_digit(a[i]) || !is_digit(b[k])) {
      if (a[i] != b[k]) return a[i] < b[k];
      ++i;
      ++k;
      continue;
    }
    while (i < a.size() && a[i] == '0') ++i;
    while (k < b.size() && b[k] == '0') ++k;
    size_t i_end = i;
    size_t k_end = k;
    while (i_end < a.size() && is_digit(a[i_end])) ++i_end;
    while (k_end < b.size() && is_digit(b[k_end])) ++k_end;
    const std::string_view number_a = a.substr(i, i_end - i);
    const std::string_view number_b = b.substr(k, k_end - k);
    if (number_a.size() != number_b.size()) return number_a.size() < number_b.size();
    if (number_a != number_b) return number_a < number_b;
    i = i_end;
    k = k_end;
  }
  if (a.size() - i != b.size() - k) return a.size() - i < b.size() - k;
  return a < b;  // they differ in leading zeros only, if at all
}

}  // namespace

bool is_picture_pattern(std::string_view path) {
  for (size_t i = 0; i + 1 < path.size(); ++i) {
    if (path[i] != '%') continue;
    if (path[i + 1] == '%') {
      ++i;
      continue;
    }
    size_t k = i + 1;
    while (k < path.size() && is_digit(path[k])) ++k;
    if (k < path.size() && path[k] == 'd') return true;
  }
  return false;
}

Result<PicturePattern> PicturePattern::parse(const std::string& pattern) {
  constexpr int64_t kMaxDigits = 18;
  const auto refuse = [&](const char* what) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: {}; a pattern of pictures looks like out_%05d.png", pattern, what);
  };
  PicturePattern result;
  bool found = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    std::string& part = found ? result.after_ : result.before_;
    if (pattern[i] != '%') {
      part += pattern[i];
      continue;
    }
    if (i + 1 < pattern.size() && pattern[i + 1] == '%') {
      part += '%';
      ++i;
      continue;
    }
    size_t k = i + 1;
    int64_t digits = 0;
    while (k < pattern.size() && is_digit(pattern[k]) && digits <= kMaxDigits) {
      digits = 10 * digits + (pattern[k++] - '0');
    }
    if (k >= pattern.size() || pattern[k] != 'd') return refuse("'%' is not followed by a number");
    if (digits > kMaxDigits) return refuse("the number has more than 18 digits");
    if (found) return refuse("there is more than one number");
    found = true;
    result.digits_ = digits;
    i = k;
  }
  if (!found) return refuse("there is no number in it");
  if (result.after_.find('/') != std::string::npos) {
    return refuse("the number stands in the name of a folder");
  }
  return result;
}

PicturePattern PicturePattern::in_folder(const std::string& folder) {
  PicturePattern result;
  result.before_ = folder + (folder.ends_with('/') ? "" : "/") + "frame_";
  result.after_ = ".png";
  result.digits_ = 5;
  return result;
}

std::string PicturePattern::path(int64_t index) const {
  return fmt::format("{}{:0{}}{}", before_, index, digits_, after_);
}

std::string PicturePattern::folder() const {
  const size_t slash = before_.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : before_.substr(0, slash);
}

Result<std::vector<std::string>> list_pictures(const std::string& folder, int64_t max_files) {
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(folder.c_str()), &::closedir);
  if (!directory) return system_error(errno, folder, "the folder cannot be read");
  std::vector<std::string> names;
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(directory.get());
    if (entry == nullptr) break;
    if (!is_png(entry->d_name)) continue;
    if (static_cast<int64_t>(names.size()) >= max_files) {
      return make_status(StatusCode::kUnsupported,
                         "{}: holds more pictures than the limit of {} frames", folder, max_files);
    }
    names.emplace_back(entry->d_name);
  }
  if (errno != 0) return system_error(errno, folder, "the folder cannot be read");
  std::sort(names.begin(), names.end(), natural_less);
  for (std::string& name : names) name = folder + (folder.ends_with('/') ? "" : "/") + name;
  return names;
}

}  // namespace ultraflash

// Reading and writing config structs as JSON through their visit_fields: strict, with the path of
// the offending field in every message.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/check.h"
#include "models/memory_net.h"
#include "models/tiny_decoder.h"
#include "ops/types.h"
#include "stream/cache_policy.h"
#include "stream/recipe_data.h"

namespace ultraflash {

/// Names of an enumeration's values, in order from 0.
template <typename Enum>
struct EnumNames;
template <>
struct EnumNames<Activation> {
  static constexpr const char* kNames[] = {"none", "relu", "silu", "gelu_tanh", "gelu"};
};
template <>
struct EnumNames<MemoryInit> {
  static constexpr const char* kNames[] = {"zero", "replicate"};
};
template <>
struct EnumNames<DecoderLayout> {
  static constexpr const char* kNames[] = {"tiny", "ultra", "net"};
};
template <>
struct EnumNames<CacheKind> {
  static constexpr const char* kNames[] = {"grow", "window"};
};
template <>
struct EnumNames<DecoderKind> {
  static constexpr const char* kNames[] = {"tiny", "wan_vae"};
};

/// Fills a struct from a JSON object. Fields that are absent keep their value; unknown ones, wrong
/// types and numbers that do not fit are errors. The first error stays.
class JsonReader {
 public:
  JsonReader(const nlohmann::json& object, std::string path, Status& status)
      : object_(object), path_(std::move(path)), status_(status) {
    if (!object.is_object()) fail("is no JSON object");
  }

  template <typename T>
  void operator()(const char* name, T& value) {
    known_.insert(name);
    if (!status_.ok()) return;
    const auto position = object_.find(name);
    if (position != object_.end()) read(*position, path_of(name), value);
  }

  /// After all fields: kMalformed when the object has others.
  void finish() {
    if (!status_.ok()) return;
    for (const auto& [key, value] : object_.items()) {
      if (known_.contains(key)) continue;
      status_ = make_status(StatusCode::kMalformed, "{} has no field '{}'; it has {}",
                            path_.empty() ? "a recipe" : path_, key.substr(0, 60),
                            fmt::join(known_, ", "));
      return;
    }
  }

 private:
  [[nodiscard]] std::string path_of(const char* name) const {
    return path_.empty() ? name : path_ + "." + name;
  }
  void fail(const std::string& what) { fail_at(path_.empty() ? "the recipe" : path_, what); }
  void fail_at(const std::string& path, const std::string& what) {
    if (status_.ok()) status_ = make_status(StatusCode::kMalformed, "{} {}", path, what);
  }

  void read(const nlohmann::json& json, const std::string& path, int64_t& value) {
    if (!json.is_number_integer() ||
        (json.is_number_unsigned() &&
         json.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))) {
      return fail_at(path, "is no integer that fits");
    }
    value = json.get<int64_t>();
  }
  void read(const nlohmann::json& json, const std::string& path, double& value) {
    if (!json.is_number() || !std::isfinite(json.get<double>()))
      return fail_at(path, "is no number");
    value = json.get<double>();
  }
  void read(const nlohmann::json& json, const std::string& path, float& value) {
    double wide = 0.0;
    read(json, path, wide);
    value = static_cast<float>(wide);
  }
  void read(const nlohmann::json& json, const std::string& path, bool& value) {
    if (!json.is_boolean()) return fail_at(path, "is neither true nor false");
    value = json.get<bool>();
  }
  void read(const nlohmann::json& json, const std::string& path, std::string& value) {
    constexpr size_t kMaxText = 4096;
    if (!json.is_string()) return fail_at(path, "is no text");
    value = json.get<std::string>();
    if (value.size() > kMaxText) fail_at(path, fmt::format("is longer than {} bytes", kMaxText));
  }
  template <typename T>
  void read(const nlohmann::json& json, const std::string& path, std::vector<T>& value) {
    constexpr size_t kMaxList = 4096;
    if (!json.is_array() || json.size() > kMaxList) {
      return fail_at(path, fmt::format("is no list of at most {}", kMaxList));
    }
    value.clear();
    for (size_t i = 0; i < json.size() && status_.ok(); ++i) {
      value.emplace_back();
      read(json[i], fmt::format("{}[{}]", path, i), value.back());
    }
  }
  template <typename T>
  void read(const nlohmann::json& json, const std::string& path, std::optional<T>& value) {
    if (json.is_null()) {
      value.reset();
      return;
    }
    if (!value) value.emplace();
    read(json, path, *value);
  }
  template <typename T>
  void read(const nlohmann::json& json, const std::string& path, T& value) {
    if constexpr (std::is_enum_v<T>) {
      const std::string name = json.is_string() ? json.get<std::string>() : std::string();
      for (size_t i = 0; i < std::size(EnumNames<T>::kNames); ++i) {
        if (name == EnumNames<T>::kNames[i]) {
          value = static_cast<T>(i);
          return;
        }
      }
      fail_at(path, fmt::format("must be one of {}", fmt::join(EnumNames<T>::kNames, ", ")));
    } else {
      JsonReader reader(json, path, status_);
      value.visit_fields(reader);
      reader.finish();
    }
  }

  const nlohmann::json& object_;
  std::string path_;
  Status& status_;
  std::set<std::string> known_;
};

/// The inverse: every field, in the order of visit_fields.
class JsonWriter {
 public:
  template <typename T>
  static nlohmann::ordered_json write(T& value) {
    JsonWriter writer;
    value.visit_fields(writer);
    return std::move(writer.object_);
  }

  template <typename T>
  void operator()(const char* name, T& value) {
    object_[name] = to_json(value);
  }

 private:
  template <typename T>
  static nlohmann::ordered_json to_json(std::vector<T>& value) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (T& item : value) list.push_back(to_json(item));
    return list;
  }
  template <typename T>
  static nlohmann::ordered_json to_json(std::optional<T>& value) {
    return value ? to_json(*value) : nlohmann::ordered_json(nullptr);
  }
  template <typename T>
  static nlohmann::ordered_json to_json(T& value) {
    if constexpr (std::is_enum_v<T>) {
      return EnumNames<T>::kNames[static_cast<size_t>(value)];
    } else if constexpr (std::is_same_v<T, float>) {
      // The shortest decimal that reads back as this float, not the digits of its double.
      return nlohmann::ordered_json::parse(fmt::format("{}", value));
    } else if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
      return value;
    } else {
      return write(value);
    }
  }

  nlohmann::ordered_json object_ = nlohmann::ordered_json::object();
};

}  // namespace ultraflash

// What the tests of this folder share.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "core/rng.h"
#include "core/tensor.h"
#include "ultraflash/status.h"
#include "weights/bytes.h"
#include "weights/tensor_entry.h"

namespace ultraflash {

/// A folder of its own for one test, removed with everything in it.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "uf_weights_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() { std::filesystem::remove_all(path_); }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  /// Names of the files inside, sorted.
  [[nodiscard]] std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  std::filesystem::path path_;
};

inline void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

inline std::filesystem::path source_folder() {
  const char* folder = std::getenv("UF_SOURCE_DIR");
  return folder == nullptr ? "." : folder;
}
/// A file written by PyTorch, committed under tests/weights/data.
inline std::filesystem::path fixture(std::string_view name) {
  return source_folder() / "tests" / "weights" / "data" / name;
}

/// Random bytes that are valid elements of `dtype` (bool: 0 and 1).
inline Tensor random_tensor(DType dtype, const Shape& shape, uint64_t seed) {
  const Tensor tensor = Tensor::allocate(dtype, shape);
  auto* out = reinterpret_cast<uint8_t*>(tensor.mutable_raw());
  for (size_t i = 0; i < tensor.size_bytes(); ++i) {
    const rng::Four four = rng::philox(i, seed, 7);
    out[i] = static_cast<uint8_t>(dtype == DType::kBool ? four.x[0] & 1U : four.x[0]);
  }
  return tensor;
}

template <typename T>
Tensor tensor_of(std::vector<T> values, const Shape& shape) {
  return Tensor::of<T>(std::span<const T>(values), shape);
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() && a.contiguous() && b.contiguous() &&
         (a.size_bytes() == 0 || std::memcmp(a.raw(), b.raw(), a.size_bytes()) == 0);
}

/// All elements as floats.
inline std::vector<float> floats(const Tensor& tensor) {
  const Tensor f32 = tensor.to(DType::kF32);
  const std::span<const float> values = f32.span<float>();
  return {values.begin(), values.end()};
}

/// The entry `name` of `entries`; fails the test when there is none.
inline Tensor load_named(const std::vector<TensorEntry>& entries, std::string_view name) {
  for (const TensorEntry& entry : entries) {
    if (entry.name != name) continue;
    Result<Tensor> tensor = entry.load();
    EXPECT_TRUE(tensor.ok()) << tensor.status().to_string();
    return tensor ? *tensor : Tensor();
  }
  ADD_FAILURE() << "no tensor " << name;
  return {};
}

/// Status has this code and a message that contains all of `parts`.
inline void expect_failure(const Status& status, StatusCode code,
                           const std::vector<std::string>& parts) {
  EXPECT_EQ(status_code_info(status.code()).name, std::string(status_code_info(code).name))
      << status.message();
  for (const std::string& part : parts) EXPECT_THAT(status.message(), testing::HasSubstr(part));
}

#define UF_ASSERT_OK(expression)                                      \
  do {                                                                \
    const ::ultraflash::Status uf_assert_status = (expression);       \
    ASSERT_TRUE(uf_assert_status.ok()) << uf_assert_status.message(); \
  } while (false)

}  // namespace ultraflash

// What the tests of this folder share.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/bytes.h"
#include "core/rng.h"
#include "core/tensor.h"
#include "support/files.h"
#include "support/status.h"
#include "ultraflash/status.h"
#include "weights/tensor_entry.h"

namespace ultraflash {

/// A file written by PyTorch, committed under tests/weights/data.
inline std::filesystem::path fixture(std::string_view name) {
  return source_path("tests/weights/data") / name;
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

}  // namespace ultraflash

// Little-endian numbers in a range of bytes that came from a file.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

namespace ultraflash {

static_assert(std::endian::native == std::endian::little,
              "checkpoints are little-endian and are read in place");

using ByteSpan = std::span<const std::byte>;

/// The number at byte `offset`; the caller has checked that it lies inside.
template <typename T>
T load_le(ByteSpan bytes, size_t offset) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

inline std::string_view as_text(ByteSpan bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

inline ByteSpan as_byte_span(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace ultraflash

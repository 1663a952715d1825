// Bytes of files and messages: views of them, and the little-endian numbers inside.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace ultraflash {

static_assert(std::endian::native == std::endian::little,
              "checkpoints are little-endian and are read in place");

using ByteSpan = std::span<const std::byte>;

inline ByteSpan as_byte_span(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}
inline ByteSpan as_byte_span(std::span<const uint8_t> bytes) { return std::as_bytes(bytes); }

inline std::string_view as_text(ByteSpan bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// The number at byte `offset`; the caller has checked that it lies inside.
template <typename T>
T load_le(ByteSpan bytes, size_t offset) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

/// Appends the lowest `count` bytes of `value`, the lowest first.
inline void append_le(std::string& out, uint64_t value, int count) {
  for (int i = 0; i < count; ++i) out += static_cast<char>((value >> (8 * i)) & 0xffU);
}

}  // namespace ultraflash

#include "core/rng.h"

namespace ultraflash {

void fill_normal(RandomStream stream, int64_t offset, std::span<float> out) {
  const auto count = static_cast<int64_t>(out.size());
  for (int64_t i = 0; i < count;) {
    const int64_t element = offset + i;
    const rng::FourNormals four = rng::normals(stream, static_cast<uint64_t>(element / 4));
    for (int64_t lane = element % 4; lane < 4 && i < count; ++lane, ++i) {
      out[static_cast<size_t>(i)] = four.x[lane];
    }
  }
}

void fill_uniform(RandomStream stream, int64_t offset, std::span<float> out) {
  const auto count = static_cast<int64_t>(out.size());
  for (int64_t i = 0; i < count;) {
    const int64_t element = offset + i;
    const rng::Four four =
        rng::philox(static_cast<uint64_t>(element / 4), stream.stream, stream.seed);
    for (int64_t lane = element % 4; lane < 4 && i < count; ++lane, ++i) {
      out[static_cast<size_t>(i)] = rng::uniform(four.x[lane]);
    }
  }
}

uint64_t hash_name(std::span<const char> text) {
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : text) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  }
  return hash;
}

}  // namespace ultraflash

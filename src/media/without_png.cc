// Stands in for png.cc in a build without libpng.
#include "core/check.h"
#include "media/image.h"

namespace ultraflash {
namespace {

Status missing(const std::string& what) {
  return make_status(StatusCode::kUnsupported,
                     "{}: this build has no PNG support; install libpng (libpng-dev) and build "
                     "again, or use y4m",
                     what);
}

}  // namespace

Result<std::vector<uint8_t>> encode_png(const RgbFrame&, int) { return missing("png"); }

Result<RgbImage> decode_png(std::span<const uint8_t>, const std::string& name, const ImageLimits&) {
  return missing(name);
}

}  // namespace ultraflash

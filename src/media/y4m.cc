#include "media/y4m.h"

#include <charconv>
#include <numeric>

#include "core/check.h"

namespace ultraflash {
namespace {

constexpr std::string_view kMagic = "YUV4MPEG2";

struct ColourSpaceTag {
  const char* tag;
  ChromaLayout layout;
  ChromaSiting siting;
};

constexpr ColourSpaceTag kColourSpaces[] = {
    {"420mpeg2", ChromaLayout::k420, ChromaSiting::kLeft},
    {"420jpeg", ChromaLayout::k420, ChromaSiting::kCentre},
    {"420", ChromaLayout::k420, ChromaSiting::kCentre},
    {"420paldv", ChromaLayout::k420, ChromaSiting::kLeft},
    {"422", ChromaLayout::k422, ChromaSiting::kLeft},
    {"444", ChromaLayout::k444, ChromaSiting::kLeft},
    {"mono", ChromaLayout::k400, ChromaSiting::kLeft},
};

// A whole number without sign, of the full length of `text`.
std::optional<int64_t> parse_number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

// "30000:1001"
std::optional<std::pair<int64_t, int64_t>> parse_ratio(std::string_view text) {
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) return std::nullopt;
  const auto num = parse_number(text.substr(0, colon));
  const auto den = parse_number(text.substr(colon + 1));
  if (!num || !den) return std::nullopt;
  return std::pair(*num, *den);
}

// Text from a file, made fit for a message.
std::string quoted(std::string_view text) {
  std::string result;
  for (const char c : text.substr(0, 32)) result += c >= ' ' && c <= '~' ? c : '?';
  if (text.size() > 32) result += "...";
  return result;
}

}  // namespace

ColourMatrix guess_matrix(int64_t width, int64_t height) {
  return width >= 1280 || height > 576 ? ColourMatrix::kBt709 : ColourMatrix::kBt601;
}

std::string y4m_header(const Y4mHeader& header) {
  // FFmpeg reads lines of at most 96 bytes. What older programs alone look for goes where it fits.
  constexpr size_t kMaxLine = 96;
  const bool halved = header.yuv.layout == ChromaLayout::k420;
  std::string line = fmt::format("{} W{} H{} F{}:{} Ip A1:1 C{} XCOLORRANGE=LIMITED XBT709", kMagic,
                                 header.format.width, header.format.height, header.format.fps_num,
                                 header.format.fps_den, halved ? "420mpeg2" : "444");
  const std::string_view subsampling = halved ? " XYSCSS=420MPEG2" : " XYSCSS=444";
  if (line.size() + subsampling.size() < kMaxLine) line += subsampling;
  return line + '\n';
}

Result<Y4mHeader> parse_y4m_header(std::string_view line, const std::string& name) {
  const auto malformed = [&](std::string_view token, const char* expected) {
    return make_status(StatusCode::kMalformed, "{}: the y4m header says '{}', expected {}", name,
                       quoted(token), expected);
  };
  if (!line.starts_with(kMagic)) return malformed(line, "YUV4MPEG2");
  line.remove_prefix(kMagic.size());
  if (!line.empty() && line.front() != ' ') return malformed(line, "a space after YUV4MPEG2");

  Y4mHeader header;
  header.format = {0, 0, 0, 1};
  header.colour_space = "420jpeg";  // what the format says when there is no tag
  std::optional<ColourMatrix> matrix;
  while (!line.empty()) {
    if (line.front() == ' ') {
      line.remove_prefix(1);
      continue;
    }
    const std::string_view token = line.substr(0, line.find(' '));
    const std::string_view value = token.substr(1);
    line.remove_prefix(token.size());
    switch (token.front()) {
      case 'W':
      case 'H': {
        const auto side = parse_number(value);
        if (!side || *side < 1) return malformed(token, "a size above zero");
        (token.front() == 'W' ? header.format.width : header.format.height) = *side;
        break;
      }
      case 'F': {
        const auto ratio = parse_ratio(value);
        if (!ratio) return malformed(token, "a frame rate such as F16:1");
        const auto [num, den] = *ratio;
        if (num == 0 && den == 0) break;  // "unknown"
        const int64_t divisor = std::gcd(num, den);
        header.format.fps_num = num / divisor;
        header.format.fps_den = den / divisor;
        if (!check_video_format({1, 1, header.format.fps_num, header.format.fps_den}, name).ok()) {
          return malformed(token, "a frame rate above zero and at most 1000");
        }
        break;
      }
      case 'I':
        if (value != "p" && value != "?") {
          return make_status(StatusCode::kUnsupported,
                             "{}: interlaced y4m ('{}') is not read; deinterlace it first", name,
                             quoted(token));
        }
        break;
      case 'C':
        header.colour_space = std::string(value);
        break;
      case 'X':
        if (value == "COLORRANGE=FULL") header.yuv.range = ColourRange::kFull;
        if (value == "BT709") matrix = ColourMatrix::kBt709;
        break;
      default:  // A (the shape of a pixel) and what later versions may bring
        break;
    }
  }
  if (header.format.width == 0 || header.format.height == 0) {
    return make_status(StatusCode::kMalformed, "{}: the y4m header gives no width or no height",
                       name);
  }
  for (const ColourSpaceTag& known : kColourSpaces) {
    if (header.colour_space != known.tag) continue;
    header.yuv.layout = known.layout;
    header.yuv.siting = known.siting;
    header.yuv.matrix = matrix.value_or(guess_matrix(header.format.width, header.format.height));
    return header;
  }
  return make_status(
      StatusCode::kUnsupported,
      "{}: the y4m colour space '{}' is not read, only 8-bit 420, 422, 444 and mono; "
      "convert it, for example with ffmpeg -pix_fmt yuv444p",
      name, quoted(header.colour_space));
}

int64_t y4m_frame_bytes(const Y4mHeader& header) {
  const VideoFormat& format = header.format;
  return format.width * format.height + 2 * chroma_width(header.yuv.layout, format.width) *
                                            chroma_height(header.yuv.layout, format.height);
}

}  // namespace ultraflash

#include "train/journal.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/check.h"
#include "media/image.h"

namespace ultraflash {
namespace {

// Panels of the curve picture.
constexpr int64_t kPanelWidth = 360;
constexpr int64_t kPanelHeight = 200;
constexpr int64_t kMargin = 8;
constexpr int64_t kTextHeight = 12;  // room above a panel's curve
constexpr int64_t kColumns = 3;

// 3x5 glyphs, one row a digit (octal, bits left to right), of what panel titles are written with.
constexpr std::string_view kGlyphChars = "abcdefghijklmnopqrstuvwxyz0123456789.-_+ ";
constexpr std::array<uint16_t, 41> kGlyphs = {
    025755, 065656, 034443, 065556, 074647, 074644, 034553, 055755, 072227, 011152, 055655,
    044447, 057755, 065555, 025552, 065644, 025573, 065655, 034216, 072222, 055557, 055552,
    055775, 055255, 055222, 071247, 075557, 026227, 071747, 071717, 055711, 074717, 074757,
    071111, 075757, 075717, 000002, 000700, 000007, 002720, 000000};

using Color = std::array<uint8_t, 3>;
constexpr Color kPaper = {24, 24, 28};
constexpr Color kFrame = {70, 70, 78};
constexpr Color kInk = {220, 220, 220};
constexpr Color kCurve = {90, 180, 255};

void dot(RgbImage& image, int64_t x, int64_t y, const Color& color) {
  if (x < 0 || y < 0 || x >= image.width || y >= image.height) return;
  std::copy(color.begin(), color.end(), image.row(y) + x * 3);
}

void write_text(RgbImage& image, int64_t x, int64_t y, std::string_view text) {
  for (const char c : text) {
    const size_t index = kGlyphChars.find(c);
    const uint16_t glyph = index == std::string_view::npos ? 0 : kGlyphs[index];
    for (int row = 0; row < 5; ++row) {
      for (int column = 0; column < 3; ++column) {
        if ((glyph >> (3 * (4 - row) + 2 - column) & 1) == 0) continue;
        for (int i = 0; i < 4; ++i) {
          dot(image, x + 2 * column + i % 2, y + 2 * row + i / 2, kInk);
        }
      }
    }
    x += 8;
  }
}

void draw_line(RgbImage& image, double x0, double y0, double x1, double y1) {
  const int64_t steps =
      std::max<int64_t>(1, static_cast<int64_t>(std::max(std::abs(x1 - x0), std::abs(y1 - y0))));
  for (int64_t i = 0; i <= steps; ++i) {
    const double a = static_cast<double>(i) / static_cast<double>(steps);
    dot(image, std::lround(x0 + a * (x1 - x0)), std::lround(y0 + a * (y1 - y0)), kCurve);
  }
}

// Values that are positive and spread over more than a factor of 20 are drawn on a log scale.
void draw_panel(RgbImage& image, int64_t left, int64_t top, const std::string& name,
                const std::vector<std::pair<double, double>>& points) {
  double low = points[0].second;
  double high = low;
  for (const auto& [step, value] : points) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  const bool logarithmic = low > 0.0 && high > 20.0 * low;
  const auto scaled = [&](double value) { return logarithmic ? std::log(value) : value; };
  const double bottom = scaled(low);
  const double range = std::max(scaled(high) - bottom, 1e-12);
  const double first = points.front().first;
  const double span = std::max(points.back().first - first, 1.0);
  for (int64_t x = 0; x < kPanelWidth; ++x) {
    dot(image, left + x, top, kFrame);
    dot(image, left + x, top + kPanelHeight - 1, kFrame);
  }
  for (int64_t y = 0; y < kPanelHeight; ++y) {
    dot(image, left, top + y, kFrame);
    dot(image, left + kPanelWidth - 1, top + y, kFrame);
  }
  write_text(image, left + 4, top + 3,
             fmt::format("{} {:.4g} {:.4g}..{:.4g}{}", name, points.back().second, low, high,
                         logarithmic ? " log" : ""));
  const auto place = [&](const std::pair<double, double>& point) {
    return std::pair(static_cast<double>(left) + 2.0 +
                         (point.first - first) / span * static_cast<double>(kPanelWidth - 5),
                     static_cast<double>(top + kPanelHeight - 3) -
                         (scaled(point.second) - bottom) / range *
                             static_cast<double>(kPanelHeight - kTextHeight - 8));
  };
  for (size_t i = 1; i < points.size(); ++i) {
    const auto [x0, y0] = place(points[i - 1]);
    const auto [x1, y1] = place(points[i]);
    draw_line(image, x0, y0, x1, y1);
  }
}

}  // namespace

Result<Journal> Journal::open(const std::filesystem::path& out, int64_t resumed_step) {
  Journal journal;
  journal.out_ = out;
  std::ifstream earlier(out / "log.jsonl");
  std::string line;
  while (resumed_step > 0 && std::getline(earlier, line)) {
    const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number()) continue;
    const auto step = json["step"].get<double>();
    if (step > static_cast<double>(resumed_step)) continue;
    for (const auto& [key, value] : json.items()) {
      if (key == "step" || key == "seconds" || !value.is_number()) continue;
      journal.curves_[key].emplace_back(step, value.get<double>());
    }
  }
  return journal;
}

Status Journal::append(const std::string& line) {
  std::ofstream file(out_ / "log.jsonl", std::ios::app);
  file << line << '\n';
  if (!file.flush()) {
    return make_status(StatusCode::kIo, "{}: cannot be written", (out_ / "log.jsonl").string());
  }
  return {};
}

Status Journal::add(int64_t step, double seconds, const Measures& measures) {
  nlohmann::ordered_json json = {{"step", step}, {"seconds", seconds}};
  for (const auto& [name, value] : measures) {
    json[name] = value;  // not a number becomes null
    if (std::isfinite(value)) curves_[name].emplace_back(static_cast<double>(step), value);
  }
  return append(json.dump());
}

Status Journal::add_config(const std::string& json) {
  return append(fmt::format("{{\"config\": {}}}", json));
}

Status Journal::draw_curves() const {
  if (curves_.empty()) return {};
  const auto count = static_cast<int64_t>(curves_.size());
  const int64_t rows = (count + kColumns - 1) / kColumns;
  RgbImage image = RgbImage::black(kColumns * (kPanelWidth + kMargin) + kMargin,
                                   rows * (kPanelHeight + kMargin) + kMargin);
  for (size_t i = 0; i < image.pixels.size(); ++i) image.pixels[i] = kPaper[i % 3];
  int64_t index = 0;
  for (const auto& [name, points] : curves_) {
    draw_panel(image, kMargin + index % kColumns * (kPanelWidth + kMargin),
               kMargin + index / kColumns * (kPanelHeight + kMargin), name, points);
    ++index;
  }
  return save_picture("curves", image);
}

Status Journal::save_picture(const std::string& name, const RgbImage& image) const {
  const Status status = write_png((out_ / (name + ".png")).string(), image.view(), kSmallPng);
  if (status.code() != StatusCode::kUnsupported) return status;
  // A build without libpng.
  const std::filesystem::path path = out_ / (name + ".ppm");
  std::ofstream file(path, std::ios::binary);
  file << fmt::format("P6\n{} {}\n255\n", image.width, image.height);
  file.write(reinterpret_cast<const char*>(image.pixels.data()),
             static_cast<std::streamsize>(image.pixels.size()));
  if (!file.flush()) return make_status(StatusCode::kIo, "{}: cannot be written", path.string());
  return {};
}

std::string measures_text(const Measures& measures) {
  std::string text;
  for (const auto& [name, value] : measures) {
    text += fmt::format("{}{} {:.4g}", text.empty() ? "" : "  ", name, value);
  }
  return text;
}

}  // namespace ultraflash

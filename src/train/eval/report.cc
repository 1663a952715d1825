#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "media/image.h"
#include "train/eval/evaluate.h"
#include "train/world/render.h"

namespace ultraflash::world {
namespace {

std::string share(const Tally& tally) {
  if (tally.total == 0) return "-";
  return fmt::format("{:5.1f} % ({}/{})",
                     100.0 * static_cast<double>(tally.right) / static_cast<double>(tally.total),
                     tally.right, tally.total);
}

nlohmann::ordered_json tally_json(const Tally& tally) {
  return {{"right", tally.right}, {"total", tally.total}};
}

double rounded(double value, double steps) { return std::round(value * steps) / steps; }

nlohmann::ordered_json seen_json(const MeasuredScene& seen) {
  NamedScene named;
  for (const MeasuredObject& o : seen.objects) {
    named.objects.push_back({o.shape, o.colour, o.texture, o.size, o.motion, o.speed, o.spinning});
    if (o.motion == Motion::kStill) named.objects.back().speed.reset();
  }
  named.ground = seen.ground;
  named.gradient = seen.gradient;
  nlohmann::ordered_json json = scene_json(named);
  for (size_t i = 0; i < seen.objects.size(); ++i) {
    const MeasuredObject& o = seen.objects[i];
    json["objects"][i]["rgb"] = {std::lround(o.rgb.r), std::lround(o.rgb.g), std::lround(o.rgb.b)};
    json["objects"][i]["radius"] = rounded(o.radius, 10.0);
    json["objects"][i]["overlap"] = rounded(o.overlap, 1000.0);
    json["objects"][i]["velocity"] = rounded(o.velocity, 100.0);
  }
  json["background_rgb"] = {std::lround(seen.ground_rgb.r), std::lround(seen.ground_rgb.g),
                            std::lround(seen.ground_rgb.b)};
  return json;
}

}  // namespace

std::string report_table(const EvalReport& report) {
  std::string text;
  for (const EvalWindow& window : report.windows) {
    text += fmt::format("{}: {} of {} clips, from {:g} s\n", report.folder, window.table.clips(),
                        window.clips.size(), window.at);
    for (const ClipResult& clip : window.clips) {
      if (!clip.failure.empty()) text += fmt::format("  counted as wrong: {}\n", clip.failure);
    }
    text += fmt::format("  {:<20} {:>20} {:>20} {:>20}\n", "", "all", "one object", "two objects");
    for (const ScoreRow& row : window.table.rows()) {
      text += fmt::format("  {:<20} {:>20} {:>20} {:>20}\n", row.name, share(row.all),
                          share(row.one), share(row.two));
    }
  }
  return text;
}

std::string report_json(const EvalReport& report) {
  nlohmann::ordered_json json = {{"folder", report.folder}};
  json["windows"] = nlohmann::ordered_json::array();
  for (const EvalWindow& window : report.windows) {
    nlohmann::ordered_json item = {{"at_seconds", window.at}, {"clips", window.table.clips()}};
    for (const ScoreRow& row : window.table.rows()) {
      item["measures"][row.name] = {{"all", tally_json(row.all)},
                                    {"one_object", tally_json(row.one)},
                                    {"two_objects", tally_json(row.two)}};
    }
    nlohmann::ordered_json clips = nlohmann::ordered_json::array();
    for (const ClipResult& clip : window.clips) {
      nlohmann::ordered_json entry = {{"file", clip.file}, {"caption", clip.caption}};
      if (!clip.failure.empty()) entry["failure"] = clip.failure;
      if (clip.measured) {
        entry["seen"] = seen_json(clip.seen);
        entry["wrong"] = nlohmann::ordered_json::array();
        for (const Check& c : clip.checks) {
          if (c.right) continue;
          entry["wrong"].push_back({{"measure", std::string(c.measure)},
                                    {"object", c.object},
                                    {"wanted", c.wanted},
                                    {"seen", c.seen}});
        }
      }
      clips.push_back(std::move(entry));
    }
    item["results"] = std::move(clips);
    json["windows"].push_back(std::move(item));
  }
  return json.dump(2, ' ', /*ensure_ascii=*/false, nlohmann::json::error_handler_t::replace);
}

Result<RgbImage> report_sheet(const EvalReport& report, int64_t max_clips) {
  std::vector<const ClipResult*> clips;
  if (!report.windows.empty()) {
    for (const ClipResult& clip : report.windows.front().clips) {
      if (clip.measured && !clip.frames.empty()) clips.push_back(&clip);
    }
  }
  if (clips.empty()) {
    return make_status(StatusCode::kInvalidArgument, "{}: no clip to put on a sheet",
                       report.folder);
  }
  std::stable_partition(clips.begin(), clips.end(),
                        [](const ClipResult* clip) { return !whole_clip_right(clip->checks); });
  clips.resize(std::min(clips.size(), static_cast<size_t>(max_clips)));
  std::vector<RgbImage> images;
  for (const ClipResult* clip : clips) {
    for (const RgbImage& frame : clip->frames) {
      // One size for all, so that clips of different sizes share a sheet.
      UF_ASSIGN(RgbImage image, resize(frame.view(), 2 * kBaseWidth, 2 * kBaseHeight));
      if (&frame == &clip->frames.front()) {
        const bool right = whole_clip_right(clip->checks);
        for (int64_t y = 0; y < image.height; ++y) {
          for (int64_t x = 0; x < 8; ++x) {
            uint8_t* const pixel = image.row(y) + 3 * x;
            pixel[0] = right ? 0 : 230;
            pixel[1] = right ? 200 : 0;
            pixel[2] = 0;
          }
        }
      }
      images.push_back(std::move(image));
    }
  }
  std::vector<RgbFrame> frames;
  for (const RgbImage& image : images) frames.push_back(image.view());
  SheetOptions options;
  options.columns = std::ssize(clips.front()->frames);
  options.margin = 4;
  return contact_sheet(frames, options);
}

}  // namespace ultraflash::world

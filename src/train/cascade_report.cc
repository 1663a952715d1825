#include "train/cascade_report.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <future>
#include <string_view>

#include "train/eval/measure.h"
#include "train/eval/score.h"
#include "train/pictures.h"
#include "train/world/caption.h"
#include "train/world/render.h"

namespace ultraflash {
namespace {

constexpr int64_t kBoxPixels = 56;   // of the base size, on a sheet
constexpr double kBoxMargin = 1.0;   // canvas pixels around an object
constexpr int64_t kPictureStep = 4;  // between pictures that networks and MS-SSIM look at

// The way from 0 to `x` on a line of `length` whose ends are joined.
double around(double x, double length) { return x - length * std::floor(x / length + 0.5); }

// What enlargement can spoil, and texture, which only large pictures show.
constexpr std::array<std::string_view, 3> kNamed = {"colour", "shape", "texture"};

// How many of a clip's objects are as named, in each of kNamed.
using Named = std::array<world::Tally, kNamed.size()>;

Named named(const at::Tensor& clip, const world::Scene& scene) {
  const world::NamedScene wanted = world::name_scene(scene);
  const world::MeasuredScene seen =
      world::measure({clip.const_data_ptr<uint8_t>(), clip.size(0), /*width=*/clip.size(2),
                      /*height=*/clip.size(1)},
                     static_cast<int64_t>(wanted.objects.size()));
  Named result;
  for (const world::Check& check : world::compare(wanted, seen)) {
    const auto place = std::find(kNamed.begin(), kNamed.end(), check.measure);
    if (place != kNamed.end()) result[static_cast<size_t>(place - kNamed.begin())].add(check.right);
  }
  return result;
}

// Mean difference between neighbours, where `inside` is 1. x [clips, frames, h, w, 3].
double roughness(const at::Tensor& x, const at::Tensor& inside) {
  double sum = 0.0;
  for (const int64_t axis : {2, 3}) {
    const at::Tensor weight = inside.narrow(axis, 0, inside.size(axis) - 1);
    sum += ((difference(x, axis).abs().mean(4) * weight).sum() / weight.sum().clamp_min(1.0))
               .item<double>();
  }
  return sum;
}

}  // namespace

Result<std::unique_ptr<CascadeReport>> CascadeReport::open(const TrainContext& context,
                                                           PairAutoencoders autoencoders,
                                                           int64_t scale) {
  const at::NoGradGuard no_grad;
  std::unique_ptr<CascadeReport> report(new CascadeReport(context, std::move(autoencoders), scale));
  const CascadeConfig& c = context.config.cascade;
  if (!context.config.init.judge.empty()) {
    UF_ASSIGN(report->judge_,
              RewardNetwork::open(context, context.config.init.judge, /*trainable=*/false));
  }
  UF_ASSIGN(report->clips_, TrainingClips::open(context, /*unseen=*/true));
  UF_ASSIGN(const CaptionTokenizer tokenizer, CaptionTokenizer::open(context));
  std::vector<TokenRow> rows;
  for (int64_t i = 0; i < c.eval_clips; ++i) {
    rows.push_back(tokenizer.encode(report->clips_->caption(i, 0, /*full=*/true)));
  }
  report->tokens_ = CaptionTokenizer::batch(rows);
  const int64_t frames = pictures_of(context.recipe, c.eval_frames);
  const at::Tensor pictures = first_clips(context, *report->clips_, scale, frames, c.eval_clips);
  // As a stream shows them.
  const FrozenAutoencoder& large = report->autoencoders_.large;
  const int64_t trim = large.vae_decodes ? 0 : large.decoder.config().frames_to_trim();
  report->truth_ = pictures.narrow(1, trim, frames - trim).contiguous();
  report->boxes_ = report->object_boxes();
  std::vector<at::Tensor> high, low, bicubic;
  for (int64_t i = 0; i < c.eval_clips; ++i) {  // one after the other: a clip is large
    const at::Tensor x = pictures.narrow(0, i, 1).to(context.device).to(at::kFloat).div_(255.0);
    const PairLatents pair = encode_pair(context, report->autoencoders_, x, scale);
    high.push_back(pair.high);
    low.push_back(pair.low);
    const at::Tensor small = resized(x, x.size(2) / scale, x.size(3) / scale, c.downsample)
                                 .narrow(1, trim, frames - trim);
    bicubic.push_back(to_bytes(resized(small, x.size(2), x.size(3), ResizeFilter::kBicubic)));
  }
  report->latents_ = {at::cat(high), at::cat(low)};
  report->entries_.push_back(report->measured("bicubic", at::cat(bicubic)));
  report->add("autoencoder", report->latents_.high);
  return report;
}

// Around every object of a scene, on the joined edges; everywhere for other clips.
at::Tensor CascadeReport::object_boxes() const {
  const std::vector<int64_t> sizes(truth_.sizes().begin(), truth_.sizes().end() - 1);
  if (!clips_->scene(0)) return at::ones(sizes, at::kFloat);
  at::Tensor boxes = at::zeros(sizes, at::kFloat);
  auto accessor = boxes.accessor<float, 4>();
  const double canvas = 3.0 / static_cast<double>(scale_);  // canvas pixels in a pixel
  const int64_t first =
      pictures_of(context_.recipe, context_.config.cascade.eval_frames) - sizes[1];
  for (int64_t clip = 0; clip < sizes[0]; ++clip) {
    const world::Scene scene = *clips_->scene(clip);
    for (int64_t frame = 0; frame < sizes[1]; ++frame) {
      for (int object = 0; object < scene.object_count; ++object) {
        const world::SceneObject& o = scene.objects[static_cast<size_t>(object)];
        const world::Pose pose = world::pose_at(o, first + frame);
        const auto within = [&](int64_t pixel, double middle, int64_t length) {
          const double place = (static_cast<double>(pixel) + 0.5) * canvas;
          return std::abs(around(place - middle, static_cast<double>(length))) <=
                 o.radius + kBoxMargin;
        };
        for (int64_t y = 0; y < sizes[2]; ++y) {
          if (!within(y, pose.y, world::kCanvasHeight)) continue;
          for (int64_t x = 0; x < sizes[3]; ++x) {
            if (within(x, pose.x, world::kCanvasWidth)) accessor[clip][frame][y][x] = 1.0F;
          }
        }
      }
    }
  }
  return boxes;
}

CascadeReport::Entry CascadeReport::measured(const std::string& name,
                                             const at::Tensor& pictures) const {
  Entry entry{name, pictures, {}};
  const auto add = [&](std::string_view measure, double value) {
    entry.measures.emplace_back(fmt::format("{}_{}_{}x", measure, name, scale_), value);
  };
  const int64_t clips = pictures.size(0);
  const at::NoGradGuard no_grad;
  double sum = 0.0;
  double sharpness = 0.0;
  double dissimilarity = 0.0;
  double score = 0.0;
  double distance = 0.0;
  for (int64_t i = 0; i < clips; ++i) {
    const auto on_device = [&](const at::Tensor& all) {
      return all.narrow(0, i, 1).to(context_.device).to(at::kFloat);
    };
    const at::Tensor x = on_device(truth_);
    const at::Tensor y = on_device(pictures);
    const at::Tensor inside = on_device(boxes_);
    const at::Tensor error = (y - x).square().mean(4) * inside / (255.0 * 255.0);
    sum += psnr((error.sum() / inside.sum().clamp_min(1.0)).item<double>());
    sharpness += roughness(y, inside) / std::max(roughness(x, inside), 1e-6);
    // The last picture of every latent frame.
    const auto some = [&](const at::Tensor& z) {
      return z.select(0, 0).slice(0, 0, std::nullopt, kPictureStep) / 255.0;
    };
    const at::Tensor pictures_truth = some(x);
    const Windows windows = busiest_windows(pictures_truth, context_.config.reward.crop);
    const at::Tensor wanted = cropped(pictures_truth, windows);
    const at::Tensor shown = cropped(some(y), windows);
    dissimilarity += 1.0 - ms_ssim(shown, wanted).mean().item<double>();
    if (!judge_) continue;
    score += judge_->standardised(context_, shown).mean().item<double>();
    distance += judge_->distance(context_, shown, wanted).mean().item<double>();
  }
  add("psnr", sum / static_cast<double>(clips));
  add("sharpness", sharpness / static_cast<double>(clips));
  add("dissimilarity", dissimilarity / static_cast<double>(clips));
  if (judge_) {
    add("judge", score / static_cast<double>(clips));
    add("feature_distance", distance / static_cast<double>(clips));
  }
  // Smaller pictures have no texture that could be measured.
  if (!clips_->scene(0) || pictures.size(3) < 2 * world::kBaseWidth) return entry;
  std::deque<std::future<Named>> pending;
  Named tallies;
  const auto finish_one = [&] {
    const Named one = pending.front().get();
    pending.pop_front();
    for (size_t i = 0; i < one.size(); ++i) {
      tallies[i].right += one[i].right;
      tallies[i].total += one[i].total;
    }
  };
  for (int64_t i = 0; i < clips; ++i) {
    if (static_cast<int64_t>(pending.size()) >= context_.workers()) finish_one();
    pending.push_back(
        std::async(std::launch::async, named, pictures.select(0, i), *clips_->scene(i)));
  }
  while (!pending.empty()) finish_one();
  for (size_t i = 0; i < kNamed.size(); ++i) {
    if (tallies[i].total == 0) continue;
    add(kNamed[i],
        100.0 * static_cast<double>(tallies[i].right) / static_cast<double>(tallies[i].total));
  }
  return entry;
}

void CascadeReport::add(const std::string& name, const at::Tensor& latents) {
  const at::NoGradGuard no_grad;
  Entry entry = measured(name, autoencoders_.large.decode(context_, latents));
  const auto old = std::find_if(entries_.begin(), entries_.end(),
                                [&](const Entry& e) { return e.name == name; });
  if (old != entries_.end()) {
    *old = std::move(entry);
  } else {
    entries_.push_back(std::move(entry));
  }
}

Measures CascadeReport::measures() const {
  Measures all;
  for (const Entry& entry : entries_) {
    all.insert(all.end(), entry.measures.begin(), entry.measures.end());
  }
  return all;
}

RgbImage CascadeReport::sheet(int64_t clips) const {
  clips = std::min(clips, truth_.size(0));
  const int64_t frame = truth_.size(1) / 2;
  const int64_t height = std::min(kBoxPixels * scale_, truth_.size(2));
  const int64_t width = std::min(kBoxPixels * scale_, truth_.size(3));
  std::vector<at::Tensor> rows;
  for (int64_t clip = 0; clip < clips; ++clip) {
    int64_t x = (truth_.size(3) - width) / 2;
    int64_t y = (truth_.size(2) - height) / 2;
    if (const std::optional<world::Scene> scene = clips_->scene(clip)) {
      const int64_t trim =
          pictures_of(context_.recipe, context_.config.cascade.eval_frames) - truth_.size(1);
      const world::Pose pose = world::pose_at(scene->objects[0], trim + frame);
      const double pixels = static_cast<double>(scale_) / 3.0;  // in a canvas pixel
      x = std::clamp<int64_t>(static_cast<int64_t>(pose.x * pixels) - width / 2, 0,
                              truth_.size(3) - width);
      y = std::clamp<int64_t>(static_cast<int64_t>(pose.y * pixels) - height / 2, 0,
                              truth_.size(2) - height);
    }
    std::vector<at::Tensor> columns;
    const auto add = [&](const at::Tensor& pictures) {
      columns.push_back(
          pictures.select(0, clip).select(0, frame).narrow(0, y, height).narrow(1, x, width));
    };
    add(entries_[0].pictures);
    for (size_t i = 2; i < entries_.size(); ++i) add(entries_[i].pictures);
    add(entries_[1].pictures);
    add(truth_);
    rows.push_back(at::stack(columns));
  }
  return clip_sheet(at::stack(rows), static_cast<int64_t>(entries_.size()) + 1);
}

CascadeReport* report_of(const TrainContext& context, const PairAutoencoders& autoencoders,
                         int64_t scale, std::unique_ptr<CascadeReport>& report) {
  if (!report && context.config.cascade.eval_clips > 0) {
    Result<std::unique_ptr<CascadeReport>> opened =
        CascadeReport::open(context, autoencoders, scale);
    if (!opened.ok()) throw Error(opened.status());
    report = *std::move(opened);
  }
  return report.get();
}

}  // namespace ultraflash

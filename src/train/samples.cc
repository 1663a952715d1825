#include "train/samples.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <array>
#include <deque>
#include <future>
#include <string_view>

#include "train/eval/measure.h"
#include "train/eval/score.h"
#include "train/parallel/data_parallel.h"
#include "train/pictures.h"
#include "train/world/caption.h"
#include "train/world/render.h"

namespace ultraflash {
namespace {

constexpr int64_t kSamplePurpose = 77;  // apart from the draws of steps
constexpr int64_t kSheetColumns = 8;
// Rows of the evaluator's table that are logged, and their names there.
constexpr std::array<std::pair<std::string_view, const char*>, 6> kRows = {
    {{"colour", "colour"},
     {"background", "background"},
     {"motion", "motion"},
     {"shape", "shape"},
     {"size", "size"},
     {"whole clip", "whole_clip"}}};
constexpr size_t kCounts = 6;  // right and total, of all scenes, of one object, of two

struct Measured {
  world::NamedScene wanted;
  std::vector<world::Check> checks;
};

// `clips`: u8 [n, frames, height, width, 3] on the CPU.
Measured measure_clip(const at::Tensor& clips, int64_t row, int64_t caption, uint64_t seed) {
  Measured result;
  result.wanted = world::name_scene(
      world::sample_scene(seed, static_cast<uint64_t>(caption), world::Split::kHeldOut));
  const at::Tensor clip = clips.select(0, row);
  const world::MeasuredScene seen =
      world::measure({clip.const_data_ptr<uint8_t>(), clip.size(0), /*width=*/clip.size(2),
                      /*height=*/clip.size(1)},
                     static_cast<int64_t>(result.wanted.objects.size()));
  result.checks = world::compare(result.wanted, seen);
  return result;
}

}  // namespace

Result<std::unique_ptr<Samples>> Samples::open(const TrainContext& context) {
  std::unique_ptr<Samples> samples(new Samples(context));
  const TrainConfig& config = context.config;
  if (config.evaluate.captions > 0) {
    if (config.data.source != "pocket_world") {
      return make_status(StatusCode::kInvalidArgument,
                         "evaluate.captions: only clips of pocket_world can be measured, not of {}",
                         config.data.source);
    }
    if (context.width() < world::kBaseWidth || context.height() < world::kBaseHeight) {
      return make_status(StatusCode::kInvalidArgument,
                         "evaluate.captions: pictures of {}x{} are too small to be measured; {}x{} "
                         "is the least",
                         context.width(), context.height(), world::kBaseWidth, world::kBaseHeight);
    }
  }
  UF_ASSIGN(samples->autoencoder_, FrozenAutoencoder::open(context));
  UF_ASSIGN(samples->unseen_, TrainingClips::open(context, /*unseen=*/true));
  UF_ASSIGN(CaptionTokenizer tokenizer, CaptionTokenizer::open(context));
  samples->tokenizer_ = std::make_unique<CaptionTokenizer>(std::move(tokenizer));
  return samples;
}

SampleRequest Samples::request(int64_t first, int64_t count) const {
  SampleRequest request;
  request.first = first;
  std::vector<TokenRow> rows;
  for (int64_t i = 0; i < count; ++i) {
    rows.push_back(tokenizer_->encode(unseen_->caption(first + i, 0, /*full=*/true)));
  }
  request.tokens = CaptionTokenizer::batch(rows);
  // Whichever rank draws them.
  context_.seed_shared_step(first, kSamplePurpose);
  const GeneratorSpec& spec = context_.recipe.generator;
  request.noise = at::randn({count, context_.config.bank.latent_frames, spec.latent_height,
                             spec.latent_width, spec.network.in_dim},
                            context_.f32());
  return request;
}

std::optional<RgbImage> Samples::sheet(const DrawSamples& draw) const {
  const int64_t count = context_.config.flow.sample_clips;
  if (count == 0) return std::nullopt;
  const at::NoGradGuard no_grad;
  for (int64_t i = 0; i < count; ++i) {
    context_.log.info(
        fmt::format("sheet row {}: {}", i + 1, unseen_->caption(i, 0, /*full=*/true)));
  }
  return clip_sheet(autoencoder_.decode(context_, draw(request(0, count))), kSheetColumns);
}

Measures Samples::measure(const DrawSamples& draw) const {
  const at::NoGradGuard no_grad;
  const EvaluateConfig& config = context_.config.evaluate;
  const auto seed = static_cast<uint64_t>(context_.config.data.seed);
  world::ScoreTable table;
  std::deque<std::future<Measured>> pending;
  const auto finish_one = [&] {
    const Measured measured = pending.front().get();
    pending.pop_front();
    table.add(measured.wanted, measured.checks);
  };
  int64_t turn = 0;
  for (int64_t first = 0; first < config.captions; first += config.batch, ++turn) {
    if (turn % context_.ranks() != context_.rank()) continue;
    const int64_t count = std::min(config.batch, config.captions - first);
    const at::Tensor clips = autoencoder_.decode(context_, draw(request(first, count)));
    for (int64_t i = 0; i < count; ++i) {
      if (static_cast<int64_t>(pending.size()) >= context_.workers()) finish_one();
      pending.push_back(std::async(std::launch::async, measure_clip, clips, i, first + i, seed));
    }
  }
  while (!pending.empty()) finish_one();

  std::vector<double> counts;
  for (const auto& [row_name, unused] : kRows) {
    const world::ScoreRow row = table.row(row_name);
    for (const world::Tally& tally : {row.all, row.one, row.two}) {
      counts.push_back(static_cast<double>(tally.right));
      counts.push_back(static_cast<double>(tally.total));
    }
  }
  if (context_.parallel) context_.parallel->group().sum(std::span<double>(counts));
  Measures measures;
  constexpr std::array<const char*, kCounts / 2> kSuffixes = {"", "_one", "_two"};
  for (size_t part = 0; part < kSuffixes.size(); ++part) {
    for (size_t row = 0; row < kRows.size(); ++row) {
      const double total = counts[row * kCounts + 2 * part + 1];
      if (total == 0.0) continue;
      measures.emplace_back(fmt::format("{}{}", kRows[row].second, kSuffixes[part]),
                            100.0 * counts[row * kCounts + 2 * part] / total);
    }
  }
  return measures;
}

Measures main_measures(const Measures& measures) {
  Measures result;
  for (const auto& measure : measures) {
    const bool is_main = std::any_of(kRows.begin(), kRows.end(),
                                     [&](const auto& row) { return measure.first == row.second; });
    if (is_main) result.push_back(measure);
  }
  return result;
}

}  // namespace ultraflash

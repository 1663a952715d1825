#include "train/calibration.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "ops/autograd/torch_tensor.h"
#include "stream/quality_score.h"
#include "train/cascade.h"
#include "train/clips.h"
#include "train/generator.h"
#include "train/pair_bank.h"
#include "train/pictures.h"
#include "train/refiner_stream.h"
#include "train/reward.h"
#include "train/rollout_bank.h"

namespace ultraflash {
namespace {

enum : int64_t { kStreamNoise = 131, kRefinerNoise = 132 };
// Scores above these quantiles go without a context pass; 0: all of them.
constexpr std::array<double, 5> kQuantiles = {0.9, 0.75, 0.5, 0.25, 0.0};
constexpr double kNever = 1.0;        // a threshold that no score passes
constexpr int64_t kDecayStreams = 4;  // that are refined
constexpr int64_t kDecayGroups = 8;
constexpr double kDecayLimit = 0.02;  // of 1 - MS-SSIM, as the specification's of LPIPS

class Calibration {
 public:
  explicit Calibration(const TrainContext& context) : context_(context) {}

  Status open() {
    const TrainConfig& config = context_.config;
    UF_ASSIGN(plan_, stream_plan(context_));
    UF_ASSIGN(text_, TextNetwork::open(context_, config.init.text_encoder, false));
    UF_ASSIGN(generator_, GeneratorNetwork::open(context_, config.init.generator, false));
    UF_ASSIGN(autoencoder_, FrozenAutoencoder::open(context_));
    if (autoencoder_.vae || config.data.source == "random") {
      return make_status(StatusCode::kUnsupported,
                         "calibration decodes pictures with a tiny decoder; this recipe or data "
                         "source has none");
    }
    UF_ASSIGN(const std::unique_ptr<TrainingClips> clips,
              TrainingClips::open(context_, /*unseen=*/true));
    UF_ASSIGN(const CaptionTokenizer tokenizer, CaptionTokenizer::open(context_));
    std::vector<TokenRow> rows;
    streams_ = std::max<int64_t>(config.preference.eval_rollouts, 2);
    for (int64_t i = 0; i < streams_; ++i) {
      rows.push_back(tokenizer.encode(clips->caption(i, 0, /*full=*/true)));
    }
    embeddings_ = text_.run(context_, CaptionTokenizer::batch(rows));
    return {};
  }

  Result<std::filesystem::path> run(const std::filesystem::path& out) {
    nlohmann::ordered_json json;
    const at::Tensor low = skipping(json);
    nlohmann::ordered_json decay = nlohmann::ordered_json::array();
    for (const int64_t scale : context_.config.cascade.scales) {
      UF_ASSIGN(nlohmann::ordered_json of_scale, shrinking_cache(scale, low));
      decay.push_back(std::move(of_scale));
    }
    json["shrinking_cache"] = std::move(decay);
    std::filesystem::path path = out / "cache_management.json";
    std::ofstream file(path);
    file << json.dump(2) << "\n";
    file.close();
    if (!file) return make_status(StatusCode::kIo, "{}: cannot be written", path.string());
    return path;
  }

 private:
  struct Streams {
    at::Tensor low;  // f32 [streams, frames, h, w, c]
    double seconds = 0.0;
    int64_t skipped = 0;         // context passes
    std::vector<double> scores;  // of chunks after the first
  };
  // Means over streams and pictures of each group.
  struct Drift {
    std::vector<double> saturation;
    std::vector<double> sharpness;
  };

  [[nodiscard]] int64_t group_frames() const {
    const CascadeSpec* cascade = context_.recipe.cascade(context_.config.cascade.scales[0]);
    const int64_t chunks =
        cascade != nullptr && cascade->refiner ? cascade->refiner->group_chunks : 2;
    return chunks * plan_.chunk_frames;
  }

  // The scores that a session would have: the last latent frame decoded alone.
  std::vector<double> scores_of(const at::Tensor& chunk) const {
    const at::Tensor last = chunk.narrow(1, chunk.size(1) - 1, 1);
    DecoderState state;
    const at::Tensor pictures = to_torch(autoencoder_.decoder.run(
        context_.ops(), from_torch(last.to(to_torch(context_.compute)).contiguous()), state));
    const at::Tensor rgb =
        to_bytes(pictures.select(1, pictures.size(1) - 1).to(at::kFloat)).contiguous();
    std::vector<double> scores;
    for (int64_t i = 0; i < rgb.size(0); ++i) {
      const at::Tensor picture = rgb.select(0, i);
      scores.push_back(sharpness_score({picture.size(1),
                                        picture.size(0),
                                        {picture.const_data_ptr<uint8_t>(),
                                         static_cast<size_t>(picture.numel())}})
                           .value_or(0.0));
    }
    return scores;
  }

  // The same noise every time. Without a threshold every context pass is run.
  Streams roll_out(std::optional<double> threshold, bool score) const {
    const GeneratorSpec& spec = context_.recipe.generator;
    const int64_t frames = context_.config.preference.drift_groups * group_frames();
    context_.seed_shared_step(0, kStreamNoise);
    const at::Tensor noise =
        at::randn({streams_, frames, spec.latent_height, spec.latent_width, spec.network.in_dim},
                  context_.f32());
    Streams result;
    CacheSettings settings;
    settings.without_context = [&](int64_t /*chunk*/, const at::Tensor& clean, bool& all) {
      if (!score) {
        all = threshold.has_value();
        return at::Tensor();
      }
      const std::vector<double> scores = scores_of(clean);
      result.scores.insert(result.scores.end(), scores.begin(), scores.end());
      if (!threshold) return at::Tensor();
      at::Tensor without = at::empty({streams_}, at::kBool);
      for (size_t i = 0; i < scores.size(); ++i) {
        const bool skip = scores[i] > *threshold;
        without.mutable_data_ptr<bool>()[i] = skip;
        result.skipped += skip ? 1 : 0;
      }
      return without.to(context_.device);
    };
    context_.executor->synchronize();
    const auto begin = std::chrono::steady_clock::now();
    result.low = roll_out_whole(context_, generator_, plan_, noise, embeddings_, settings);
    context_.executor->synchronize();
    result.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return result;
  }

  Drift drift_of(const at::Tensor& low) const {
    const int64_t groups = context_.config.preference.drift_groups;
    at::Tensor sums;                             // [2, groups]
    for (int64_t i = 0; i < low.size(0); ++i) {  // one after the other: a stream is long
      DecoderState state;
      const at::Tensor z = low.narrow(0, i, 1).to(to_torch(context_.compute)).contiguous();
      const at::Tensor pictures =
          to_torch(autoencoder_.decoder.run(context_.ops(), from_torch(z), state))
              .to(at::kFloat)
              .clamp(0.0, 1.0)
              .select(0, 0);  // [pictures, height, width, 3]
      const at::Tensor saturation = (pictures.amax(3) - pictures.amin(3)).mean({1, 2});
      const at::Tensor sharpness = difference(pictures, 1).abs().mean({1, 2, 3}) +
                                   difference(pictures, 2).abs().mean({1, 2, 3});
      const at::Tensor both = at::stack({saturation, sharpness}).view({2, groups, -1}).mean(2);
      sums = sums.defined() ? sums + both : both;
    }
    const at::Tensor host =
        (sums / static_cast<double>(low.size(0))).to(at::kCPU, at::kDouble).contiguous();
    const double* values = host.const_data_ptr<double>();
    return {{values, values + groups}, {values + groups, values + 2 * groups}};
  }

  // Largest change over the whole stream that skipping adds to the drift, as a part of the level.
  static double change_of(const Drift& drift, const Drift& plain) {
    const auto change = [](const std::vector<double>& with, const std::vector<double>& without) {
      double level = 0.0;
      for (const double x : without) level += x / static_cast<double>(without.size());
      return std::abs(slope_of(with) - slope_of(without)) *
             static_cast<double>(without.size() - 1) / std::max(level, 1e-9);
    };
    return std::max(change(drift.saturation, plain.saturation),
                    change(drift.sharpness, plain.sharpness));
  }

  // Fills in thresholds, what they change and what they save; returns the streams without skipping.
  at::Tensor skipping(nlohmann::ordered_json& json) const {
    (void)roll_out(std::nullopt, /*score=*/false);  // warm-up
    const double with = roll_out(std::nullopt, /*score=*/false).seconds;
    const double without = roll_out(0.0, /*score=*/false).seconds;
    const double saved = std::max(0.0, 1.0 - without / with);  // when no pass but the first is run
    const Streams plain = roll_out(std::nullopt, /*score=*/true);
    const Drift plain_drift = drift_of(plain.low);
    std::vector<double> sorted = plain.scores;
    std::sort(sorted.begin(), sorted.end());
    context_.log.info(
        fmt::format("{} streams of {} groups; scores {:.3f} to {:.3f}; without context passes the "
                    "generator takes {:.1f} % less time",
                    streams_, context_.config.preference.drift_groups, sorted.front(),
                    sorted.back(), 100.0 * saved));
    json["score"] = "sharpness";
    json["streams"] = streams_;
    json["groups"] = context_.config.preference.drift_groups;
    double best = kNever;
    nlohmann::ordered_json rows = nlohmann::ordered_json::array();
    bool within = true;
    for (const double quantile : kQuantiles) {
      const auto place = static_cast<size_t>(quantile * static_cast<double>(sorted.size()));
      const double threshold = quantile == 0.0 ? 0.0 : sorted[std::min(place, sorted.size() - 1)];
      const Streams streams = roll_out(threshold, /*score=*/true);
      const double change = change_of(drift_of(streams.low), plain_drift);
      const double share =
          static_cast<double>(streams.skipped) / static_cast<double>(streams.scores.size());
      // A lower threshold than one that fails is not considered.
      within = within && change < context_.config.preference.drift_limit;
      if (within) best = threshold;
      context_.log.info(
          fmt::format("scores above {:.3f} (quantile {:.2f}): {:.0f} % of context passes skipped, "
                      "drift changes by {:.2f} %, {:.1f} % less time{}",
                      threshold, quantile, 100.0 * share, 100.0 * change, 100.0 * share * saved,
                      within ? "" : ", not within the limit"));
      rows.push_back({{"quantile", quantile},
                      {"threshold", threshold},
                      {"skipped", share},
                      {"drift_change", change},
                      {"time_saved", share * saved},
                      {"within_limit", within}});
    }
    json["refresh_threshold"] = best;
    json["drift_limit"] = context_.config.preference.drift_limit;
    json["time_saved_without_context_passes"] = saved;
    json["thresholds"] = std::move(rows);
    context_.log.info(
        best < kNever ? fmt::format("--dcm-refresh sharpness --dcm-refresh-threshold {:.4f}", best)
                      : std::string("no threshold keeps the drift within its limit"));
    return plain.low;
  }

  // The same streams refined with a full and with a shrinking cache.
  Result<nlohmann::ordered_json> shrinking_cache(int64_t scale, const at::Tensor& all) const {
    const TrainConfig& config = context_.config;
    UF_ASSIGN(const CascadeSpec* cascade, find_cascade(context_, scale));
    UF_ASSIGN(const PairAutoencoders autoencoders, PairAutoencoders::open(context_, scale));
    UF_ASSIGN(const UpsamplerNetwork upsampler,
              UpsamplerNetwork::open(context_, config.init.upsampler, scale, /*trainable=*/false));
    UF_ASSIGN(const Refiner refiner,
              Refiner::open(context_, config.init.refiner, /*trainable=*/false));
    std::optional<RewardNetwork> judge;
    if (!config.init.judge.empty()) {
      UF_ASSIGN(judge, RewardNetwork::open(context_, config.init.judge, /*trainable=*/false));
    }
    const int64_t group = group_frames();
    const int64_t groups = std::min(kDecayGroups, all.size(1) / group);
    const int64_t count = std::min(kDecayStreams, all.size(0));
    const at::Tensor low = all.narrow(0, 0, count).narrow(1, 0, groups * group);
    const RefinerNetwork& network = refiner.at(scale);
    const TextKv text =
        network.text(context_, from_torch(to_torch(embeddings_).narrow(0, 0, count).contiguous()));
    const at::Tensor y = upsampler.run_window(context_, low, 0);
    context_.seed_shared_step(scale, kRefinerNoise);
    const at::Tensor noise = at::randn_like(y);
    const auto refined = [&](KvSchedule schedule) {
      return refine_stream(context_, network, text, noise, y, group, cascade->refiner->kv_len,
                           schedule);
    };
    const at::Tensor full = refined(KvSchedule::kFull);
    const at::Tensor shrunk = refined(KvSchedule::kDecaying);
    double dissimilarity = 0.0;
    double distance = 0.0;
    double error = 0.0;
    for (int64_t i = 0; i < groups; ++i) {
      const auto part = [&](const at::Tensor& x) { return x.narrow(1, i * group, group); };
      const DecodedPair pictures = decode_pair(context_, autoencoders.large, part(shrunk),
                                               part(full), count, group - 1, i, kRefinerNoise);
      const at::Tensor made = pictures.last_made().clamp(0.0, 1.0);
      const at::Tensor truth = pictures.last_truth().clamp(0.0, 1.0);
      const Windows windows = busiest_windows(truth, config.reward.crop);
      const at::Tensor a = cropped(made, windows);
      const at::Tensor b = cropped(truth, windows);
      dissimilarity += (1.0 - ms_ssim(a, b)).mean().item<double>();
      error += (a - b).square().mean().item<double>();
      if (judge) distance += judge->distance(context_, a, b).mean().item<double>();
    }
    const auto n = static_cast<double>(groups);
    nlohmann::ordered_json json = {{"scale", scale},
                                   {"groups", groups},
                                   {"dissimilarity", dissimilarity / n},
                                   {"psnr", psnr(error / n)},
                                   {"limit", kDecayLimit},
                                   {"within_limit", dissimilarity / n < kDecayLimit}};
    if (judge) json["feature_distance"] = distance / n;
    context_.log.info(fmt::format(
        "{}x, {} groups: a shrinking cache changes pictures by 1 - MS-SSIM {:.4f} ({:.1f} dB){}",
        scale, groups, dissimilarity / n, psnr(error / n),
        dissimilarity / n < kDecayLimit ? "" : ", not within the limit"));
    return json;
  }

  const TrainContext& context_;
  RolloutPlan plan_;
  TextNetwork text_;
  GeneratorNetwork generator_;
  FrozenAutoencoder autoencoder_;
  int64_t streams_ = 0;
  Tensor embeddings_;
};

}  // namespace

double slope_of(const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  double mean = 0.0;
  for (const double v : values) mean += v / n;
  double product = 0.0;
  double square = 0.0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double x = static_cast<double>(i) - 0.5 * (n - 1.0);
    product += x * (values[i] - mean);
    square += x * x;
  }
  return square > 0.0 ? product / square : 0.0;
}

Result<std::filesystem::path> calibrate_cache_management(const TrainContext& context,
                                                         const std::filesystem::path& out) {
  const at::NoGradGuard no_grad;
  Calibration calibration(context);
  UF_TRY(calibration.open());
  return calibration.run(out);
}

}  // namespace ultraflash

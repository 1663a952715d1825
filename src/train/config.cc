#include "train/config.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <numbers>

#include "core/check.h"
#include "recipes/json_fields.h"
#include "train/parallel/rank_group.h"
#include "weights/strict_json.h"

namespace ultraflash {

template <>
struct EnumNames<TrainStage> {
  static constexpr const char* kNames[] = {"autoencoder",  "flow_matching", "causal", "ode",
                                           "self_forcing", "upsampler",     "sr",     "sr_sparse",
                                           "reward",       "preference"};
};
template <>
struct EnumNames<ResizeFilter> {
  static constexpr const char* kNames[] = {"area", "bilinear", "bicubic"};
};
template <>
struct EnumNames<DegradeCodec> {
  static constexpr const char* kNames[] = {"auto", "h264", "blocks"};
};
template <>
struct EnumNames<DegradeFlow> {
  static constexpr const char* kNames[] = {"auto", "opencv", "own"};
};
template <>
struct EnumNames<OptimizerRule> {
  static constexpr const char* kNames[] = {"adamw", "muon"};
};
template <>
struct EnumNames<LrSchedule> {
  static constexpr const char* kNames[] = {"constant", "cosine"};
};
template <>
struct EnumNames<ComputeType> {
  static constexpr const char* kNames[] = {"f32", "bf16"};
};
template <>
struct EnumNames<Recompute> {
  static constexpr const char* kNames[] = {"none", "blocks"};
};
template <>
struct EnumNames<CausalMode> {
  static constexpr const char* kNames[] = {"diffusion_forcing", "teacher_forcing"};
};
template <>
struct EnumNames<DistillationLoss> {
  static constexpr const char* kNames[] = {"dmd", "sid", "gan"};
};

namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;

Status invalid(const std::string& what) {
  return {StatusCode::kInvalidArgument, "training config: " + what};
}

Status check(const OptimizerConfig& o, const char* name) {
  const auto share = [](double x) { return x >= 0.0 && x < 1.0; };
  if (!(o.lr >= 0.0) || !std::isfinite(o.lr) || !share(o.beta1) || !share(o.beta2) ||
      !share(o.momentum) || !(o.matrix_lr >= 0.0) || !(o.eps > 0.0) || !(o.weight_decay >= 0.0) ||
      !(o.clip_norm >= 0.0) || o.warmup_steps < 0 ||
      !(o.final_lr_ratio >= 0.0 && o.final_lr_ratio <= 1.0)) {
    return invalid(fmt::format(
        "{}: lr, matrix_lr, weight_decay, clip_norm and warmup_steps are not negative, betas and "
        "momentum lie in [0, 1), eps is positive, final_lr_ratio lies in [0, 1]",
        name));
  }
  return {};
}

// Sets `path` ("a.b.c") of `object` to `text`, read as JSON where it is JSON.
Status apply_override(nlohmann::json& object, const std::string& assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) {
    return make_status(StatusCode::kInvalidArgument, "--set {}: write it as field=value",
                       assignment);
  }
  std::string pointer = fmt::format("/{}", assignment.substr(0, equals));
  std::replace(pointer.begin(), pointer.end(), '.', '/');
  const std::string text = assignment.substr(equals + 1);
  nlohmann::json value = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) value = text;
  try {
    object[nlohmann::json::json_pointer(pointer)] = std::move(value);
  } catch (const nlohmann::json::exception&) {
    return make_status(StatusCode::kInvalidArgument, "--set {}: there is no such field",
                       assignment);
  }
  return {};
}

}  // namespace

Status TrainConfig::validate() const {
  UF_TRY(check(optimizer, "optimizer"));
  UF_TRY(check(critic_optimizer, "critic_optimizer"));
  if (gpus < 1 || gpus > kMaxRanks) {
    return invalid(fmt::format("gpus lies in 1 to {}", kMaxRanks));
  }
  if (batch < 1 || steps < 0 || !(minutes >= 0.0) || log_every < 1 || sheet_every < 0 ||
      checkpoint_every < 0) {
    return invalid(
        "batch and log_every are at least 1; steps, minutes, sheet_every and "
        "checkpoint_every are not negative");
  }
  if (!(data.hold_out > 0.0 && data.hold_out < 1.0)) return invalid("data.hold_out lies in (0, 1)");
  if (!(data.part > 0.0 && data.part <= 1.0)) return invalid("data.part lies in (0, 1]");
  if (crop.height < 0 || crop.width < 0 || (crop.height == 0) != (crop.width == 0) ||
      crop.height % 2 != 0 || crop.width % 2 != 0) {
    return invalid("crop: height and width are even numbers of latents, both or none");
  }
  if (!(ema.decay >= 0.0 && ema.decay < 1.0)) return invalid("ema.decay lies in [0, 1)");
  if (autoencoder.frames < 4 || autoencoder.frames % 4 != 0 || autoencoder.eval_frames < 4 ||
      autoencoder.eval_frames % 4 != 0 || autoencoder.eval_clips < 0 ||
      autoencoder.data_scales.empty() || autoencoder.crops_per_clip < 1 ||
      std::any_of(autoencoder.data_scales.begin(), autoencoder.data_scales.end(),
                  [](int64_t s) { return s < 1 || s > 8; })) {
    return invalid(
        "autoencoder: frames and eval_frames are multiples of 4, data_scales a list of "
        "numbers from 1 to 8, crops_per_clip at least 1");
  }
  if (!(autoencoder.object_crops >= 0.0 && autoencoder.object_crops <= 1.0)) {
    return invalid("autoencoder.object_crops lies in [0, 1]");
  }
  if (!(autoencoder.spectrum >= 0.0) || !(cascade.spectrum >= 0.0)) {
    return invalid("spectrum of autoencoder and cascade is not negative");
  }
  if (!(autoencoder.detail >= 0.0) || !(autoencoder.teacher >= 0.0) ||
      !(autoencoder.upsampled_share >= 0.0 && autoencoder.upsampled_share <= 1.0) ||
      (autoencoder.scale == 1 &&
       (autoencoder.teacher > 0.0 || autoencoder.upsampled_share > 0.0))) {
    return invalid(
        "autoencoder: teacher and upsampled_share are for decoders above scale 1; they are not "
        "negative, and the share is at most 1");
  }
  if (!(autoencoder.gan >= 0.0) || !(autoencoder.gan_features >= 0.0) ||
      !(autoencoder.gan_critic_after >= 0.0 &&
        autoencoder.gan_critic_after <= autoencoder.gan_after) ||
      autoencoder.gan_width < 1) {
    return invalid(
        "autoencoder: gan and gan_features are not negative, 0 <= gan_critic_after <= gan_after, "
        "gan_width is at least 1");
  }
  if (batch % autoencoder.crops_per_clip != 0) {
    return invalid("autoencoder.crops_per_clip must divide batch");
  }
  if (bank.clips < 1 || bank.latent_frames < 1 || bank.refresh < 0 || bank.encode_batch < 1 ||
      bank.captions < 1 || bank.full_captions < 0 || bank.full_captions > bank.captions ||
      bank.refresh > bank.clips) {
    return invalid("bank: sizes are positive, and refresh is at most clips");
  }
  if (!(flow.shift > 0.0) || !(flow.sample_shift > 0.0) || flow.sample_steps < 1 ||
      flow.sample_clips < 0 || !(flow.text_dropout >= 0.0 && flow.text_dropout <= 1.0) ||
      !(flow.uniform_share >= 0.0 && flow.uniform_share <= 1.0) || !(flow.logit_std >= 0.0)) {
    return invalid("flow: shifts and sample_steps are positive, shares lie in [0, 1]");
  }
  if (evaluate.captions < 0 || !(evaluate.every_minutes >= 0.0) || evaluate.batch < 1) {
    return invalid("evaluate: captions and every_minutes are not negative, batch is at least 1");
  }
  if (ode.teacher_steps < 1 || ode.pairs < 1 || ode.make_batch < 1 || ode.refresh_every < 0 ||
      ode.pairs % ode.make_batch != 0) {
    return invalid("ode: sizes are positive and make_batch divides pairs");
  }
  if (self_forcing.critic_per_generator < 1 ||
      !(self_forcing.min_sigma > 0.0 && self_forcing.min_sigma < self_forcing.max_sigma &&
        self_forcing.max_sigma <= 1.0) ||
      self_forcing.window_frames < 0 || self_forcing.sink_frames < 0 ||
      self_forcing.critic_first_steps < 0) {
    return invalid(
        "self_forcing: critic_per_generator is at least 1, 0 < min_sigma < max_sigma <= "
        "1");
  }
  if (self_forcing.stream_frames != 0 &&
      (self_forcing.stream_frames < bank.latent_frames || self_forcing.window_frames == 0)) {
    return invalid(fmt::format(
        "self_forcing.stream_frames is {}; it is 0, or at least bank.latent_frames ({}) and needs "
        "a window_frames that the stream moves through",
        self_forcing.stream_frames, bank.latent_frames));
  }
  if (!(self_forcing.gan_r1_weight >= 0.0) || !(self_forcing.gan_r2_weight >= 0.0) ||
      !(self_forcing.gan_r1_sigma > 0.0) || !(self_forcing.gan_r2_sigma > 0.0) ||
      !(self_forcing.gan_denoising_weight >= 0.0) ||
      !(self_forcing.discriminator_lr_ratio >= 0.0)) {
    return invalid(
        "self_forcing: weights are not negative, and gan_r1_sigma and gan_r2_sigma positive");
  }
  const auto share = [](double x) { return x >= 0.0 && x <= 1.0; };
  const bool pairs =
      stage == TrainStage::kUpsampler || stage == TrainStage::kSr || stage == TrainStage::kSrSparse;
  if (cascade.scales.empty() || cascade.frames < 1 || cascade.eval_clips < 0 ||
      cascade.eval_frames < 1 || (pairs && cascade.frames > bank.latent_frames)) {
    return invalid(
        "cascade: scales is a list of the recipe's scales, frames lies in 1 to "
        "bank.latent_frames, eval_frames is at least 1");
  }
  if (!(upsampler.eps > 0.0) || !(upsampler.temporal >= 0.0) || !(upsampler.pool >= 0.0) ||
      !(upsampler.picture >= 0.0) || upsampler.picture_frames < 1 || upsampler.picture_clips < 1 ||
      !share(upsampler.degraded_share) || !share(upsampler.generated_share) ||
      upsampler.degraded_share + upsampler.generated_share > 1.0) {
    return invalid(
        "upsampler: eps and picture_frames are positive, weights are not negative, shares lie in "
        "[0, 1] and are at most 1 together");
  }
  if (!share(degrade.share) || !(degrade.amplitude > 0.0)) {
    return invalid("degrade: share lies in [0, 1], amplitude is positive");
  }
  if (!share(sr.condition_noise) || !share(sr.condition_dropout) || !share(sr.start_share) ||
      !share(sr.guided_share) ||
      !(sr.guided_low >= 0.0 && sr.guided_low <= sr.guided_high && sr.guided_high <= 1.0)) {
    return invalid("sr: shares, noise and sigmas lie in [0, 1], guided_low <= guided_high");
  }
  const SrSparseConfig& s = sr_sparse;
  const auto fits = [&](int64_t frames) {
    return frames >= 1 && (stage != TrainStage::kSrSparse || 2 * frames <= bank.latent_frames);
  };
  if (s.group_frames.empty() || !std::all_of(s.group_frames.begin(), s.group_frames.end(), fits) ||
      !share(s.adaptation) || !share(s.stream_share) || s.max_kv_len < 1 ||
      !(s.least_ratio > 0.0 && s.least_ratio <= s.most_ratio) || !(s.latent >= 0.0) ||
      !(s.picture >= 0.0) || !(s.dmd >= 0.0) || s.picture_frames < 1 || s.picture_clips < 1 ||
      !(s.timestep_shift > 0.0) || s.critic_per_student < 1 ||
      !(s.min_sigma > 0.0 && s.min_sigma < s.max_sigma && s.max_sigma <= 1.0)) {
    return invalid(
        "sr_sparse: two groups of any of group_frames fit bank.latent_frames; shares lie in [0, "
        "1], weights are not negative, 0 < least_ratio <= most_ratio, 0 < min_sigma < max_sigma "
        "<= 1");
  }
  if (reward.widths.empty() || reward.crop < 16 || !(reward.margin > 0.0) || !share(reward.part) ||
      !std::all_of(reward.widths.begin(), reward.widths.end(),
                   [](int64_t w) { return w >= 1 && w <= 4096; }) ||
      !(reward.enlarged >= 0.0) || !(reward.damaged >= 0.0) || !(reward.reconstructed >= 0.0) ||
      !(reward.upsampled >= 0.0) || !(reward.disturbed >= 0.0) ||
      !(reward.enlarged + reward.damaged + reward.reconstructed + reward.upsampled +
            reward.disturbed >
        0.0)) {
    return invalid(
        "reward: widths are positive, crop is at least 16, margin is positive, shares of pairs are "
        "not negative and not all 0, part lies in [0, 1]");
  }
  const RewardTermConfig& r = reward_term;
  if (!(r.weight >= 0.0) || !(r.from >= 0.0 && r.from <= r.full) || !(r.tolerance >= 0.0) ||
      !std::isfinite(r.limit)) {
    return invalid(
        "reward_term: weight and tolerance are not negative, 0 <= from <= full, limit is a number");
  }
  const PreferenceConfig& d = preference;
  const int64_t longest =
      d.group_frames.empty() ? 0 : *std::max_element(d.group_frames.begin(), d.group_frames.end());
  const bool prefers = stage == TrainStage::kPreference;
  if (d.rollouts < 1 || d.make_batch < 1 || d.rollouts % d.make_batch != 0 || d.refresh_every < 0 ||
      !share(d.fewer_steps) || !share(d.skip_refresh) || longest < 1 ||
      *std::min_element(d.group_frames.begin(), d.group_frames.end()) < 1 || d.groups < 1 ||
      (prefers && d.groups * longest > bank.latent_frames) || !share(d.condition_noise) ||
      d.teacher_steps < 1 || !(d.teacher_shift > 0.0) || !(d.consistency > 0.0) ||
      !(d.beta > 0.0) || !share(d.start_share) || !(d.dmd >= 0.0) || !(d.anchor >= 0.0) ||
      d.picture_frames < 1 || d.critic_per_student < 1 || d.critic_first_steps < 0 ||
      d.eval_rollouts < 0 || d.drift_groups < 2 || !(d.drift_limit > 0.0)) {
    return invalid(
        "preference: sizes are positive and make_batch divides rollouts; groups of the longest of "
        "group_frames fit bank.latent_frames; shares and condition_noise lie in [0, 1], weights "
        "are "
        "not negative, beta, consistency and drift_limit are positive, drift_groups is at least 2");
  }
  if (r.weight > 0.0 && init.reward.empty() && data.source != "random") {
    return invalid("reward_term: init.reward must name the network that gives it");
  }
  return {};
}

Result<TrainConfig> load_train_config(const std::filesystem::path& path,
                                      const std::vector<std::string>& overrides) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return make_status(StatusCode::kNotFound, "{}: no such training config", path.string());
  }
  std::ifstream stream(path, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(stream), {});
  if (stream.bad() || text.size() > kMaxConfigBytes) {
    return make_status(StatusCode::kIo, "{}: cannot be read, or is no config", path.string());
  }
  UF_ASSIGN(nlohmann::json json, parse_strict_json(text, path.string()));
  for (const std::string& assignment : overrides) UF_TRY(apply_override(json, assignment));
  TrainConfig config;
  Status status;
  JsonReader reader(json, "", status);
  config.visit_fields(reader);
  reader.finish();
  if (status.ok()) status = config.validate();
  if (!status.ok()) {
    return make_status(status.code(), "{}: {}", path.string(), status.message());
  }
  return config;
}

const char* stage_name(TrainStage stage) {
  return EnumNames<TrainStage>::kNames[static_cast<size_t>(stage)];
}

std::string train_config_json(TrainConfig config, int indent) {
  return JsonWriter::write(config).dump(indent);
}

double learning_rate_factor(const OptimizerConfig& config, int64_t step, double progress) {
  double factor = 1.0;
  if (config.schedule == LrSchedule::kCosine) {
    const double p = std::clamp(progress, 0.0, 1.0);
    factor = config.final_lr_ratio +
             (1.0 - config.final_lr_ratio) * 0.5 * (1.0 + std::cos(std::numbers::pi * p));
  }
  if (step < config.warmup_steps) {
    factor *= static_cast<double>(step + 1) / static_cast<double>(config.warmup_steps);
  }
  return factor;
}

}  // namespace ultraflash

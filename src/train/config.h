// TrainConfig: everything a stage of training can be told, one JSON file a stage
// (models/*/train/*.json). Keys are strict; absent ones keep the defaults below.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "train/cascade_config.h"
#include "ultraflash/status.h"

namespace ultraflash {

enum class TrainStage : uint8_t {
  kAutoencoder,
  kFlowMatching,
  kCausal,
  kOde,
  kSelfForcing,
  kUpsampler,
  kSr,
  kSrSparse,
  kReward,
  kPreference,
};
enum class OptimizerRule : uint8_t { kAdamW, kMuon };
enum class LrSchedule : uint8_t { kConstant, kCosine };
enum class ComputeType : uint8_t { kF32, kBF16 };
enum class Recompute : uint8_t { kNone, kBlocks };
enum class CausalMode : uint8_t { kDiffusionForcing, kTeacherForcing };
enum class DistillationLoss : uint8_t { kDmd, kSid, kGan };

struct OptimizerConfig {
  OptimizerRule rule = OptimizerRule::kAdamW;
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.99;
  double eps = 1e-8;
  double weight_decay = 0.0;  // of parameters with two axes or more
  double clip_norm = 1.0;     // of the gradient over all parameters; 0: none
  double momentum = 0.95;     // of Muon
  double matrix_lr = 1.0;     // Muon's rate for the matrices of blocks, as a multiple of lr
  int64_t warmup_steps = 100;
  LrSchedule schedule = LrSchedule::kCosine;
  double final_lr_ratio = 0.01;  // of a cosine, at its end
  /// A cosine ends with the time limit instead of with the steps. The rate of a step then depends
  /// on the machine's speed; two runs are equal only under the same clock.
  bool schedule_by_time = false;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("rule", rule);
    visit("lr", lr);
    visit("beta1", beta1);
    visit("beta2", beta2);
    visit("eps", eps);
    visit("weight_decay", weight_decay);
    visit("clip_norm", clip_norm);
    visit("momentum", momentum);
    visit("matrix_lr", matrix_lr);
    visit("warmup_steps", warmup_steps);
    visit("schedule", schedule);
    visit("final_lr_ratio", final_lr_ratio);
    visit("schedule_by_time", schedule_by_time);
  }
};

struct EmaConfig {
  double decay = 0.999;
  int64_t start_step = 0;  // before it the average is the weights themselves
  /// decay grows as (1 + n) / (10 + n) towards its value, so that a short run forgets its start.
  bool ramp = true;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("decay", decay);
    visit("start_step", start_step);
    visit("ramp", ramp);
  }
};

/// Where clips come from: the pocket world, or a folder (or tar shards) of video and captions (see
/// data/clip_source.h), cut and resized to the recipe's size and brought to its frame rate.
struct DataConfig {
  /// Or a path; "random": latents that are noise, for trials of the stages that work on latents.
  std::string source = "pocket_world";
  int64_t seed = 1;
  double hold_out = 0.02;  // share of the files that only evaluation and sheets see
  /// Of the sides of a video's picture (of the largest middle part with the recipe's proportions)
  /// that a clip shows, at a place drawn anew for every clip: 1 is all of it.
  double part = 1.0;
  int64_t workers = 0;   // threads that make batches; 0: all processors but one
  int64_t prefetch = 0;  // batches ready or being made; 0: two a worker

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("source", source);
    visit("seed", seed);
    visit("hold_out", hold_out);
    visit("part", part);
    visit("workers", workers);
    visit("prefetch", prefetch);
  }
};

/// Weights to begin with: a file, or a folder with the recipe's files. Empty: random weights.
struct InitConfig {
  std::string autoencoder;
  std::string text_encoder;
  std::string generator;
  std::string real_score;  // self-forcing: frozen teacher, and the start of the fake score
  /// Decoder of the scales above 1, with its encoder where the recipe has one there; without it the
  /// autoencoder of scale 1 serves all.
  std::string decoder;
  std::string upsampler;  // "{scale}" in it stands for the number: "out/train/upsampler_{scale}x"
  /// Super-resolution transformer. Without it one begins as the generator of `generator`: its first
  /// blocks, and a patch embedding that does not see the condition yet.
  std::string refiner;
  std::string reward;     // network of the reward stage: for a term of the loss
  std::string judge;      // another one, of another seed, that only measures
  std::string tokenizer;  // spiece.model; empty: that of the shipped models
  /// Embeddings of all captions, made ahead with `ultraflash train --write-embeddings`; "random"
  /// for trials. The text encoder is then neither loaded nor trained.
  std::string text_embeddings;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("autoencoder", autoencoder);
    visit("text_encoder", text_encoder);
    visit("generator", generator);
    visit("real_score", real_score);
    visit("decoder", decoder);
    visit("upsampler", upsampler);
    visit("refiner", refiner);
    visit("reward", reward);
    visit("judge", judge);
    visit("tokenizer", tokenizer);
    visit("text_embeddings", text_embeddings);
  }
};

struct AutoencoderConfig {
  int64_t scale = 1;  // of the recipe: whose decoder is trained, and its encoder if it has one
  /// Scales of the clips, one per step in turn (a scale named twice comes twice as often). Whole
  /// frames at scale 1, crops of that size at the others.
  std::vector<int64_t> data_scales = {1, 2, 3};
  int64_t frames = 16;         // of a clip, a multiple of 4
  int64_t crops_per_clip = 1;  // at scales above 1
  double object_crops = 0.0;   // share of those crops that are around an object of a scene
  double l1 = 1.0;             // weights of the losses
  double mse = 4.0;
  double gradient = 0.5;  // L1 of spatial differences
  /// More weight on errors where the truth has detail: 1 + detail times its local slope over the
  /// mean one.
  double detail = 0.0;
  double temporal = 0.25;       // L1 of differences between frames
  double spectrum = 0.0;        // distance of local spectra (spectrum_distance in train/pictures.h)
  double latent_kl = 0.01;      // of each latent channel's mean and variance to a unit normal
  double latent_noise = 0.05;   // deviation of noise added to latents before decoding
  bool freeze_encoder = false;  // only the decoder learns: what was trained on the latents stays
  // Above scale 1 (ultra-flash-training 3.2):
  double teacher = 0.0;           // L1 to what the autoencoder of scale 1 shows
  double upsampled_share = 0.0;   // of the batches, from small clips through init.upsampler
  double gan = 0.0;               // a patch discriminator's hinge loss (critic_optimizer trains it)
  double gan_features = 0.0;      // L1 of what that discriminator finds in the pictures
  double gan_critic_after = 0.2;  // part of the run after which the discriminator learns
  double gan_after = 0.3;         // and after which the decoder listens to it
  int64_t gan_width = 64;         // channels of its first convolutions
  int64_t eval_clips = 8;         // unseen clips measured at each scale
  int64_t eval_frames = 24;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("scale", scale);
    visit("data_scales", data_scales);
    visit("frames", frames);
    visit("crops_per_clip", crops_per_clip);
    visit("object_crops", object_crops);
    visit("l1", l1);
    visit("mse", mse);
    visit("gradient", gradient);
    visit("detail", detail);
    visit("temporal", temporal);
    visit("spectrum", spectrum);
    visit("latent_kl", latent_kl);
    visit("latent_noise", latent_noise);
    visit("freeze_encoder", freeze_encoder);
    visit("teacher", teacher);
    visit("upsampled_share", upsampled_share);
    visit("gan", gan);
    visit("gan_features", gan_features);
    visit("gan_critic_after", gan_critic_after);
    visit("gan_after", gan_after);
    visit("gan_width", gan_width);
    visit("eval_clips", eval_clips);
    visit("eval_frames", eval_frames);
  }
};

/// Clips encoded once and kept on the device, replaced little by little.
struct BankConfig {
  int64_t clips = 4096;
  int64_t latent_frames = 21;
  int64_t refresh = 8;        // clips replaced per step; 0: the bank stays
  int64_t encode_batch = 32;  // clips of one call of the encoder
  int64_t captions = 4;       // captions drawn for each clip
  int64_t full_captions = 0;  // so many of them name everything, as evaluation does

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("clips", clips);
    visit("latent_frames", latent_frames);
    visit("refresh", refresh);
    visit("encode_batch", encode_batch);
    visit("captions", captions);
    visit("full_captions", full_captions);
  }
};

/// Noise levels of flow matching and how samples are drawn for the sheets.
struct FlowConfig {
  double logit_mean = 0.0;  // sigma = shifted sigmoid of a normal number
  double logit_std = 1.0;
  double shift = 3.0;
  double text_dropout = 0.1;
  double uniform_share = 0.1;  // of the samples, with sigma uniform in [0, 1] before the shift
  int64_t sample_steps = 30;
  double sample_shift = 5.0;
  double guidance = 4.0;     // x_u + g (x_c - x_u)
  int64_t sample_clips = 8;  // on a sheet

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("logit_mean", logit_mean);
    visit("logit_std", logit_std);
    visit("shift", shift);
    visit("text_dropout", text_dropout);
    visit("uniform_share", uniform_share);
    visit("sample_steps", sample_steps);
    visit("sample_shift", sample_shift);
    visit("guidance", guidance);
    visit("sample_clips", sample_clips);
  }
};

struct CausalConfig {
  CausalMode mode = CausalMode::kTeacherForcing;
  double clean_noise = 0.0;  // teacher forcing: largest sigma of the clean half

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("mode", mode);
    visit("clean_noise", clean_noise);
  }
};

/// Regression onto the teacher's trajectories (wan-self-forcing 8.8).
struct OdeConfig {
  int64_t teacher_steps = 48;
  double teacher_shift = 5.0;
  double guidance = 4.0;
  int64_t pairs = 4096;  // trajectories kept on the device
  int64_t make_batch = 64;
  int64_t refresh_every = 8;  // steps between new batches of trajectories; 0: none

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("teacher_steps", teacher_steps);
    visit("teacher_shift", teacher_shift);
    visit("guidance", guidance);
    visit("pairs", pairs);
    visit("make_batch", make_batch);
    visit("refresh_every", refresh_every);
  }
};

struct SelfForcingConfig {
  DistillationLoss loss = DistillationLoss::kDmd;
  int64_t critic_per_generator = 5;
  double guidance = 3.0;  // r_c + w (r_c - r_u)
  double timestep_shift = 5.0;
  double min_sigma = 0.02;
  double max_sigma = 0.98;
  bool same_exit_step = true;
  double context_noise = 0.0;
  int64_t critic_first_steps = 0;  // at the start, without updates of the generator
  double sid_alpha = 1.0;
  // The GAN objective (wan-self-forcing 8.7). Real and generated clips are paired by caption, noise
  // level and, in the critic's loss, noise.
  double gan_weight = 0.01;         // of the generator's loss
  double gan_critic_weight = 0.01;  // of the discriminator's loss
  bool gan_relativistic = false;    // softplus of logit differences of pairs
  double gan_r1_weight = 0.0;       // penalty on the logit's slope at real clips
  double gan_r2_weight = 0.0;       // and at generated ones
  double gan_r1_sigma = 0.01;       // deviation of the disturbance that measures the slope
  double gan_r2_sigma = 0.01;
  double gan_denoising_weight = 0.0;    // of the fake score's flow loss beside it
  double discriminator_lr_ratio = 1.0;  // of the heads, to critic_optimizer.lr
  int64_t window_frames = 0;            // of the KV cache; 0: all frames
  int64_t sink_frames = 0;
  /// Above bank.latent_frames: the clip that is scored is the end of a stream of up to so many
  /// latent frames, how many is drawn for every update; what leads there has no gradient.
  int64_t stream_frames = 0;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("loss", loss);
    visit("critic_per_generator", critic_per_generator);
    visit("guidance", guidance);
    visit("timestep_shift", timestep_shift);
    visit("min_sigma", min_sigma);
    visit("max_sigma", max_sigma);
    visit("same_exit_step", same_exit_step);
    visit("context_noise", context_noise);
    visit("critic_first_steps", critic_first_steps);
    visit("sid_alpha", sid_alpha);
    visit("gan_weight", gan_weight);
    visit("gan_critic_weight", gan_critic_weight);
    visit("gan_relativistic", gan_relativistic);
    visit("gan_r1_weight", gan_r1_weight);
    visit("gan_r2_weight", gan_r2_weight);
    visit("gan_r1_sigma", gan_r1_sigma);
    visit("gan_r2_sigma", gan_r2_sigma);
    visit("gan_denoising_weight", gan_denoising_weight);
    visit("discriminator_lr_ratio", discriminator_lr_ratio);
    visit("window_frames", window_frames);
    visit("sink_frames", sink_frames);
    visit("stream_frames", stream_frames);
  }
};

/// Latents of the base size that this run works on instead of the recipe's: for networks that were
/// made for more than a training step can hold. 0: the recipe's.
struct CropConfig {
  int64_t height = 0;
  int64_t width = 0;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("height", height);
    visit("width", width);
  }
};

/// Measuring clips drawn for held-out captions while training goes on, as `ultraflash eval` does
/// with files.
struct EvaluateConfig {
  int64_t captions = 0;        // 0: none
  double every_minutes = 0.0;  // between measurements; 0: only at the end
  int64_t batch = 16;          // clips drawn at once; ranks take turns with batches

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("captions", captions);
    visit("every_minutes", every_minutes);
    visit("batch", batch);
  }
};

struct TrainConfig {
  TrainStage stage = TrainStage::kAutoencoder;
  std::string recipe = "pocket";  // preset or file: the networks' sizes and file names
  int64_t seed = 1;
  ComputeType compute = ComputeType::kBF16;
  /// kBlocks: of each transformer block only its input is kept for the backward pass, which runs
  /// the block again. A third more work, a small part of the memory, the same gradients.
  Recompute recompute = Recompute::kNone;
  /// On a GPU, forward and backward passes are recorded once and replayed (step_graph.h).
  bool cuda_graphs = true;
  /// Ranks that train together, one GPU each (with --device cpu: processes). Each takes `batch`
  /// clips a step and has a bank of its own; gradients are averaged over all.
  int64_t gpus = 1;
  int64_t batch = 64;  // of one rank
  int64_t steps = 10'000;
  double minutes = 0.0;  // time limit, evaluation and start-up included; 0: none
  int64_t log_every = 50;
  int64_t sheet_every = 0;       // steps; 0: only at the end
  int64_t checkpoint_every = 0;  // steps; 0: only at the end
  /// Checkpoints of 4.5 bytes a parameter (average in bf16; weights, as their difference from it,
  /// and first moments in 8 bits; second moments in 4) instead of 16: not bit-exact.
  bool compact_checkpoint = false;
  OptimizerConfig optimizer;
  OptimizerConfig critic_optimizer;  // of the fake score, and of discriminators
  EmaConfig ema;
  DataConfig data;
  CropConfig crop;
  InitConfig init;
  AutoencoderConfig autoencoder;
  BankConfig bank;
  FlowConfig flow;
  CausalConfig causal;
  OdeConfig ode;
  SelfForcingConfig self_forcing;
  CascadeConfig cascade;
  DegradeConfig degrade;
  UpsamplerConfig upsampler;
  SuperResolutionConfig sr;
  SrSparseConfig sr_sparse;
  RewardConfig reward;
  RewardTermConfig reward_term;
  PreferenceConfig preference;
  EvaluateConfig evaluate;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("stage", stage);
    visit("recipe", recipe);
    visit("seed", seed);
    visit("compute", compute);
    visit("recompute", recompute);
    visit("cuda_graphs", cuda_graphs);
    visit("gpus", gpus);
    visit("batch", batch);
    visit("steps", steps);
    visit("minutes", minutes);
    visit("log_every", log_every);
    visit("sheet_every", sheet_every);
    visit("checkpoint_every", checkpoint_every);
    visit("compact_checkpoint", compact_checkpoint);
    visit("optimizer", optimizer);
    visit("critic_optimizer", critic_optimizer);
    visit("ema", ema);
    visit("data", data);
    visit("crop", crop);
    visit("init", init);
    visit("autoencoder", autoencoder);
    visit("bank", bank);
    visit("flow", flow);
    visit("causal", causal);
    visit("ode", ode);
    visit("self_forcing", self_forcing);
    visit("cascade", cascade);
    visit("degrade", degrade);
    visit("upsampler", upsampler);
    visit("sr", sr);
    visit("sr_sparse", sr_sparse);
    visit("reward", reward);
    visit("reward_term", reward_term);
    visit("preference", preference);
    visit("evaluate", evaluate);
  }

  [[nodiscard]] Status validate() const;
};

/// Reads a config file and applies "path.to.field=value" overrides, values written as in JSON (text
/// may stand bare). kNotFound, kMalformed with the path of the field, kInvalidArgument.
Result<TrainConfig> load_train_config(const std::filesystem::path& path,
                                      const std::vector<std::string>& overrides);

/// As in configs: "flow_matching".
const char* stage_name(TrainStage stage);

/// Every field, defaults included.
std::string train_config_json(TrainConfig config, int indent);

/// Factor on the learning rate at `step`, when `progress` (0 to 1) of the run is done.
double learning_rate_factor(const OptimizerConfig& config, int64_t step, double progress);

}  // namespace ultraflash

// Settings of the stages above the generator: parts of TrainConfig (config.h).
#pragma once

#include <cstdint>
#include <vector>

namespace ultraflash {

enum class ResizeFilter : uint8_t { kArea, kBilinear, kBicubic };
enum class DegradeCodec : uint8_t { kAuto, kH264, kBlocks };
enum class DegradeFlow : uint8_t { kAuto, kOpencv, kOwn };

/// Pairs of latents, of a clip at the base size and enlarged: data of the stages above the
/// generator.
struct CascadeConfig {
  std::vector<int64_t> scales = {2, 3};           // of the recipe, one per step in turn
  int64_t frames = 6;                             // latent frames of a training window
  ResizeFilter downsample = ResizeFilter::kArea;  // that makes the base size
  double spectrum = 0.0;                          // weight of spectrum_distance in picture losses
  int64_t eval_clips = 16;                        // held-out clips, measured at each scale
  int64_t eval_frames = 6;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("scales", scales);
    visit("frames", frames);
    visit("downsample", downsample);
    visit("spectrum", spectrum);
    visit("eval_clips", eval_clips);
    visit("eval_frames", eval_frames);
  }
};

/// Damage to the small clip, as that which generators do: ultra-flash-training 2.4.
struct DegradeConfig {
  double share = 0.0;      // of the clips that are damaged; the others are made small alone
  double amplitude = 1.0;  // of movements and blurs in pixels, flicker and noise
  /// K1: H.264 through libav, or the blocks of a predictive codec made here. kAuto: the first where
  /// the build has it.
  DegradeCodec codec = DegradeCodec::kAuto;
  /// Of M1 and M3: OpenCV's dense flow, or the one made here. kAuto: the first where the build has
  /// it.
  DegradeFlow flow = DegradeFlow::kAuto;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("share", share);
    visit("amplitude", amplitude);
    visit("codec", codec);
    visit("flow", flow);
  }
};

/// ultra-flash-training 3.1.
struct UpsamplerConfig {
  double eps = 1e-3;            // of the Charbonnier distance
  double temporal = 0.1;        // L1 of differences between latent frames
  double pool = 0.2;            // L1 between averages over scale x scale and the input
  double picture = 0.1;         // L1 of decoded pictures and of their differences to neighbours
  double picture_after = 0.5;   // from this part of the run on
  int64_t picture_frames = 2;   // latent frames that are decoded
  int64_t picture_clips = 8;    // of a batch
  double degraded_share = 0.3;  // of the batches, from damaged small clips (see DegradeConfig)
  double degraded_after = 0.5;  // from this part of the run on
  /// Then also: of the batches, from latents that init.generator has noised (sr.guided_low to
  /// sr.guided_high) and denoised, through the small decoder and encoder.
  double generated_share = 0.0;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("eps", eps);
    visit("temporal", temporal);
    visit("pool", pool);
    visit("picture", picture);
    visit("picture_after", picture_after);
    visit("picture_frames", picture_frames);
    visit("picture_clips", picture_clips);
    visit("degraded_share", degraded_share);
    visit("degraded_after", degraded_after);
    visit("generated_share", generated_share);
  }
};

/// ultra-flash-training 2.3. Noise levels, text dropout and sampling are those of FlowConfig.
struct SuperResolutionConfig {
  double condition_noise = 0.3;     // largest part of noise in the condition
  double condition_dropout = 0.05;  // of samples, without condition
  double start_share = 0.1;         // of samples, at sigma 1, where the one-step student works
  /// Of steps: the small latents partly noised and denoised by init.generator, as a generator's are
  /// (P7 of section 2.4). One that was distilled knows only the levels of its step list.
  double guided_share = 0.0;
  double guided_low = 0.15;  // sigmas of that noise
  double guided_high = 0.5;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("condition_noise", condition_noise);
    visit("condition_dropout", condition_dropout);
    visit("start_share", start_share);
    visit("guided_share", guided_share);
    visit("guided_low", guided_low);
    visit("guided_high", guided_high);
  }
};

/// ultra-flash-training section 4: first the flow of the sparse network, then its one step.
struct SrSparseConfig {
  double adaptation = 0.3;                     // part of the run with the flow loss alone
  std::vector<int64_t> group_frames = {4, 6};  // latent frames of a forward, drawn per step
  double stream_share = 0.25;  // of the steps, with the keys and values of a group before
  int64_t max_kv_len = 3;      // temporal blocks of that group, 1 to this
  double least_ratio = 0.75;   // factors on the recipe's top_k_ratio
  double most_ratio = 1.5;
  double latent = 1.0;         // weights of the student's losses: squared error of latents,
  double picture = 0.5;        // L1 of decoded pictures and of their differences to neighbours,
  double dmd = 0.0;            // distribution matching against init.real_score
  int64_t picture_frames = 2;  // latent frames that are decoded
  int64_t picture_clips = 8;   // of a batch
  // Of distribution matching.
  double guidance = 3.0;  // alpha: r_u + alpha (r_c - r_u)
  double timestep_shift = 5.0;
  double min_sigma = 0.02;
  double max_sigma = 0.98;
  int64_t critic_per_student = 5;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("adaptation", adaptation);
    visit("group_frames", group_frames);
    visit("stream_share", stream_share);
    visit("max_kv_len", max_kv_len);
    visit("least_ratio", least_ratio);
    visit("most_ratio", most_ratio);
    visit("latent", latent);
    visit("picture", picture);
    visit("dmd", dmd);
    visit("picture_frames", picture_frames);
    visit("picture_clips", picture_clips);
    visit("guidance", guidance);
    visit("timestep_shift", timestep_shift);
    visit("min_sigma", min_sigma);
    visit("max_sigma", max_sigma);
    visit("critic_per_student", critic_per_student);
  }
};

/// A small network that tells the better one of two pictures (ultra-flash-training 6.3). It learns
/// from crops of clips, ranked by how they were made.
struct RewardConfig {
  std::vector<int64_t> widths = {32, 64, 128,
                                 256};  // channels of its stages, each of half the size
  int64_t crop = 96;                    // pixels a side
  double margin = 1.0;                  // between the scores of a pair
  // Shares of pairs, in any proportion: a true crop against
  double enlarged = 0.15;      // the bicubic enlargement of its small form,
  double damaged = 0.25;       // that of its damaged small form,
  double reconstructed = 0.1;  // what the large autoencoder makes of it;
  double upsampled = 0.3;      // that against what the same decoder makes of upsampled latents;
  double disturbed = 0.2;      // true or reconstructed against itself too sharp, noisy or chequered
  double part = 0.5;           // of pairs whose worse crop is a mixture of both

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("widths", widths);
    visit("crop", crop);
    visit("margin", margin);
    visit("enlarged", enlarged);
    visit("damaged", damaged);
    visit("reconstructed", reconstructed);
    visit("upsampled", upsampled);
    visit("disturbed", disturbed);
    visit("part", part);
  }
};

/// The score of init.reward in the loss of what the super-resolution transformer makes
/// (ultra-flash-training 4.3). Scores are in deviations of those of true clips as the autoencoder
/// shows them.
struct RewardTermConfig {
  double weight = 0.0;      // 0: none
  double from = 0.3;        // part of the run from which the weight grows from 0,
  double full = 0.6;        // and at which it is all there
  double limit = 2.0;       // more than this does not count
  double tolerance = 0.05;  // no reward while the distance to the truth is larger by this part than
                            // it was before `from`

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("weight", weight);
    visit("from", from);
    visit("full", full);
    visit("limit", limit);
    visit("tolerance", tolerance);
  }
};

/// Cascaded streaming preference optimisation: ultra-flash-training section 5. The scores' settings
/// are those of SrSparseConfig, the frozen dense network that draws the better results is
/// init.real_score.
struct PreferenceConfig {
  // Streams of the frozen generator, bank.latent_frames latent frames each, kept on the device.
  int64_t rollouts = 512;
  int64_t make_batch = 64;     // drawn at once
  int64_t refresh_every = 16;  // steps between new batches; 0: none
  // What is drawn for each: dynamic cache management, and how the transformer streams.
  double fewer_steps = 0.5;   // share of batches whose later chunks take one denoising step less
  double skip_refresh = 0.5;  // of later chunks, without context pass
  std::vector<int64_t> group_frames = {3, 6};  // latent frames of a group
  int64_t groups = 6;                          // one of the first so many groups learns
  double condition_noise = 0.2;                // in half of the steps
  // The better results: Euler steps of the dense network, without + guidance (with - without).
  int64_t teacher_steps = 8;
  double teacher_shift = 3.0;
  double guidance = 2.0;
  double judge_margin = 0.25;  // by which init.judge must prefer them
  double consistency = 1.2;    // most distance to the small pictures, as a part of the other's
  // Losses.
  double beta = 1000.0;
  double start_share = 0.7;  // of steps at sigma 1, where the student works
  double dmd = 0.25;         // distribution matching
  double anchor = 0.1;       // squared distance to what the network made before this stage
  int64_t picture_frames = 2;
  int64_t critic_per_student = 2;
  int64_t critic_first_steps = 0;  // without updates of the student
  int64_t eval_rollouts = 16;      // of held-out captions, measured at each scale
  // Calibration (ultraflash train --calibrate).
  int64_t drift_groups = 20;
  double drift_limit = 0.01;

  template <typename Visitor>
  void visit_fields(Visitor& visit) {
    visit("rollouts", rollouts);
    visit("make_batch", make_batch);
    visit("refresh_every", refresh_every);
    visit("fewer_steps", fewer_steps);
    visit("skip_refresh", skip_refresh);
    visit("group_frames", group_frames);
    visit("groups", groups);
    visit("condition_noise", condition_noise);
    visit("teacher_steps", teacher_steps);
    visit("teacher_shift", teacher_shift);
    visit("guidance", guidance);
    visit("judge_margin", judge_margin);
    visit("consistency", consistency);
    visit("beta", beta);
    visit("start_share", start_share);
    visit("dmd", dmd);
    visit("anchor", anchor);
    visit("picture_frames", picture_frames);
    visit("critic_per_student", critic_per_student);
    visit("critic_first_steps", critic_first_steps);
    visit("eval_rollouts", eval_rollouts);
    visit("drift_groups", drift_groups);
    visit("drift_limit", drift_limit);
  }
};

}  // namespace ultraflash

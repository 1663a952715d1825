// Learned rewards: a small convolutional network that scores pictures, trained to tell the better
// one of two (objectives/reward.cc). One of them enters losses; another, trained with another seed,
// only measures, so that what pleases the first alone is noticed. ultra-flash-training 4.3, 6.3.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "train/objective.h"

namespace ultraflash {

class RewardNetwork {
 public:
  /// Its file: weights, and the mean and deviation of the scores of a reference set.
  static const CheckpointSpec& checkpoint();
  /// From a file or folder; random weights when `init` is empty.
  static Result<RewardNetwork> open(const TrainContext& context, const std::string& init,
                                    bool trainable);

  /// Pictures f32 [n, height, width, 3] in [0, 1] -> f32 [n]: means over places, higher is better.
  [[nodiscard]] at::Tensor scores(const TrainContext& context, const at::Tensor& pictures) const;
  /// Over the reference set: 0 is its mean, 1 one deviation above it.
  [[nodiscard]] at::Tensor standardised(const TrainContext& context,
                                        const at::Tensor& pictures) const;
  /// How far apart two pictures are for the network, f32 [n]: squared distance of the directions of
  /// its hidden states, a mean over places and stages. In the place of LPIPS, which needs weights
  /// trained on other data.
  [[nodiscard]] at::Tensor distance(const TrainContext& context, const at::Tensor& a,
                                    const at::Tensor& b) const;

  [[nodiscard]] const std::shared_ptr<ParameterSet>& parameters() const { return parameters_; }
  /// Operations of one forward pass of a crop of `side` x `side` pixels.
  [[nodiscard]] double forward_cost(int64_t side) const;
  /// Writes `weights` (of parameters(), in their order) with these statistics of the reference set.
  Status save(const TrainContext& context, const std::filesystem::path& path,
              const std::vector<at::Tensor>& weights, const at::Tensor& mean,
              const at::Tensor& deviation) const;

 private:
  [[nodiscard]] std::vector<at::Tensor> stages(const TrainContext& context,
                                               const at::Tensor& pictures) const;
  [[nodiscard]] at::Tensor convolved(const at::Tensor& x, const std::string& name,
                                     int64_t stride) const;

  std::shared_ptr<ParameterSet> parameters_;
  std::shared_ptr<ParameterSet> statistics_;
  std::vector<int64_t> widths_;
};

/// The reward as a part of the loss, with what keeps it from being cheated: a limit, a weight that
/// grows, and a stop while pictures move away from the truth.
class RewardTerm {
 public:
  /// From init.reward; null where config.reward_term has no weight.
  static Result<std::unique_ptr<RewardTerm>> open(const TrainContext& context);

  /// For pictures f32 [n, height, width, 3] in [0, 1], in the places where `truth` has most detail.
  /// Gradients reach `made` alone.
  at::Tensor loss(const at::Tensor& made, const at::Tensor& truth, Meter& meter);
  /// What checkpoints keep: the distance to the truth lately, and what it was before the reward.
  TrainedSet& state() { return state_; }

 private:
  explicit RewardTerm(const TrainContext& context) : context_(context) {}

  const TrainContext& context_;
  RewardNetwork network_;
  TrainedSet state_;
};

}  // namespace ultraflash

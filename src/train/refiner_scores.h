// RefinerScores: the two dense networks that distribution matching compares for the one-step
// student (ultra-flash-training 4.2): a frozen one (real) and one that learns what the student
// makes (fake). Settings are those of SrSparseConfig.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "train/cascade.h"
#include "train/distillation.h"
#include "train/objective.h"
#include "train/step_graph.h"

namespace ultraflash {

class RefinerScores {
 public:
  /// Both begin as the network of `teacher` (as init.refiner).
  static Result<std::unique_ptr<RefinerScores>> open(const TrainContext& context,
                                                     const std::string& teacher);

  /// x0 estimates of the student's result `x`, noised to levels drawn for the step; without text
  /// the condition `y` stays. No gradient. All f32 [batch, frames, h, w, c]; the result is valid
  /// until the next call of this object.
  [[nodiscard]] Scores of(int64_t step, int64_t scale, const at::Tensor& x, const at::Tensor& y,
                          const Tensor& embeddings, const Tensor& no_text, Meter& meter) const;
  /// One update of the fake score on what the student made. Noise comes from the device's
  /// generator.
  void learn(int64_t step, int64_t scale, const at::Tensor& x, const at::Tensor& y,
             const Tensor& embeddings, Meter& meter);

  TrainedSet& fake() { return trained_fake_; }
  [[nodiscard]] const Refiner& real() const { return real_; }

 private:
  explicit RefinerScores(const TrainContext& context)
      : context_(context), graphs_(StepGraphs::open(context)) {}
  [[nodiscard]] std::vector<double> draw_sigmas(int64_t step, int64_t purpose) const;
  // What is recorded. x, y, embeddings, those of no text, and f64 sigmas [batch].
  [[nodiscard]] StepResult estimates(int64_t scale, const std::vector<at::Tensor>& inputs) const;
  // x, y, embeddings, sigmas.
  [[nodiscard]] StepResult learn_flow(int64_t scale, const std::vector<at::Tensor>& inputs) const;

  const TrainContext& context_;
  Refiner real_, fake_;
  TrainedSet trained_fake_;
  std::unique_ptr<StepGraphs> graphs_;
};

}  // namespace ultraflash

// RefinerData: what the stages of the super-resolution transformer share beside the transformer:
// frozen networks, pairs of latents, noise levels, and the report on held-out clips.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train/cascade.h"
#include "train/cascade_report.h"
#include "train/generator.h"
#include "train/objective.h"
#include "train/pair_bank.h"

namespace ultraflash {

class RefinerData {
 public:
  static Result<std::unique_ptr<RefinerData>> open(const TrainContext& context);

  /// What is there for each scale.
  struct Size {
    int64_t scale = 2;
    PairAutoencoders autoencoders;
    UpsamplerNetwork upsampler;
    std::unique_ptr<PairBank> bank;
    std::unique_ptr<CascadeReport> report;  // made when it is first needed
  };
  /// Scales take turns.
  [[nodiscard]] const Size& of_step(int64_t step) const {
    return sizes_[static_cast<size_t>(step) % sizes_.size()];
  }
  [[nodiscard]] bool one_size() const { return sizes_.size() == 1; }
  /// Whether a network that learns in one of `turns` steps does so now: counted for every scale
  /// apart, so that all have their turns whatever the two numbers have in common.
  [[nodiscard]] bool takes_turn(int64_t step, int64_t turns) const {
    return step / static_cast<int64_t>(sizes_.size()) % turns == 0;
  }
  void fill(int64_t first_step);
  void advance(int64_t step);

  /// Clips of a step: the true latents, the condition with its share of noise, and the text.
  struct Batch {
    at::Tensor z;  // f32 [batch, frames, h, w, c]
    at::Tensor y;
    Tensor embeddings;
  };
  /// Seeds the device's generator for the step. With `may_drop` a few samples have no condition.
  [[nodiscard]] Batch sample(int64_t step, int64_t frames, bool may_drop) const;
  /// The same in two parts, of which the second can be recorded (step_graph.h): what the host
  /// draws,
  struct Draw {
    at::Tensor z;
    Tensor embeddings;
    at::Tensor low;    // f32 [batch, lead + frames, h, w, c]: what the condition is made of
    at::Tensor noise;  // f32 [batch, 1, 1, 1, 1]: share of noise
    at::Tensor kept;   // as noise: 0 for samples without condition
    int64_t lead = 0;
  };
  [[nodiscard]] Draw draw(int64_t step, int64_t frames, bool may_drop) const;
  /// and the condition. Noise comes from the device's generator.
  [[nodiscard]] at::Tensor condition(const Size& size, int64_t lead, const at::Tensor& low,
                                     const at::Tensor& noise, const at::Tensor& kept) const;
  /// Embeddings of `count` empty captions.
  [[nodiscard]] Tensor no_text(int64_t count) const;
  /// One sigma per sample: logit-normal and shifted, a share at 1.
  [[nodiscard]] std::vector<double> draw_sigmas(int64_t step) const;
  [[nodiscard]] bool has_pictures() const { return !clips_->encoded(); }
  [[nodiscard]] const std::vector<Size>& sizes() const { return sizes_; }
  [[nodiscard]] const TextNetwork& text() const { return text_; }
  [[nodiscard]] const TrainingClips& clips() const { return *clips_; }
  [[nodiscard]] const CaptionTokenizer& tokenizer() const { return *tokenizer_; }

  /// Draws the held-out clips of one scale anew: `y` is the condition, and what goes to `add` is
  /// reported under its name.
  using Add = std::function<void(const std::string& name, const at::Tensor& latents)>;
  using Refine = std::function<void(int64_t scale, const at::Tensor& y, const Tensor& embeddings,
                                    const Add& add)>;
  Measures evaluate(const Refine& refine);
  /// Of the largest scale, after evaluate().
  [[nodiscard]] std::optional<RgbImage> sheet() const;

 private:
  explicit RefinerData(const TrainContext& context) : context_(context) {}

  const TrainContext& context_;
  TextNetwork text_;
  std::optional<GeneratorNetwork> generator_;  // for damage of latents
  std::unique_ptr<TrainingClips> clips_;
  std::unique_ptr<CaptionTokenizer> tokenizer_;
  std::vector<Size> sizes_;
};

}  // namespace ultraflash

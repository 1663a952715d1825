// Causal latent upsampler of one scale, on pairs of latents of small and large clips:
// ultra-flash-training 3.1. A window of a clip is enlarged frame after frame through the memories,
// with gradients through them; what comes before the window only gives the state.
//
// In place of the learned perceptual distance of the paper's neighbours, decoded pictures are
// compared by their values and by their differences to neighbours, with what the same decoder makes
// of the true latents.
#include <algorithm>
#include <cmath>
#include <optional>

#include "ops/autograd/torch_tensor.h"
#include "train/cascade.h"
#include "train/cascade_report.h"
#include "train/generator.h"
#include "train/objective.h"
#include "train/pictures.h"
#include "train/step_cost.h"
#include "train/step_graph.h"

namespace ultraflash {
namespace {

enum : int64_t { kWindowDraw = 1, kPictureDraw = 2, kDamageDraw = 3, kGeneratedDraw = 4 };
constexpr int64_t kSheetRows = 12;

class UpsamplerObjective final : public Objective {
 public:
  explicit UpsamplerObjective(TrainContext& context) : context_(context) {}

  Status bind() {
    const TrainConfig& config = context_.config;
    if (config.cascade.scales.size() != 1) {
      return make_status(StatusCode::kInvalidArgument,
                         "cascade.scales: an upsampler has one scale, these are {}",
                         config.cascade.scales.size());
    }
    scale_ = config.cascade.scales[0];
    UF_ASSIGN(autoencoders_, PairAutoencoders::open(context_, scale_));
    UF_ASSIGN(upsampler_,
              UpsamplerNetwork::open(context_, config.init.upsampler, scale_, /*trainable=*/true));
    UF_ASSIGN(averaged_,
              UpsamplerNetwork::open(context_, config.init.upsampler, scale_, /*trainable=*/false));
    trained_.name = "upsampler";
    trained_.parameters = upsampler_.parameters;
    trained_.begin(config.optimizer, &config.ema);
    if (config.upsampler.generated_share > 0.0) {
      UF_ASSIGN(text_, TextNetwork::open(context_, config.init.text_encoder, false));
      UF_ASSIGN(generator_, GeneratorNetwork::open(context_, config.init.generator, false));
    }
    UF_ASSIGN(clips_, TrainingClips::open(context_, /*unseen=*/false));
    UF_ASSIGN(CaptionTokenizer tokenizer, CaptionTokenizer::open(context_));
    tokenizer_ = std::make_unique<CaptionTokenizer>(std::move(tokenizer));
    bank_ = std::make_unique<PairBank>(context_, autoencoders_, *clips_, *tokenizer_, scale_);
    return {};
  }

  std::vector<TrainedSet*> sets() override { return {&trained_}; }

  Status start(int64_t first_step) override {
    graphs_ = StepGraphs::open(context_);
    bank_->fill(first_step);
    return {};
  }

  void step(int64_t step, double lr_factor, Meter& meter) override {
    const TrainConfig& config = context_.config;
    const UpsamplerConfig& c = config.upsampler;
    bank_->advance(step);
    const StreamWindow window =
        StreamWindow::draw(context_, step, kWindowDraw, upsampler_.reach(), config.cascade.frames);
    const PairBatch batch = bank_->sample(step, config.batch, 0.0, window.range());
    std::vector<at::Tensor> inputs = {batch.high, input(step, batch)};
    const bool pictures =
        c.picture > 0.0 && !clips_->encoded() && context_.progress >= c.picture_after;
    if (pictures) {
      inputs.push_back(
          PairWindow::draw(context_, window.frames, c.picture_frames, step, kPictureDraw)
              .places(context_.device));
    }
    const StepResult result = graphs_->run(
        fmt::format("after {} frames{}", window.lead, pictures ? ", with pictures" : ""),
        *trained_.parameters, inputs,
        [&](const std::vector<at::Tensor>& x) { return learn(window.lead, x); });
    result.report(meter);
    meter.add("gradient_norm", trained_.update(lr_factor));
  }

  // Large and small latents of a window after `lead` frames, and the places of frames to decode, if
  // there are any.
  [[nodiscard]] StepResult learn(int64_t lead, const std::vector<at::Tensor>& inputs) const {
    const UpsamplerConfig& c = context_.config.upsampler;
    StepResult result;
    const auto shown = [&](const at::Tensor& x) { return x.narrow(1, lead, x.size(1) - lead); };
    const at::Tensor z = shown(inputs[0]);
    const at::Tensor& l = inputs[1];
    const at::Tensor u = upsampler_.run_window(context_, l, lead);
    const at::Tensor error = u - z;
    const at::Tensor distance = (error.square() + c.eps * c.eps).sqrt().mean();
    at::Tensor loss = distance;
    // Differences of the error are errors of the differences.
    if (z.size(1) > 1) loss = loss + c.temporal * difference(error, 1).abs().mean();
    if (c.pool > 0.0) {
      const at::Tensor pool = (pooled(u) - shown(l)).abs().mean();
      loss = loss + c.pool * pool;
      result.add("pool", pool);
    }
    if (inputs.size() > 2) {
      const at::Tensor picture = picture_distance(
          decode_pair(context_, autoencoders_.large, u, z, c.picture_clips, inputs[2]),
          context_.config.cascade.spectrum);
      loss = loss + c.picture * picture;
      result.add("picture", picture);
    }
    loss.backward();
    result.add("loss", loss);
    result.add("distance", distance);
    return result;
  }

  [[nodiscard]] double step_cost() const override {
    const TrainConfig& config = context_.config;
    return kForwardAndBackward *
           upsampler_cost(context_, scale_, config.batch, config.cascade.frames);
  }

  Measures evaluate() override {
    CascadeReport* report = report_of(context_, autoencoders_, scale_, report_);
    if (report == nullptr) return {};
    const at::NoGradGuard no_grad;
    averaged_.parameters->assign(trained_.best());
    const PairLatents& truth = report->latents();
    const at::Tensor u = averaged_.run_window(context_, truth.low, 0);
    report->add("upsampled", u);
    Measures measures = report->measures();
    const auto add = [&](const char* name, const at::Tensor& value) {
      measures.emplace_back(fmt::format("{}_{}x", name, scale_), value.item<double>());
    };
    const at::Tensor bicubic =
        resized(truth.low, truth.high.size(2), truth.high.size(3), ResizeFilter::kBicubic);
    add("latent_l1_upsampled", (u - truth.high).abs().mean());
    add("latent_l1_bicubic", (bicubic - truth.high).abs().mean());
    // What the loss of averages would be for the truth.
    add("pool_of_truth", (pooled(truth.high) - truth.low).abs().mean());
    return measures;
  }

  std::optional<RgbImage> sheet() override {
    CascadeReport* report = report_of(context_, autoencoders_, scale_, report_);
    if (report == nullptr) return std::nullopt;
    return report->sheet(kSheetRows);
  }

  Result<std::vector<std::filesystem::path>> publish(const std::filesystem::path& out) override {
    return publish_sets(context_, out,
                        {{trained_, context_.recipe.cascade(scale_)->upsampler->checkpoint}});
  }

 private:
  // Small latents of a step: clean, damaged, or as the generator would have drawn them.
  [[nodiscard]] at::Tensor input(int64_t step, const PairBatch& batch) const {
    const UpsamplerConfig& c = context_.config.upsampler;
    const double u = StepRandom::shared(context_, step, kDamageDraw).uniform();
    if (context_.progress < c.degraded_after) return batch.low;
    if (u < c.degraded_share) return batch.damaged.defined() ? batch.damaged : batch.low;
    if (u >= c.degraded_share + c.generated_share) return batch.low;
    const at::NoGradGuard no_grad;
    const SuperResolutionConfig& sr = context_.config.sr;
    StepRandom random(context_, step, kGeneratedDraw);
    std::vector<double> sigmas;
    for (int64_t i = 0; i < batch.low.size(0); ++i) {
      sigmas.push_back(std::lerp(sr.guided_low, sr.guided_high, random.uniform()));
    }
    context_.seed_step(step, kGeneratedDraw);
    const at::Tensor drawn =
        renoised(context_, *generator_, batch.low, sigmas, text_.run(context_, batch.tokens));
    return clips_->encoded() ? drawn : autoencoders_.small.round_trip(context_, drawn);
  }

  // Means over scale x scale cells.
  [[nodiscard]] at::Tensor pooled(const at::Tensor& x) const {
    return resized(x, x.size(2) / scale_, x.size(3) / scale_, ResizeFilter::kArea);
  }

  TrainContext& context_;
  int64_t scale_ = 2;
  PairAutoencoders autoencoders_;
  TextNetwork text_;
  std::optional<GeneratorNetwork> generator_;  // where a share of the input is drawn by it
  UpsamplerNetwork upsampler_, averaged_;
  TrainedSet trained_;
  std::unique_ptr<TrainingClips> clips_;
  std::unique_ptr<CaptionTokenizer> tokenizer_;
  std::unique_ptr<CascadeReport> report_;
  std::unique_ptr<PairBank> bank_;
  std::unique_ptr<StepGraphs> graphs_;
};

}  // namespace

Result<std::unique_ptr<Objective>> make_upsampler_objective(TrainContext& context) {
  return open_objective<UpsamplerObjective>(context);
}

}  // namespace ultraflash

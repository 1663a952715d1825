#include "train/refiner_data.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

namespace ultraflash {
namespace {

enum : int64_t { kWindowDraw = 101, kConditionDraw = 102, kSigmaDraw = 103, kReportNoise = 104 };
constexpr int64_t kSheetRows = 12;

}  // namespace

Result<std::unique_ptr<RefinerData>> RefinerData::open(const TrainContext& context) {
  std::unique_ptr<RefinerData> data(new RefinerData(context));
  const TrainConfig& config = context.config;
  UF_ASSIGN(data->text_, TextNetwork::open(context, config.init.text_encoder, false));
  if (config.sr.guided_share > 0.0) {
    UF_ASSIGN(data->generator_, GeneratorNetwork::open(context, config.init.generator, false));
  }
  UF_ASSIGN(data->clips_, TrainingClips::open(context, /*unseen=*/false));
  UF_ASSIGN(CaptionTokenizer tokenizer, CaptionTokenizer::open(context));
  data->tokenizer_ = std::make_unique<CaptionTokenizer>(std::move(tokenizer));
  for (const int64_t scale : config.cascade.scales) {
    Size size;
    size.scale = scale;
    UF_ASSIGN(size.autoencoders, PairAutoencoders::open(context, scale));
    UF_ASSIGN(size.upsampler, UpsamplerNetwork::open(context, config.init.upsampler, scale,
                                                     /*trainable=*/false));
    size.bank = std::make_unique<PairBank>(context, size.autoencoders, *data->clips_,
                                           *data->tokenizer_, scale);
    data->sizes_.push_back(std::move(size));
  }
  return data;
}

void RefinerData::fill(int64_t first_step) {
  for (Size& size : sizes_) size.bank->fill(first_step);
}

void RefinerData::advance(int64_t step) {
  for (Size& size : sizes_) size.bank->advance(step);
}

RefinerData::Batch RefinerData::sample(int64_t step, int64_t frames, bool may_drop) const {
  const Draw drawn = draw(step, frames, may_drop);
  return {drawn.z, condition(of_step(step), drawn.lead, drawn.low, drawn.noise, drawn.kept),
          drawn.embeddings};
}

at::Tensor RefinerData::condition(const Size& size, int64_t lead, const at::Tensor& low,
                                  const at::Tensor& noise, const at::Tensor& kept) const {
  const at::NoGradGuard no_grad;
  const at::Tensor u = size.upsampler.run_window(context_, low, lead);
  return add_noise(u, at::randn_like(u), noise) * kept;
}

RefinerData::Draw RefinerData::draw(int64_t step, int64_t frames, bool may_drop) const {
  const at::NoGradGuard no_grad;
  const TrainConfig& config = context_.config;
  const Size& size = of_step(step);
  const StreamWindow window =
      StreamWindow::draw(context_, step, kWindowDraw, size.upsampler.reach(), frames);
  const PairBatch pairs =
      size.bank->sample(step, config.batch, config.flow.text_dropout, window.range());
  StepRandom random(context_, step, kConditionDraw);
  std::vector<double> noise;
  std::vector<double> kept;
  for (int64_t i = 0; i < config.batch; ++i) {
    noise.push_back(config.sr.condition_noise * random.uniform());
    kept.push_back(may_drop && random.uniform() < config.sr.condition_dropout ? 0.0 : 1.0);
  }
  context_.seed_step(step);
  Draw drawn;
  drawn.z = pairs.high.narrow(1, window.lead, window.frames);
  drawn.embeddings = text_.run(context_, pairs.tokens);
  drawn.low = pairs.damaged.defined() ? pairs.damaged : pairs.low;
  if (random.uniform() < config.sr.guided_share) {
    std::vector<double> sigmas;
    for (int64_t i = 0; i < config.batch; ++i) {
      sigmas.push_back(std::lerp(config.sr.guided_low, config.sr.guided_high, random.uniform()));
    }
    drawn.low = renoised(context_, *generator_, drawn.low, sigmas, drawn.embeddings);
  }
  drawn.noise = sigma_tensor(context_, noise, config.batch);
  drawn.kept = sigma_tensor(context_, kept, config.batch);
  drawn.lead = window.lead;
  return drawn;
}

Tensor RefinerData::no_text(int64_t count) const {
  const std::vector<const TokenRow*> rows(static_cast<size_t>(count), &tokenizer_->empty());
  return text_.run(context_, CaptionTokenizer::batch(rows));
}

std::vector<double> RefinerData::draw_sigmas(int64_t step) const {
  const FlowConfig& flow = context_.config.flow;
  StepRandom random(context_, step, kSigmaDraw);
  std::vector<double> sigmas;
  for (int64_t i = 0; i < context_.config.batch; ++i) {
    const bool start = random.uniform() < context_.config.sr.start_share;
    const double sigma = shifted(logit_normal(flow, random), flow.shift);
    sigmas.push_back(start ? 1.0 : sigma);
  }
  return sigmas;
}

Measures RefinerData::evaluate(const Refine& refine) {
  if (context_.config.cascade.eval_clips == 0) return {};
  const at::NoGradGuard no_grad;
  Measures measures;
  for (Size& size : sizes_) {
    CascadeReport& report = *report_of(context_, size.autoencoders, size.scale, size.report);
    const PairLatents& truth = report.latents();
    const Add add = [&](const std::string& name, const at::Tensor& latents) {
      report.add(name, latents);
      measures.emplace_back(fmt::format("latent_mse_{}_{}x", name, size.scale),
                            (latents - truth.high).square().mean().item<double>());
    };
    const at::Tensor y = size.upsampler.run_window(context_, truth.low, 0);
    add("upsampled", y);
    // The same noise every time.
    context_.seed_shared_step(0, kReportNoise);
    refine(size.scale, y, text_.run(context_, report.tokens()), add);
    const Measures of_size = report.measures();
    measures.insert(measures.end(), of_size.begin(), of_size.end());
  }
  return measures;
}

std::optional<RgbImage> RefinerData::sheet() const {
  const auto largest = std::max_element(
      sizes_.begin(), sizes_.end(), [](const Size& a, const Size& b) { return a.scale < b.scale; });
  if (!largest->report) return std::nullopt;
  return largest->report->sheet(kSheetRows);
}

}  // namespace ultraflash

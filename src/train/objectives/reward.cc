// A small network that tells the better one of two pictures: ultra-flash-training 6.3. Pairs are
// crops of one place of a clip, made in ways of known order: the true crop is better than its small
// form enlarged, than its damaged form and than what an autoencoder leaves of it; what the large
// decoder makes of true latents is better than what it makes of upsampled ones; and every crop is
// better than itself with too much sharpening, noise or a chequered pattern, which is what networks
// that seek a reward like to add. Margin ranking loss.
#include "train/reward.h"

#include <ATen/TensorIndexing.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "ops/autograd/torch_tensor.h"
#include "train/cascade.h"
#include "train/degrade/degrade.h"
#include "train/generator.h"
#include "train/objective.h"
#include "train/pair_bank.h"
#include "train/pictures.h"
#include "train/step_cost.h"

namespace ultraflash {
namespace {

enum : int64_t { kPairDraw = 1, kFrameDraw = 2, kDamageNoise = 92 };
// Room for crops to be shifted in.
constexpr int64_t kShift = 16;
// Numbers of held-out clips for the degradations, apart from those of training.
constexpr int64_t kUnseenClip = int64_t{1} << 40;
constexpr int64_t kSheetRows = 8;
constexpr int64_t kEvalBatch = 64;  // crops

// How a crop was made.
enum Form : int64_t { kTruth, kEnlarged, kDamaged, kReconstructed, kUpsampled, kForms };
constexpr std::array<const char*, kForms> kFormNames = {"truth", "enlarged", "damaged",
                                                        "reconstructed", "upsampled"};
// Better before worse.
struct Order {
  Form better;
  Form worse;
};
constexpr std::array<Order, 4> kOrders = {{{kTruth, kEnlarged},
                                           {kTruth, kDamaged},
                                           {kTruth, kReconstructed},
                                           {kReconstructed, kUpsampled}}};

at::Tensor column(const TrainContext& context, const std::vector<double>& values) {
  return sigma_tensor(context, values, static_cast<int64_t>(values.size())).select(4, 0);
}

// Mean over 3 x 3 places. [n, h, w, c]
at::Tensor smoothed(const at::Tensor& x) {
  return at::avg_pool2d(x.permute({0, 3, 1, 2}), {3, 3}, {1, 1}, {1, 1}, /*ceil_mode=*/false,
                        /*count_include_pad=*/false)
      .permute({0, 2, 3, 1});
}

class RewardObjective final : public Objective {
 public:
  explicit RewardObjective(TrainContext& context) : context_(context) {}

  Status bind() {
    const TrainConfig& config = context_.config;
    if (config.data.source == "random") {
      return make_status(StatusCode::kInvalidArgument,
                         "the reward stage compares pictures; data.source 'random' has none");
    }
    UF_ASSIGN(network_, RewardNetwork::open(context_, config.init.reward, /*trainable=*/true));
    UF_ASSIGN(averaged_, RewardNetwork::open(context_, config.init.reward, /*trainable=*/false));
    trained_.name = "reward";
    trained_.parameters = network_.parameters();
    trained_.begin(config.optimizer, &config.ema);
    UF_ASSIGN(clips_, TrainingClips::open(context_, /*unseen=*/false));
    UF_ASSIGN(unseen_, TrainingClips::open(context_, /*unseen=*/true));
    UF_ASSIGN(CaptionTokenizer tokenizer, CaptionTokenizer::open(context_));
    tokenizer_ = std::make_unique<CaptionTokenizer>(std::move(tokenizer));
    for (const int64_t scale : config.cascade.scales) {
      auto size = std::make_unique<Size>();
      size->scale = scale;
      UF_ASSIGN(size->autoencoders, PairAutoencoders::open(context_, scale));
      if (size->autoencoders.large.vae_decodes) {
        return make_status(StatusCode::kUnsupported,
                           "the reward stage decodes with tiny decoders, not with the Wan VAE");
      }
      if (!config.init.upsampler.empty()) {
        UF_ASSIGN(size->upsampler, UpsamplerNetwork::open(context_, config.init.upsampler, scale,
                                                          /*trainable=*/false));
      }
      size->bank = std::make_unique<LatentBank>(
          context_, *clips_, *tokenizer_, scale,
          [this, s = size.get()](const at::Tensor& raw, int64_t group) {
            const int64_t rank_group = group * context_.ranks() + context_.rank();
            return crops(*s, raw.to(context_.device, /*non_blocking=*/true),
                         rank_group * raw.size(0));
          });
      sizes_.push_back(std::move(size));
    }
    return {};
  }

  std::vector<TrainedSet*> sets() override { return {&trained_}; }

  Status start(int64_t first_step) override {
    for (const auto& size : sizes_) size->bank->fill(first_step);
    return {};
  }

  void step(int64_t step, double lr_factor, Meter& meter) override {
    for (const auto& size : sizes_) size->bank->advance(step);
    const Pairs pairs = draw(step);
    const int64_t batch = pairs.better.size(0);
    const at::Tensor scores = network_.scores(context_, at::cat({pairs.better, pairs.worse}));
    const at::Tensor gap = scores.narrow(0, 0, batch) - scores.narrow(0, batch, batch);
    const double margin = context_.config.reward.margin;
    const at::Tensor loss = (margin * pairs.part - gap).clamp_min(0.0).mean();
    loss.backward();
    meter.add("loss", loss);
    meter.add("accuracy", (gap > 0.0).to(at::kFloat).mean() * 100.0);
    meter.add("gap", gap.mean());
    meter.add("gradient_norm", trained_.update(lr_factor));
  }

  [[nodiscard]] double step_cost() const override {
    return kForwardAndBackward * 2.0 * static_cast<double>(context_.config.batch) *
           network_.forward_cost(context_.config.reward.crop);
  }

  Measures evaluate() override {
    if (context_.config.cascade.eval_clips == 0) return {};
    const at::NoGradGuard no_grad;
    averaged_.parameters()->assign(trained_.best());
    Measures measures;
    double sum = 0.0;
    for (const auto& size : sizes_) {
      const std::vector<at::Tensor>& forms = unseen_crops(*size);
      std::vector<at::Tensor> scores;
      for (const at::Tensor& form : forms) scores.push_back(scores_of(form));
      const auto add = [&](const char* name, const at::Tensor& better, const at::Tensor& worse) {
        const double right = 100.0 * (better > worse).to(at::kFloat).mean().item<double>();
        measures.emplace_back(fmt::format("accuracy_{}_{}x", name, size->scale), right);
        sum += right;
      };
      for (const Order& order : kOrders) {
        add(kFormNames[order.worse], scores[order.better], scores[order.worse]);
      }
      const at::Tensor half = scores_of(at::lerp(forms[kUpsampled], forms[kReconstructed], 0.5));
      add("half_way", scores[kReconstructed], half);
      add("from_half_way", half, scores[kUpsampled]);
    }
    measures.emplace_back("accuracy",
                          sum / static_cast<double>(sizes_.size() * (kOrders.size() + 2)));
    const auto [mean, deviation] = reference();
    measures.emplace_back("reference_mean", mean.item<double>());
    measures.emplace_back("reference_std", deviation.item<double>());
    return measures;
  }

  // A row a crop, a column for each way of making it, the best first.
  std::optional<RgbImage> sheet() override {
    if (context_.config.cascade.eval_clips == 0) return std::nullopt;
    const std::vector<at::Tensor>& forms = unseen_crops(*sizes_.back());
    const int64_t count = std::min<int64_t>(kSheetRows, forms[0].size(0));
    const int64_t stride = forms[0].size(0) / count;
    std::vector<at::Tensor> columns;
    for (const Form form : {kTruth, kReconstructed, kUpsampled, kEnlarged, kDamaged}) {
      columns.push_back(
          to_bytes(forms[form].slice(0, 0, std::nullopt, stride).narrow(0, 0, count)));
    }
    return clip_sheet(at::stack(columns, 1), kForms);
  }

  Result<std::vector<std::filesystem::path>> publish(const std::filesystem::path& out) override {
    const at::NoGradGuard no_grad;
    averaged_.parameters()->assign(trained_.best());
    const auto [mean, deviation] = reference();
    const std::filesystem::path path = out / RewardNetwork::checkpoint().files[0];
    UF_TRY(network_.save(context_, path, trained_.best(), mean, deviation));
    return std::vector{path};
  }

 private:
  struct Size {
    int64_t scale = 2;
    PairAutoencoders autoencoders;
    std::optional<UpsamplerNetwork> upsampler;
    std::unique_ptr<LatentBank> bank;
    std::vector<at::Tensor> unseen;  // f32 [crops, side, side, 3] a form, made when first needed
  };
  struct Pairs {
    at::Tensor better;  // f32 [batch, crop, crop, 3]
    at::Tensor worse;
    at::Tensor part;  // f32 [batch], how much worse: 1, or less for mixtures
  };

  // All forms of crops around what has most detail, of the last picture of every latent frame:
  // u8 [n, frames, height, width, 3] -> f32 [n, latent_frames, side, side, 3] each.
  std::vector<at::Tensor> crops(const Size& size, const at::Tensor& raw, int64_t first_clip) const {
    const at::NoGradGuard no_grad;
    const at::Tensor pictures = raw.to(at::kFloat).div_(255.0);
    const int64_t n = pictures.size(0);
    const int64_t height = pictures.size(2);
    const int64_t width = pictures.size(3);
    const TinyDecoderConfig& decoder = size.autoencoders.large.decoder.config();
    const int64_t rate = decoder.frames_per_latent();
    const auto last = [&](const at::Tensor& x) {
      return x.slice(1, rate - 1, std::nullopt, rate);  // [n, latent_frames, ...]
    };
    const at::Tensor truth = last(pictures);
    const Windows windows =
        busiest_windows(truth.flatten(0, 1), context_.config.reward.crop + kShift);
    const auto crop = [&](const at::Tensor& x) {
      return cropped(x.flatten(0, 1), windows).unflatten(0, {n, truth.size(1)}).clamp(0.0, 1.0);
    };
    const auto enlarged = [&](const at::Tensor& x) {
      return resized(x, height, width, ResizeFilter::kBicubic);
    };
    const auto decoded = [&](const at::Tensor& latents) {
      std::vector<at::Tensor> clips;  // one after the other: a clip is large
      for (int64_t i = 0; i < n; ++i) {
        DecoderState state;
        const at::Tensor z = latents.narrow(0, i, 1).to(to_torch(context_.compute)).contiguous();
        clips.push_back(last(to_torch(size.autoencoders.large.decoder.run(context_.ops(),
                                                                          from_torch(z), state)))
                            .to(at::kFloat));
      }
      const auto low = static_cast<double>(decoder.output_low());
      return (at::cat(clips) - low) / (1.0 - low);
    };
    const int64_t small_height = height / size.scale;
    const int64_t small_width = width / size.scale;
    const PairLatents latents = encode_pair(context_, size.autoencoders, pictures, size.scale);
    context_.seed_shared_step(first_clip, kDamageNoise);
    const at::Tensor damaged =
        degrade::degraded_clips(context_, pictures, small_height, small_width, first_clip);
    const at::Tensor small =
        resized(truth, small_height, small_width, context_.config.cascade.downsample);
    // What streams begin with; without an upsampler, what blurred pictures are for the autoencoder.
    const at::Tensor upsampled =
        size.upsampler ? size.upsampler->run_window(context_, latents.low, 0)
                       : size.autoencoders.large.encode(
                             context_, enlarged(resized(pictures, small_height, small_width,
                                                        context_.config.cascade.downsample)) *
                                           255.0);
    std::vector<at::Tensor> forms(kForms);
    forms[kTruth] = crop(truth);
    forms[kEnlarged] = crop(enlarged(small));
    forms[kDamaged] = crop(enlarged(last(damaged)));
    forms[kReconstructed] = crop(decoded(latents.high));
    forms[kUpsampled] = crop(decoded(upsampled));
    return forms;
  }

  Pairs draw(int64_t step) const {
    const at::NoGradGuard no_grad;
    const TrainConfig& config = context_.config;
    const RewardConfig& c = config.reward;
    const Size& size = *sizes_[static_cast<size_t>(step) % sizes_.size()];
    StepRandom frames(context_, step, kFrameDraw);
    const int64_t frame = frames.below(config.bank.latent_frames);
    const LatentBatch sampled = size.bank->sample(step, config.batch, 0.0, 0, {frame, 1});
    std::vector<at::Tensor> forms = {sampled.latents.select(1, 0)};
    for (const at::Tensor& x : sampled.others) forms.push_back(x.select(1, 0));
    const at::Tensor all = at::stack(forms);  // [forms, batch, side, side, 3]

    const std::array<double, 5> shares = {c.enlarged, c.damaged, c.reconstructed, c.upsampled,
                                          c.disturbed};
    double total = 0.0;
    for (const double share : shares) total += share;
    StepRandom random(context_, step, kPairDraw);
    at::Tensor better = at::empty({config.batch}, at::kLong);
    at::Tensor worse = at::empty({config.batch}, at::kLong);
    std::vector<double> sharp, noise, chequer, part, mirrored;
    for (int64_t i = 0; i < config.batch; ++i) {
      double place = total * random.uniform();
      size_t kind = 0;
      while (kind + 1 < shares.size() && place >= shares[kind]) place -= shares[kind++];
      const bool disturbed = kind == kOrders.size();
      const bool other = random.uniform() < 0.5;
      const Order order =
          disturbed ? (other ? Order{kTruth, kTruth} : Order{kReconstructed, kReconstructed})
                    : kOrders[kind];
      better.mutable_data_ptr<int64_t>()[i] = order.better;
      worse.mutable_data_ptr<int64_t>()[i] = order.worse;
      const int64_t how = disturbed ? random.below(3) : -1;
      const double strength = random.uniform();
      sharp.push_back(how == 0 ? std::lerp(1.0, 4.0, strength) : 0.0);
      noise.push_back(how == 1 ? std::lerp(0.02, 0.1, strength) : 0.0);
      chequer.push_back(how == 2 ? std::lerp(0.02, 0.08, strength) : 0.0);
      const double mixed = random.uniform();
      part.push_back(random.uniform() < c.part ? std::lerp(0.25, 1.0, mixed) : 1.0);
      mirrored.push_back(random.uniform() < 0.5 ? 1.0 : 0.0);
    }
    context_.seed_step(step);
    const at::Tensor rows = at::arange(config.batch, at::TensorOptions(at::kLong));
    const auto chosen = [&](const at::Tensor& form) {
      return all.flatten(0, 1).index_select(0, (form * config.batch + rows).to(context_.device));
    };
    at::Tensor good = chosen(better);
    at::Tensor bad = chosen(worse);
    const int64_t side = good.size(1);
    const at::Tensor line = at::arange(side, at::TensorOptions(at::kLong).device(context_.device));
    const at::Tensor board =
        ((line.unsqueeze(0) + line.unsqueeze(1)).remainder(2) * 2 - 1).to(at::kFloat).unsqueeze(2);
    bad = bad + column(context_, sharp) * (bad - smoothed(bad)) +
          column(context_, noise) * at::randn_like(bad) + column(context_, chequer) * board;
    const at::Tensor parts = column(context_, part);
    bad = at::lerp(good, bad.clamp(0.0, 1.0), parts);
    // The same shift, mirror and order of colours for both.
    const int64_t crop = std::min(c.crop, side);
    const int64_t top = frames.below(side - crop + 1);
    const int64_t left = frames.below(side - crop + 1);
    const bool turned = frames.uniform() < 0.5;
    const int64_t first_colour = frames.below(3);
    const int64_t second_colour = (first_colour + 1 + frames.below(2)) % 3;
    const at::Tensor flip = column(context_, mirrored);
    const auto shown = [&](at::Tensor x) {
      x = x.narrow(1, top, crop).narrow(2, left, crop);
      x = at::where(flip > 0.5, x.flip(2), x);
      if (turned) x = x.transpose(1, 2);
      return at::stack({x.select(3, first_colour), x.select(3, second_colour),
                        x.select(3, 3 - first_colour - second_colour)},
                       3);
    };
    return {shown(good), shown(bad), parts.reshape({-1})};
  }

  const std::vector<at::Tensor>& unseen_crops(Size& size) const {
    if (!size.unseen.empty()) return size.unseen;
    const CascadeConfig& c = context_.config.cascade;
    const int64_t frames = pictures_of(context_.recipe, c.eval_frames);
    const int64_t count = std::max<int64_t>(c.eval_clips, 2);
    const at::Tensor pictures = first_clips(context_, *unseen_, size.scale, frames, count);
    std::vector<std::vector<at::Tensor>> parts(kForms);
    for (int64_t i = 0; i < count; ++i) {
      const std::vector<at::Tensor> forms =
          crops(size, pictures.narrow(0, i, 1).to(context_.device), kUnseenClip + i);
      for (size_t form = 0; form < forms.size(); ++form) {
        const int64_t crop = std::min(context_.config.reward.crop, forms[form].size(2));
        const int64_t edge = (forms[form].size(2) - crop) / 2;
        parts[form].push_back(
            forms[form].flatten(0, 1).narrow(1, edge, crop).narrow(2, edge, crop));
      }
    }
    for (const auto& form : parts) size.unseen.push_back(at::cat(form));
    return size.unseen;
  }

  [[nodiscard]] at::Tensor scores_of(const at::Tensor& pictures) const {
    std::vector<at::Tensor> parts;
    for (const at::Tensor& x : pictures.split(kEvalBatch)) {
      parts.push_back(averaged_.scores(context_, x));
    }
    return at::cat(parts);
  }

  // Scores of the held-out clips as the autoencoder shows them: mean and deviation.
  [[nodiscard]] std::pair<at::Tensor, at::Tensor> reference() const {
    std::vector<at::Tensor> scores;
    for (const auto& size : sizes_)
      scores.push_back(scores_of(unseen_crops(*size)[kReconstructed]));
    const at::Tensor all = at::cat(scores);
    return {all.mean(), all.std().clamp_min(1e-6)};
  }

  TrainContext& context_;
  RewardNetwork network_, averaged_;
  TrainedSet trained_;
  std::unique_ptr<TrainingClips> clips_, unseen_;
  std::unique_ptr<CaptionTokenizer> tokenizer_;
  std::vector<std::unique_ptr<Size>> sizes_;
};

}  // namespace

Result<std::unique_ptr<Objective>> make_reward_objective(TrainContext& context) {
  return open_objective<RewardObjective>(context);
}

}  // namespace ultraflash

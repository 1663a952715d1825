// The super-resolution transformer, from a text-to-video one: it learns the flow of large latents
// with the upsampled small ones as condition, under dense chunk-causal attention.
// ultra-flash-training section 2.
#include "ops/autograd/torch_tensor.h"
#include "train/objective.h"
#include "train/refiner_data.h"
#include "train/step_cost.h"
#include "train/step_graph.h"

namespace ultraflash {
namespace {

class SrObjective final : public Objective {
 public:
  explicit SrObjective(TrainContext& context) : context_(context) {}

  Status bind() {
    const TrainConfig& config = context_.config;
    UF_ASSIGN(data_, RefinerData::open(context_));
    UF_ASSIGN(refiner_, Refiner::open(context_, config.init.refiner, /*trainable=*/true));
    UF_ASSIGN(averaged_, refiner_.copy(context_, /*trainable=*/false));
    for (const auto& [scale, network] : refiner_.scales) {
      const int64_t chunk = network.network.config().stream_chunk_size;
      if (config.cascade.frames % chunk == 0 && config.cascade.eval_frames % chunk == 0) continue;
      return make_status(StatusCode::kInvalidArgument,
                         "cascade: frames {} and eval_frames {} must be multiples of the recipe's "
                         "stream_chunk_size {}",
                         config.cascade.frames, config.cascade.eval_frames, chunk);
    }
    trained_.name = "refiner";
    trained_.parameters = refiner_.parameters;
    trained_.begin(config.optimizer, &config.ema);
    return {};
  }

  std::vector<TrainedSet*> sets() override { return {&trained_}; }

  Status start(int64_t first_step) override {
    graphs_ = StepGraphs::open(context_);
    data_->fill(first_step);
    return {};
  }

  void step(int64_t step, double lr_factor, Meter& meter) override {
    const TrainConfig& config = context_.config;
    data_->advance(step);
    const RefinerData::Size& size = data_->of_step(step);
    const RefinerData::Draw drawn = data_->draw(step, config.cascade.frames, /*may_drop=*/true);
    const StepResult condition =
        graphs_->run(fmt::format("condition {}x after {} frames", size.scale, drawn.lead),
                     {drawn.low, drawn.noise, drawn.kept}, [&](const std::vector<at::Tensor>& x) {
                       StepResult result;
                       result.tensors = {data_->condition(size, drawn.lead, x[0], x[1], x[2])};
                       return result;
                     });
    const std::vector<double> sigmas = data_->draw_sigmas(step);
    const StepResult result =
        graphs_->run(fmt::format("flow {}x", size.scale), *trained_.parameters,
                     {drawn.z, condition.tensors[0], to_torch(drawn.embeddings),
                      at::tensor(sigmas, at::kDouble)},
                     [&](const std::vector<at::Tensor>& x) { return learn(size.scale, x); });
    result.report(meter);
    meter.add("gradient_norm", trained_.update(lr_factor));
  }

  // The true latents, the condition, the text's embeddings, and f64 [batch] sigmas.
  [[nodiscard]] StepResult learn(int64_t scale, const std::vector<at::Tensor>& inputs) const {
    const at::Tensor loss =
        refiner_.at(scale).flow_loss(context_, inputs[0], inputs[1], inputs[3], inputs[2]);
    loss.backward();
    StepResult result;
    result.add("loss", loss);
    if (!data_->one_size()) result.add(fmt::format("loss_{}x", scale), loss);
    return result;
  }

  [[nodiscard]] double step_cost() const override {
    const TrainConfig& config = context_.config;
    return mean_over_scales(context_, [&](int64_t scale) {
      return kForwardAndBackward *
                 dense_refiner_cost(context_, scale, config.batch, config.cascade.frames) +
             upsampler_cost(context_, scale, config.batch, config.cascade.frames);
    });
  }

  Measures evaluate() override {
    averaged_.parameters->assign(trained_.best());
    return data_->evaluate([&](int64_t scale, const at::Tensor& y, const Tensor& embeddings,
                               const RefinerData::Add& add) {
      const RefinerNetwork& network = averaged_.at(scale);
      const FlowConfig& flow = context_.config.flow;
      const at::Tensor noise = at::randn_like(y);
      const TextKv text = network.text(context_, embeddings);
      add("one_step", network.sample(context_, noise, y, text, 1, 1.0));
      add("refined",
          network.sample(context_, noise, y, text, flow.sample_steps, flow.sample_shift));
    });
  }

  std::optional<RgbImage> sheet() override { return data_->sheet(); }

  Result<std::vector<std::filesystem::path>> publish(const std::filesystem::path& out) override {
    const CascadeSpec* cascade = context_.recipe.cascade(context_.config.cascade.scales[0]);
    return publish_sets(context_, out, {{trained_, cascade->refiner->checkpoint}});
  }

 private:
  TrainContext& context_;
  Refiner refiner_, averaged_;
  TrainedSet trained_;
  std::unique_ptr<RefinerData> data_;
  std::unique_ptr<StepGraphs> graphs_;
};

}  // namespace

Result<std::unique_ptr<Objective>> make_sr_objective(TrainContext& context) {
  return open_objective<SrObjective>(context);
}

}  // namespace ultraflash

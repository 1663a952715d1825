#include "stream/pipeline.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "diffusion/flow_match.h"

namespace ultraflash {
namespace {

constexpr std::array kTimerNames = {"text",    "generator", "upsampler",
                                    "refiner", "decoder",   "pictures"};

int64_t group_chunks(const CascadeSpec& cascade) {
  return cascade.refiner ? cascade.refiner->group_chunks : 1;
}

Tensor concatenate(Executor& ops, const std::vector<Tensor>& chunks) {
  if (chunks.size() == 1) return chunks[0];
  int64_t frames = 0;
  for (const Tensor& chunk : chunks) frames += chunk.dim(1);
  Tensor group = ops.empty(chunks[0].dtype(), chunks[0].shape().with(1, frames));
  int64_t at = 0;
  for (const Tensor& chunk : chunks) {
    ops.copy(group.slice(1, at, at + chunk.dim(1)), chunk);
    at += chunk.dim(1);
  }
  return group;
}

}  // namespace

// Adds the time until its end to one stage.
class Pipeline::Timing {
 public:
  Timing(Pipeline& pipeline, Timer timer)
      : pipeline_(pipeline), timer_(timer), begin_(std::chrono::steady_clock::now()) {}
  Timing(const Timing&) = delete;
  Timing& operator=(const Timing&) = delete;
  ~Timing() {
    pipeline_.ops_->synchronize();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
    const std::lock_guard lock(pipeline_.stats_mutex_);
    TimerState& state = pipeline_.timers_[timer_];
    ++state.calls;
    state.seconds += seconds;
    state.last_seconds = seconds;
  }

 private:
  Pipeline& pipeline_;
  Timer timer_;
  std::chrono::steady_clock::time_point begin_;
};

Pipeline::Pipeline(std::shared_ptr<const NetworkSet> networks, std::unique_ptr<Executor> executor,
                   Logger log)
    : networks_(std::move(networks)),
      ops_(std::move(executor)),
      log_(std::move(log)),
      generator_(*ops_, networks_->generator, networks_->recipe.generator,
                 networks_->recipe.cache_policy()),
      cascade_(*ops_, networks_->cascade(), networks_->recipe.generator,
               networks_->upsampler ? &*networks_->upsampler : nullptr,
               networks_->refiner ? &*networks_->refiner : nullptr,
               group_chunks(networks_->cascade()) * networks_->recipe.generator.frames_per_chunk),
      decoder_(*ops_, networks_->decoder) {
  if (networks_->low_resolution_decoder) {
    low_resolution_decoder_.emplace(*ops_, *networks_->low_resolution_decoder);
  }
  all_steps_ = reduced_steps(generator_.steps(), 0);
}

Status Pipeline::begin(const SessionOptions& options, PreparedPrompt prompt,
                       std::vector<std::pair<int64_t, PreparedPrompt>> switches) {
  const RecipeData& recipe = networks_->recipe;
  const CascadeSpec& cascade = networks_->cascade();
  const CacheManagement& dcm = options.cache_management;
  if (dcm.steps_after_first_chunk < 0 || dcm.steps_after_first_chunk > generator_.steps()) {
    return make_status(StatusCode::kInvalidArgument,
                       "{} denoising steps for later chunks; the recipe has {}",
                       dcm.steps_after_first_chunk, generator_.steps());
  }
  if (dcm.sr_kv_len_min < 1 || dcm.sr_warmup_groups < 0) {
    return make_status(StatusCode::kInvalidArgument,
                       "SR cache adaptation to at least {} blocks after {} groups; give 1 or more "
                       "blocks and 0 or more groups",
                       dcm.sr_kv_len_min, dcm.sr_warmup_groups);
  }
  const double noise = options.condition_noise_scale;
  if (noise > 1.0 || noise != noise) {
    return make_status(StatusCode::kInvalidArgument, "condition noise {} is outside 0 to 1", noise);
  }
  const PictureRate rate = picture_rate(cascade.decoder, options.trim);
  UF_ASSIGN(const ChunkPlan plan, ChunkPlan::make(recipe.generator.frames_per_chunk,
                                                  recipe.generator.independent_first_frame,
                                                  options.chunks, options.frames, rate));
  const CachePolicy policy = recipe.cache_policy();
  const int64_t capacity = policy.capacity_frames;
  if (policy.kind == CacheKind::kGrow &&
      (plan.chunks == 0 || plan.latent_frames(plan.chunks) > capacity)) {
    return make_status(
        StatusCode::kInvalidArgument,
        "recipe '{}' keeps every latent frame and holds {} ({} pictures), but {} "
        "were asked for; use a recipe with a window, or --window",
        recipe.name, capacity, rate.pictures(capacity),
        plan.chunks == 0 ? std::string("endless ones") : fmt::format("{}", plan.pictures));
  }
  plan_ = plan;
  options_ = options;
  later_steps_ = reduced_steps(generator_.steps(), dcm.steps_after_first_chunk);
  switches_ = std::move(switches);
  std::sort(switches_.begin(), switches_.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  pending_prompt_ = std::move(prompt);
  pending_mode_ = SwitchMode::kPlain;
  generator_.reset(options.seed);
  cascade_.reset(options.seed, noise < 0.0 && cascade.refiner
                                   ? cascade.refiner->condition_noise_scale
                                   : std::max(noise, 0.0));
  decoder_.reset(rate.dropped, plan_.pictures);
  if (low_resolution_decoder_) {
    const PictureRate small = picture_rate(recipe.cascade(1)->decoder, options.trim);
    low_resolution_decoder_->reset(small.dropped, plan_.pictures);
  }
  buffer_.clear();
  unrefreshed_ = Tensor();
  group_first_chunk_ = 0;
  ended_ = false;
  const std::lock_guard lock(stats_mutex_);
  timers_ = {};
  counters_ = {};
  return {};
}

void Pipeline::switch_prompt(PreparedPrompt prompt, SwitchMode mode) {
  pending_prompt_ = std::move(prompt);
  pending_mode_ = mode;
}

void Pipeline::apply_prompt(const PreparedPrompt& prompt) {
  const Timing timing(*this, kText);
  const Tensor embeddings = embed_prompt(*networks_, *ops_, prompt);
  generator_.set_text(networks_->generator.text(*ops_, embeddings));
  if (networks_->refiner) {
    cascade_.set_text(networks_->refiner->transformer().text(*ops_, embeddings));
  }
}

bool Pipeline::skip_refresh(const Tensor& chunk) {
  const CacheManagement& dcm = options_.cache_management;
  if (dcm.never_refresh) return true;
  // The first chunk is always refreshed.
  if (!dcm.refresh_score || generator_.chunks() <= 1) return false;
  const PictureDecoder& decoder =
      networks_->low_resolution_decoder ? *networks_->low_resolution_decoder : networks_->decoder;
  if (!decoder.tiny) return false;
  // The last latent frame alone, in a stream of its own: its last picture is whole.
  const int64_t frames = chunk.dim(1);
  Tensor last = ops_->empty(chunk.dtype(), chunk.shape().with(1, 1));
  ops_->copy(last, chunk.slice(1, frames - 1, frames));
  DecoderState state;
  const Tensor pictures = decoder.tiny->run(*ops_, last, state);
  const Tensor rgb =
      ops_->to_host(ops_->to_rgb8(pictures, decoder.tiny->config().output_low(), 1.0F));
  const Tensor picture = rgb.select(0, 0).select(0, rgb.dim(1) - 1);
  const std::optional<double> score =
      dcm.refresh_score({picture.dim(1),
                         picture.dim(0),
                         {picture.data<uint8_t>(), static_cast<size_t>(picture.numel())}});
  return score && *score > dcm.refresh_threshold;
}

Tensor Pipeline::next_chunk(const std::function<void()>& check) {
  const int64_t index = generator_.chunks();
  for (const auto& [chunk, prompt] : switches_) {
    if (chunk == index) {
      pending_prompt_ = prompt;
      pending_mode_ = options_.switch_mode;
    }
  }
  // The context pass of the last chunk waited until now, so that its pictures could go out first.
  // A prompt switch comes after it, unless that runs everything again anyway.
  const bool recache = pending_prompt_ && pending_mode_ == SwitchMode::kRecache && index > 0;
  if (unrefreshed_.defined() && !recache) {
    check();
    const Timing timing(*this, kGenerator);
    generator_.refresh(unrefreshed_);
    const std::lock_guard lock(stats_mutex_);
    ++counters_.context_passes;
  }
  unrefreshed_ = Tensor();
  if (pending_prompt_) {
    check();
    apply_prompt(*pending_prompt_);
    pending_prompt_.reset();
    if (recache) {
      check();
      const Timing timing(*this, kGenerator);
      generator_.recache();
    }
  }
  const std::vector<int64_t>& steps = index == 0 ? all_steps_ : later_steps_;
  Tensor chunk;
  {
    const Timing timing(*this, kGenerator);
    chunk = generator_.next_chunk(plan_.chunk_frames(index), steps, check);
  }
  const bool skip = skip_refresh(chunk);
  if (!skip) unrefreshed_ = chunk;
  const std::lock_guard lock(stats_mutex_);
  ++counters_.chunks;
  counters_.denoising_passes += static_cast<int64_t>(steps.size());
  if (skip) ++counters_.skipped_context_passes;
  return chunk;
}

int64_t Pipeline::kv_len_of_group(int64_t group) const {
  const CacheManagement& dcm = options_.cache_management;
  const int64_t full = networks_->cascade().refiner->kv_len;
  if (!dcm.adapt_sr_cache || group < dcm.sr_warmup_groups) return full;
  return std::max(std::min(dcm.sr_kv_len_min, full), full - (group - dcm.sr_warmup_groups));
}

std::shared_ptr<const uint8_t> Pipeline::share(const Tensor& pictures) {
  auto owner = std::make_shared<Tensor>(ops_->to_host(pictures));
  const uint8_t* data = owner->data<uint8_t>();
  return {std::move(owner), data};
}

std::optional<Frames> Pipeline::flush_group(const std::function<void()>& check) {
  const Tensor group = concatenate(*ops_, buffer_);
  Frames frames;
  frames.first_chunk = group_first_chunk_;
  frames.chunk_count = static_cast<int64_t>(buffer_.size());
  group_first_chunk_ += frames.chunk_count;
  buffer_.clear();
  Tensor latent = group;
  if (cascade_.has_upsampler()) {
    check();
    const Timing timing(*this, kUpsampler);
    latent = cascade_.upsample(latent);
  }
  if (cascade_.has_refiner()) {
    check();
    const Timing timing(*this, kRefiner);
    latent = cascade_.refine(latent, kv_len_of_group(cascade_.groups()));
  }
  check();
  Tensor pictures;
  frames.first_frame = decoder_.delivered();
  {
    const Timing timing(*this, kDecoder);
    pictures = decoder_.run(latent);
  }
  Tensor small;
  if (low_resolution_decoder_) {
    const Timing timing(*this, kPictures);
    small = low_resolution_decoder_->run(group);
  }
  if (!pictures.defined()) return std::nullopt;  // all of them were trimmed
  frames.count = pictures.dim(0);
  frames.height = pictures.dim(1);
  frames.width = pictures.dim(2);
  frames.rgb = share(pictures);
  if (small.defined()) {
    frames.low_resolution_count = small.dim(0);
    frames.low_resolution_height = small.dim(1);
    frames.low_resolution_width = small.dim(2);
    frames.low_resolution_rgb = share(small);
  }
  const std::lock_guard lock(stats_mutex_);
  counters_.frames += frames.count;
  return frames;
}

std::optional<Frames> Pipeline::step(const std::function<void()>& check,
                                     const std::function<bool()>& draining) {
  const auto wanted = static_cast<size_t>(group_chunks(networks_->cascade()));
  while (!ended_) {
    const bool planned = plan_.chunks == 0 || generator_.chunks() < plan_.chunks;
    const bool full = plan_.pictures > 0 && decoder_.delivered() >= plan_.pictures;
    if (!planned || full || draining()) {
      ended_ = true;
      if (buffer_.empty() || full) return std::nullopt;
      return flush_group(check);  // the tail: fewer chunks than a group
    }
    buffer_.push_back(next_chunk(check));
    const bool last = plan_.chunks != 0 && generator_.chunks() == plan_.chunks;
    if (buffer_.size() < wanted && !last) continue;
    if (std::optional<Frames> frames = flush_group(check)) return frames;
  }
  return std::nullopt;
}

SessionStats Pipeline::stats() const {
  SessionStats stats;
  {
    const std::lock_guard lock(stats_mutex_);
    stats = counters_;
    for (size_t i = 0; i < kTimers; ++i) {
      if (timers_[i].calls == 0) continue;
      stats.stages.push_back(
          {kTimerNames[i], timers_[i].calls, timers_[i].seconds, timers_[i].last_seconds});
    }
  }
  const Arena::Stats memory = ops_->memory();
  stats.arena_peak_bytes = memory.peak_bytes;
  stats.arena_reserved_bytes = memory.reserved_bytes;
  stats.arena_requests = memory.slab_requests;
  return stats;
}

}  // namespace ultraflash

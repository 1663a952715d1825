#include "stream/pipeline.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "diffusion/flow_match.h"
#include "ops/profiler_range.h"

namespace ultraflash {
namespace {

constexpr std::array kTimerNames = {"text",    "generator", "context", "upsampler",
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

class Pipeline::Delivery {
 public:
  Frames frames;
  std::vector<std::shared_ptr<Moment>> ready;
  std::vector<Tensor> read_until_then;
  std::vector<Call> calls;
  int64_t decoded = 0;  // pictures since the stream began
};

Pipeline::Pipeline(std::shared_ptr<const NetworkSet> networks, std::unique_ptr<Executor> executor,
                   std::unique_ptr<Executor> cascade_executor, Logger log)
    : networks_(std::move(networks)),
      ops_(std::move(executor)),
      own_cascade_ops_(std::move(cascade_executor)),
      cascade_ops_(own_cascade_ops_ ? *own_cascade_ops_ : *ops_),
      log_(std::move(log)),
      generator_(*ops_, networks_->generator, networks_->recipe.generator,
                 networks_->recipe.cache_policy()),
      cascade_(cascade_ops_, networks_->cascade(), networks_->recipe.generator,
               networks_->upsampler ? &*networks_->upsampler : nullptr,
               networks_->refiner ? &*networks_->refiner : nullptr,
               group_chunks(networks_->cascade()) * networks_->recipe.generator.frames_per_chunk),
      decoder_(cascade_ops_, networks_->decoder) {
  if (networks_->low_resolution_decoder) {
    low_resolution_decoder_.emplace(cascade_ops_, *networks_->low_resolution_decoder);
  }
  all_steps_ = reduced_steps(generator_.steps(), 0);
}

Pipeline::~Pipeline() {
  try {
    wait_for_all();
  } catch (const Error&) {
    // The device failed; whoever used the stream has been told.
  }
}

void Pipeline::wait_for_all() {
  // What is queued still reads and writes memory that goes back now.
  ops_->synchronize();
  cascade_ops_.synchronize();
  calls_.clear();
  lent_.clear();
}

template <typename Work>
void Pipeline::timed(Timer timer, Executor& ops, const Work& work) {
  const ProfilerRange range(kTimerNames[timer]);
  Call call;
  call.timer = timer;
  call.queued_from = std::chrono::steady_clock::now();
  call.begin = ops.moment();
  if (options_.trace) ops.log_operations(&call.operations);
  try {
    work();
  } catch (...) {
    ops.log_operations(nullptr);
    throw;
  }
  ops.log_operations(nullptr);
  call.end = ops.moment();
  call.queued_to = std::chrono::steady_clock::now();
  calls_.push_back(std::move(call));
}

void Pipeline::add_to_trace(const Call& call) {
  const auto seconds = [this](std::chrono::steady_clock::time_point t) {
    return std::chrono::duration<double>(t - host_origin_).count();
  };
  TraceEvent stage;
  stage.name = kTimerNames[call.timer];
  stage.begin = call.begin->seconds_since(*origin_);
  stage.seconds = call.end->seconds_since(*call.begin);
  trace_.push_back(stage);
  stage.on_host = true;
  stage.begin = seconds(call.queued_from);
  stage.seconds = seconds(call.queued_to) - stage.begin;
  trace_.push_back(stage);
  for (const OpRecord& record : call.operations) {
    TraceEvent event;
    event.name = record.name;
    event.stage = stage.name;
    event.shape = record.cost.shape;
    event.begin = record.begin->seconds_since(*origin_);
    event.seconds = record.end->seconds_since(*record.begin);
    event.flops = record.cost.flops;
    event.bytes = record.cost.bytes;
    trace_.push_back(std::move(event));
  }
}

std::vector<TraceEvent> Pipeline::take_trace() {
  const std::lock_guard lock(stats_mutex_);
  return std::exchange(trace_, {});
}

void Pipeline::set_text(const Tensor& embeddings, int64_t tokens) {
  generator_.set_text(networks_->generator.text(*ops_, embeddings, tokens));
  if (networks_->refiner) {
    cascade_ops_.wait_for(ops_->moment());
    cascade_.set_text(networks_->refiner->transformer().text(cascade_ops_, embeddings, tokens));
    if (own_cascade_ops_) lent_.push_back(embeddings);
  }
}

void Pipeline::warm_up() {
  if (!ops_->queues()) return;
  // Once as it comes, which makes plans and asks for memory, once to record and replay.
  constexpr int kTimes = 2;
  const RecipeData& recipe = networks_->recipe;
  const GeneratorSpec& spec = recipe.generator;
  set_text(ops_->zeros(networks_->compute, {1, spec.network.text_len, spec.network.text_dim}),
           /*tokens=*/0);
  generator_.warm_up(spec.independent_first_frame, kTimes);
  // Groups of full length from an empty cache on, then every shorter tail that a stream may have,
  // beside a full cache and, for streams of one group, an empty one.
  const int64_t full = group_chunks(networks_->cascade());
  const auto group_of = [&](int64_t chunks, bool first) {
    const int64_t one = first && spec.independent_first_frame ? 1 : spec.frames_per_chunk;
    return cascade_ops_.zeros(networks_->compute,
                              {1, one + (chunks - 1) * spec.frames_per_chunk, spec.latent_height,
                               spec.latent_width, spec.network.in_dim});
  };
  const auto run = [&](const Tensor& group) {
    Tensor latent = group;
    if (cascade_.has_upsampler()) latent = cascade_.upsample(latent);
    if (cascade_.has_refiner()) latent = cascade_.refine(latent, kv_len_of_group(0));
    static_cast<void>(decoder_.run(latent));
    if (low_resolution_decoder_) static_cast<void>(low_resolution_decoder_->run(group));
  };
  options_ = {};
  // The SR cache fills up within as many groups as it has blocks.
  const int64_t groups = cascade_.has_refiner() ? cascade_.groups_until_full() : 1;
  const auto begin_again = [&] {
    // Also keeps the calling thread from running far ahead of temporary tensors.
    ops_->synchronize();
    cascade_ops_.synchronize();
    cascade_.reset(0, 0.0);
    decoder_.reset(0, 0);
    if (low_resolution_decoder_) low_resolution_decoder_->reset(0, 0);
  };
  for (int i = 0; i < kTimes; ++i) {
    begin_again();
    run(group_of(full, /*first=*/true));
    for (int64_t g = 0; g < groups; ++g) run(group_of(full, /*first=*/false));
    for (int64_t tail = full - 1; tail > 0; --tail) run(group_of(tail, /*first=*/false));
    for (int64_t tail = full - 1; tail > 0; --tail) {
      begin_again();
      run(group_of(tail, /*first=*/true));
    }
  }
  wait_for_all();
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
  wait_for_all();
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
  origin_ = options_.trace ? ops_->moment() : nullptr;
  host_origin_ = std::chrono::steady_clock::now();
  const std::lock_guard lock(stats_mutex_);
  trace_.clear();
  timers_ = {};
  counters_ = {};
  return {};
}

void Pipeline::switch_prompt(PreparedPrompt prompt, SwitchMode mode) {
  pending_prompt_ = std::move(prompt);
  pending_mode_ = mode;
}

void Pipeline::apply_prompt(const PreparedPrompt& prompt) {
  timed(kText, *ops_, [&] { set_text(embed_prompt(*networks_, *ops_, prompt), prompt.length); });
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
    timed(kContext, *ops_, [&] { generator_.refresh(unrefreshed_); });
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
      timed(kContext, *ops_, [&] { generator_.recache(); });
    }
  }
  const std::vector<int64_t>& steps = index == 0 ? all_steps_ : later_steps_;
  Tensor chunk;
  timed(kGenerator, *ops_,
        [&] { chunk = generator_.next_chunk(plan_.chunk_frames(index), steps, check); });
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

std::shared_ptr<const uint8_t> Pipeline::share(const Tensor& pictures, Delivery& delivery) {
  std::shared_ptr<Moment> ready;
  auto owner = std::make_shared<Tensor>(cascade_ops_.to_host_later(pictures, ready));
  delivery.ready.push_back(std::move(ready));
  delivery.read_until_then.push_back(pictures);
  const uint8_t* data = owner->data<uint8_t>();
  return {std::move(owner), data};
}

std::shared_ptr<Pipeline::Delivery> Pipeline::flush_group(const std::function<void()>& check) {
  const Tensor group = concatenate(*ops_, buffer_);
  cascade_ops_.wait_for(ops_->moment());
  if (own_cascade_ops_) lent_.push_back(group);
  auto delivery = std::make_shared<Delivery>();
  Frames& frames = delivery->frames;
  frames.first_chunk = group_first_chunk_;
  frames.chunk_count = static_cast<int64_t>(buffer_.size());
  group_first_chunk_ += frames.chunk_count;
  buffer_.clear();
  Tensor latent = group;
  if (cascade_.has_upsampler()) {
    check();
    timed(kUpsampler, cascade_ops_, [&] { latent = cascade_.upsample(latent); });
  }
  if (cascade_.has_refiner()) {
    check();
    timed(kRefiner, cascade_ops_,
          [&] { latent = cascade_.refine(latent, kv_len_of_group(cascade_.groups())); });
  }
  check();
  Tensor pictures;
  frames.first_frame = decoder_.delivered();
  timed(kDecoder, cascade_ops_, [&] { pictures = decoder_.run(latent); });
  Tensor small;
  if (low_resolution_decoder_) {
    timed(kPictures, cascade_ops_, [&] { small = low_resolution_decoder_->run(group); });
  }
  if (!pictures.defined()) return nullptr;  // all of them were trimmed
  delivery->decoded = decoder_.decoded();
  frames.count = pictures.dim(0);
  frames.height = pictures.dim(1);
  frames.width = pictures.dim(2);
  frames.rgb = share(pictures, *delivery);
  if (small.defined()) {
    frames.low_resolution_count = small.dim(0);
    frames.low_resolution_height = small.dim(1);
    frames.low_resolution_width = small.dim(2);
    frames.low_resolution_rgb = share(small, *delivery);
  }
  for (Tensor& tensor : lent_) delivery->read_until_then.push_back(std::move(tensor));
  lent_.clear();
  delivery->calls = std::exchange(calls_, {});
  return delivery;
}

std::shared_ptr<Pipeline::Delivery> Pipeline::step(const std::function<void()>& check,
                                                   const std::function<bool()>& draining) {
  const auto wanted = static_cast<size_t>(group_chunks(networks_->cascade()));
  while (!ended_) {
    const bool planned = plan_.chunks == 0 || generator_.chunks() < plan_.chunks;
    const bool full = plan_.pictures > 0 && decoder_.delivered() >= plan_.pictures;
    if (!planned || full || draining()) {
      ended_ = true;
      if (buffer_.empty() || full) return nullptr;
      return flush_group(check);  // the tail: fewer chunks than a group
    }
    buffer_.push_back(next_chunk(check));
    const bool last = plan_.chunks != 0 && generator_.chunks() == plan_.chunks;
    if (buffer_.size() < wanted && !last) continue;
    if (std::shared_ptr<Delivery> delivery = flush_group(check)) return delivery;
  }
  return nullptr;
}

bool Pipeline::is_ready(const Delivery& delivery) {
  return std::all_of(delivery.ready.begin(), delivery.ready.end(),
                     [](const std::shared_ptr<Moment>& moment) { return moment->reached(); });
}

void Pipeline::TimerState::add(double call_seconds) {
  recent[static_cast<size_t>(calls) % recent.size()] = call_seconds;
  ++calls;
  seconds += call_seconds;
}

double Pipeline::TimerState::recent_median() const {
  std::array<double, 8> sorted = recent;
  const int64_t count = std::min<int64_t>(calls, static_cast<int64_t>(sorted.size()));
  if (count == 0) return 0.0;
  const auto middle = sorted.begin() + count / 2;
  std::nth_element(sorted.begin(), middle, sorted.begin() + count);
  return *middle;
}

Frames Pipeline::finish(Delivery& delivery) {
  for (const std::shared_ptr<Moment>& moment : delivery.ready) moment->wait();
  const std::lock_guard lock(stats_mutex_);
  for (const Call& call : delivery.calls) {
    timers_[call.timer].add(call.end->seconds_since(*call.begin));
    if (options_.trace) add_to_trace(call);
  }
  counters_.frames += delivery.frames.count;
  counters_.frames_decoded = delivery.decoded;
  delivery.read_until_then.clear();
  return std::move(delivery.frames);
}

SessionStats Pipeline::stats() const {
  SessionStats stats;
  {
    const std::lock_guard lock(stats_mutex_);
    stats = counters_;
    for (size_t i = 0; i < kTimers; ++i) {
      if (timers_[i].calls == 0) continue;
      stats.stages.push_back(
          {kTimerNames[i], timers_[i].calls, timers_[i].seconds, timers_[i].recent_median()});
    }
  }
  const DeviceMemoryInfo device = ops_->device_memory();
  stats.device_used_bytes = device.total_bytes - device.free_bytes;
  for (const Executor* ops : {ops_.get(), own_cascade_ops_.get()}) {
    if (ops == nullptr) continue;
    const Arena::Stats memory = ops->memory();
    stats.arena_peak_bytes += memory.peak_bytes;
    stats.arena_reserved_bytes += memory.reserved_bytes;
    stats.arena_requests += memory.slab_requests;
  }
  return stats;
}

}  // namespace ultraflash

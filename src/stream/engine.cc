#include "ultraflash/engine.h"

#include <exception>
#include <utility>

#include "core/check.h"
#include "core/host_info.h"
#include "stream/networks.h"
#include "stream/pipeline.h"
#include "stream/session.h"
#include "stream/shipped_models.h"
#include "stream/text_conditioning.h"

namespace ultraflash {
namespace {

constexpr int64_t kPixelsPerLatent = 8;

// Turns whatever a function throws into a Status: no exception crosses the public API.
template <typename Function>
auto guarded(const Function& function) -> decltype(function()) {
  try {
    return function();
  } catch (const Error& error) {
    return error.status();
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::kOutOfMemory, "out of host memory");
  } catch (const std::exception& error) {
    return make_status(StatusCode::kInternal, "{}", error.what());
  }
}

}  // namespace

class Engine::Impl {
 public:
  Impl(Recipe recipe_in, EngineOptions options_in, std::shared_ptr<const NetworkSet> networks_in)
      : recipe(std::move(recipe_in)),
        options(std::move(options_in)),
        networks(std::move(networks_in)) {}

  [[nodiscard]] Result<std::unique_ptr<Executor>> new_executor(bool urgent = false) const {
    ExecutorOptions executor_options = networks->executor_options(options);
    const bool gpu = networks->executor->device().type == DeviceType::kCuda;
    if (gpu) executor_options.device = device_name(networks->executor->device());
    executor_options.urgent = urgent;
    // Without a limit of the user's, what the machine has is the limit; on a GPU load_networks has
    // counted everything, and the driver knows what there is.
    if (!gpu) {
      executor_options.memory_limit_bytes =
          options.memory_limit_bytes != 0 ? options.memory_limit_bytes : host_memory_bytes();
    }
    return make_executor(executor_options);
  }

  Recipe recipe;
  EngineOptions options;
  std::shared_ptr<const NetworkSet> networks;
};

Engine::Engine(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;
Engine::~Engine() = default;

Result<Engine> Engine::load(const Recipe& recipe, const EngineOptions& options) {
  return guarded([&]() -> Result<Engine> {
    const std::filesystem::path shipped = shipped_models_folder(recipe.data());
    UF_ASSIGN(std::shared_ptr<const NetworkSet> networks,
              load_networks(recipe.data(), options, shipped));
    return Engine(std::make_shared<Impl>(recipe, options, std::move(networks)));
  });
}

Result<Session> Engine::start(const SessionOptions& options) const {
  return guarded([&]() -> Result<Session> {
    UF_ASSIGN(std::unique_ptr<Executor> executor, impl_->new_executor());
    std::unique_ptr<Executor> cascade_executor;
    if (impl_->options.overlap && executor->queues()) {
      // Its pictures are due first.
      UF_ASSIGN(cascade_executor, impl_->new_executor(/*urgent=*/true));
    }
    auto pipeline = std::make_unique<Pipeline>(impl_->networks, std::move(executor),
                                               std::move(cascade_executor), impl_->options.log);
    if (impl_->options.warm_up) pipeline->warm_up();
    Session session(
        std::make_unique<Session::Impl>(impl_->networks, std::move(pipeline), impl_->options.log));
    UF_TRY(session.restart(options));
    return session;
  });
}

EngineInfo Engine::info() const {
  const NetworkSet& networks = *impl_->networks;
  EngineInfo info;
  info.device = networks.executor->description();
  info.dtype = networks.fp8_products ? "fp8" : dtype_name(networks.compute);
  info.fp8_sums = networks.fp8_fast_sums ? "fast" : "exact";
  info.attention = networks.fp8_attention ? "fp8" : dtype_name(networks.compute);
  info.scale = networks.scale;
  info.width = networks.recipe.generator.latent_width * kPixelsPerLatent * networks.scale;
  info.height = networks.recipe.generator.latent_height * kPixelsPerLatent * networks.scale;
  info.frames_per_second = networks.recipe.frames_per_second;
  info.weight_bytes = networks.weight_bytes;
  info.random_weights = networks.random_weights;
  info.sources = networks.sources;
  return info;
}

const Recipe& Engine::recipe() const { return impl_->recipe; }

Status Engine::save_text_embedding(std::string_view prompt, const std::string& path) const {
  return guarded([&]() -> Status {
    UF_ASSIGN(const std::unique_ptr<Executor> executor, impl_->new_executor());
    return ultraflash::save_text_embedding(*impl_->networks, *executor, prompt, path,
                                           impl_->options.log);
  });
}

}  // namespace ultraflash

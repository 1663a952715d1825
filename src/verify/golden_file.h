// A golden file opened: its config, weights, inputs and expected outputs, and the comparison.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/loader.h"
#include "verify/verify.h"
#include "weights/checkpoint.h"

namespace ultraflash {

/// Everything a replay needs. Its methods throw Error(kMalformed) for what the file lacks.
class GoldenFile {
 public:
  static Result<GoldenFile> open(const std::filesystem::path& path);

  [[nodiscard]] const std::string& label() const { return all_.label(); }
  [[nodiscard]] const std::string& module() const { return module_; }

  [[nodiscard]] bool has(const std::string& name) const { return all_.find(name) != nullptr; }
  /// A tensor by its full name ("in.x.0"), as stored.
  [[nodiscard]] Tensor tensor(const std::string& name) const;
  /// The tensors whose names begin with `prefix`, without it.
  [[nodiscard]] Checkpoint part(const std::string& prefix) const;
  [[nodiscard]] Checkpoint weights() const { return part("w."); }

  [[nodiscard]] int64_t integer(const char* key) const;
  [[nodiscard]] int64_t integer_or(const char* key, int64_t fallback) const;
  [[nodiscard]] double number_or(const char* key, double fallback) const;
  [[nodiscard]] bool flag_or(const char* key, bool fallback) const;
  [[nodiscard]] std::string text_or(const char* key, const std::string& fallback) const;
  [[nodiscard]] std::vector<int64_t> integers(const char* key) const;
  [[nodiscard]] const nlohmann::json& config() const { return config_; }

 private:
  GoldenFile(RawCheckpoint raw, Checkpoint all, std::string module, nlohmann::json config)
      : raw_(std::move(raw)),
        all_(std::move(all)),
        module_(std::move(module)),
        config_(std::move(config)) {}
  [[nodiscard]] const nlohmann::json& require(const char* key) const;

  RawCheckpoint raw_;
  Checkpoint all_;
  std::string module_;
  nlohmann::json config_;
};

/// What a replay works with.
struct Replay {
  const GoldenFile& golden;
  Executor& ops;
  const VerifyOptions& options;
  VerifyReport& report;

  /// Input [1, C, F, H, W] (or [C, F, H, W]) -> [1, F, H, W, C] of the compute type.
  [[nodiscard]] Tensor latent(const std::string& name) const;
  /// Channels-last result -> [1, C, F, H, W] in host memory, f32.
  [[nodiscard]] Tensor channels_first(const Tensor& x) const;
  /// Adds a row comparing `got` (host or executor) with the recorded tensor.
  void compare(const std::string& output, const Tensor& got) const;
  /// Adds a row comparing chosen block masks.
  void compare_mask(const std::string& output, const Tensor& got) const;
  /// Adds a row for integers that must be equal.
  void compare_exact(const std::string& output, const Tensor& got) const;
  void compare_count(const std::string& output, int64_t got) const;
  /// A loader of the file's weights for this executor and type; finish with check_binding.
  [[nodiscard]] Loader loader(Binder& binder) const;
};

// One per module, in replay_*.cc.
void replay_causal_wan(const Replay& replay);
void replay_wan_bidirectional(const Replay& replay);
void replay_sparse_sr_dit(const Replay& replay);
void replay_latent_upsampler(const Replay& replay);
void replay_decoder(const Replay& replay);
void replay_wan_vae(const Replay& replay);
void replay_umt5_encoder(const Replay& replay);
void replay_tokenizer(const Replay& replay);
void replay_lora_merge(const Replay& replay);
void replay_flow_match_scheduler(const Replay& replay);

}  // namespace ultraflash

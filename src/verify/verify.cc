#include "verify/verify.h"

#include <algorithm>
#include <array>
#include <exception>

#include "core/check.h"
#include "verify/golden_file.h"

namespace ultraflash {
namespace {

struct Module {
  const char* name;
  void (*replay)(const Replay&);
};

constexpr std::array kModules = {
    Module{"causal_wan", replay_causal_wan},
    Module{"wan_bidirectional", replay_wan_bidirectional},
    Module{"sparse_sr_dit", replay_sparse_sr_dit},
    Module{"latent_upsampler_v1", replay_latent_upsampler},
    Module{"latent_upsampler_v3", replay_latent_upsampler},
    Module{"tiny_decoder", replay_decoder},
    Module{"ultra_decoder", replay_decoder},
    Module{"ultra_decoder_v3", replay_decoder},
    Module{"wan_vae", replay_wan_vae},
    Module{"umt5_encoder", replay_umt5_encoder},
    Module{"tokenizer", replay_tokenizer},
    Module{"lora_merge", replay_lora_merge},
    Module{"flow_match_scheduler", replay_flow_match_scheduler},
};

}  // namespace

bool VerifyReport::ok() const {
  return !rows.empty() &&
         std::all_of(rows.begin(), rows.end(), [](const VerifyRow& row) { return row.ok; });
}

std::vector<std::string> verifiable_modules() {
  std::vector<std::string> names;
  for (const Module& module : kModules) names.emplace_back(module.name);
  return names;
}

Result<VerifyReport> verify_file(const std::filesystem::path& path, Executor& executor,
                                 const VerifyOptions& options) {
  UF_ASSIGN(const GoldenFile golden, GoldenFile::open(path));
  const auto module = std::find_if(kModules.begin(), kModules.end(),
                                   [&](const Module& m) { return golden.module() == m.name; });
  if (module == kModules.end()) {
    return make_status(StatusCode::kUnsupported, "{}: this version cannot replay module '{}'",
                       path.string(), golden.module().substr(0, 100));
  }
  VerifyReport report;
  report.file = path.string();
  report.module = golden.module();
  try {
    module->replay({golden, executor, options, report});
  } catch (const Error& error) {
    // A golden file is outside input: what does not fit together in it is its own fault.
    if (error.status().code() == StatusCode::kInternal) {
      return make_status(StatusCode::kMalformed, "{}: {}", path.string(), error.status().message());
    }
    return error.status();
  } catch (const std::exception& error) {
    return make_status(StatusCode::kMalformed, "{}: {}", path.string(), error.what());
  }
  return report;
}

}  // namespace ultraflash

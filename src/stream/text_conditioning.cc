#include "stream/text_conditioning.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/check.h"
#include "text/prompt_cleaning.h"
#include "weights/checkpoint.h"
#include "weights/safetensors_writer.h"

namespace ultraflash {
namespace {

constexpr const char* kEmbeddingName = "prompt_embeds";

// What stands in for a text encoder that random weights leave out: normal numbers from the bytes
// of the cleaned prompt, one row per 4 bytes.
PreparedPrompt draw_embedding(const WanDitConfig& network, const std::string& cleaned) {
  PreparedPrompt prepared;
  prepared.length =
      std::clamp<int64_t>(static_cast<int64_t>(cleaned.size()) / 4 + 1, 1, network.text_len);
  prepared.embedding = Tensor::zeros(DType::kF32, {1, network.text_len, network.text_dim});
  const uint64_t seed = hash_name({cleaned.data(), cleaned.size()});
  fill_normal(make_random_stream(seed, RandomPurpose::kWeights, 0), 0,
              {prepared.embedding.mutable_data<float>(),
               static_cast<size_t>(prepared.length * network.text_dim)});
  return prepared;
}

}  // namespace

Result<PreparedPrompt> prepare_prompt(const NetworkSet& networks, std::string_view prompt,
                                      const Logger& log) {
  const WanDitConfig& network = networks.recipe.generator.network;
  UF_ASSIGN(const std::string cleaned, clean_prompt(prompt));
  if (!networks.text_encoder) {
    if (networks.random_weights) return draw_embedding(network, cleaned);
    return make_status(StatusCode::kInvalidArgument,
                       "no text encoder is loaded; give a file of text embeddings instead of a "
                       "prompt");
  }
  UF_ASSIGN(const TokenIds tokens, networks.tokenizer->encode(cleaned, network.text_len));
  if (tokens.truncated) {
    log.warning(
        fmt::format("the prompt has {} tokens, {} more than this recipe reads; its end was "
                    "dropped",
                    tokens.length + tokens.dropped_tokens, tokens.dropped_tokens));
  }
  PreparedPrompt prepared;
  prepared.ids = Tensor::of<int64_t>(tokens.ids, {1, network.text_len});
  prepared.length = tokens.length;
  return prepared;
}

Result<PreparedPrompt> load_text_embedding(const NetworkSet& networks,
                                           const std::filesystem::path& path) {
  const WanDitConfig& network = networks.recipe.generator.network;
  CheckpointOptions options;
  options.clean_names = false;
  UF_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(path, options));
  UF_ASSIGN(Tensor stored, checkpoint.tensor(kEmbeddingName));
  if (stored.rank() == 3 && stored.dim(0) == 1)
    stored = stored.reshape({stored.dim(1), stored.dim(2)});
  if (stored.rank() != 2 || stored.dim(1) != network.text_dim || stored.dim(0) < 1 ||
      stored.dim(0) > network.text_len || !dtype_is_floating(stored.dtype())) {
    return make_status(StatusCode::kMalformed,
                       "{}: {} is {}, expected floating point [1 to {}, {}]; it was made for "
                       "another text encoder",
                       path.string(), kEmbeddingName, stored.to_string(), network.text_len,
                       network.text_dim);
  }
  PreparedPrompt prepared;
  prepared.length = stored.dim(0);
  prepared.embedding = Tensor::zeros(DType::kF32, {1, network.text_len, network.text_dim});
  prepared.embedding.select(0, 0).slice(0, 0, stored.dim(0)).assign(stored.to(DType::kF32));
  return prepared;
}

Tensor embed_prompt(const NetworkSet& networks, Executor& ops, const PreparedPrompt& prompt) {
  if (prompt.embedding.defined()) return ops.to_device(prompt.embedding, networks.compute);
  UF_CHECK(networks.text_encoder.has_value(), "a prompt without text encoder");
  const std::vector<int64_t> lengths = {prompt.length};
  return networks.text_encoder->run(ops, prompt.ids, Tensor::of<int64_t>(lengths, {1}));
}

Status save_text_embedding(const NetworkSet& networks, Executor& ops, std::string_view prompt,
                           const std::filesystem::path& path, const Logger& log) {
  UF_ASSIGN(const PreparedPrompt prepared, prepare_prompt(networks, prompt, log));
  try {
    const Tensor embedding = ops.to_host(embed_prompt(networks, ops, prepared));
    const Tensor rows = embedding.select(0, 0).slice(0, 0, prepared.length).copy();
    return save_safetensors(path, {{kEmbeddingName, rows}},
                            {{"format", "ultraflash text embedding"}});
  } catch (const Error& error) {
    return error.status();
  }
}

}  // namespace ultraflash

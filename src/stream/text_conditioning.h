// TextConditioning: from prompts to the text embeddings that the transformers read.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "core/tensor.h"
#include "stream/networks.h"
#include "ultraflash/log.h"
#include "ultraflash/status.h"

namespace ultraflash {

/// A prompt made ready for the worker: checked and tokenised, not yet encoded.
struct PreparedPrompt {
  Tensor ids;          // i64 [1, text_len]; undefined when the embedding is known
  int64_t length = 0;  // tokens
  Tensor embedding;    // f32 [1, text_len, text_dim] in host memory; undefined when to be encoded
};

/// Checks and tokenises. kInvalidArgument for text that is not UTF-8 or too long. A prompt with
/// more tokens than fit is cut, which the log says. Without a text encoder (random weights) the
/// embedding is drawn from the prompt's bytes.
Result<PreparedPrompt> prepare_prompt(const NetworkSet& networks, std::string_view prompt,
                                      const Logger& log);

/// Reads a file written by save_text_embedding: kMalformed when its shape does not fit the recipe.
Result<PreparedPrompt> load_text_embedding(const NetworkSet& networks,
                                           const std::filesystem::path& path);
/// Text embeddings [1, text_len, text_dim] of a prepared prompt on the executor, in the networks'
/// type. Runs the text encoder. Throws Error.
Tensor embed_prompt(const NetworkSet& networks, Executor& ops, const PreparedPrompt& prompt);

/// Encodes and writes `prompt_embeds` [tokens, text_dim] (docs/formats.md).
Status save_text_embedding(const NetworkSet& networks, Executor& ops, std::string_view prompt,
                           const std::filesystem::path& path, const Logger& log);

}  // namespace ultraflash

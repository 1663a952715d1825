// Text embeddings that a run takes from a file instead of running the text encoder: UMT5-XXL has
// four times as many parameters as the generator that it serves.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "train/text_batches.h"
#include "weights/checkpoint.h"

namespace ultraflash {

class TextEmbeddings {
 public:
  /// Of config.init.text_embeddings: "random", or a file written by write(). Null when the field is
  /// empty and the text encoder is to run.
  static Result<std::shared_ptr<const TextEmbeddings>> open(const TrainContext& context);
  /// Runs the text encoder on `captions` and on the empty caption.
  static Status write(const TrainContext& context, const std::vector<std::string>& captions,
                      const std::filesystem::path& path);

  /// As Umt5Encoder::run(). Error(kNotFound) for a caption that the file does not have.
  [[nodiscard]] Tensor run(const TrainContext& context, const TokenBatch& tokens) const;

  /// The name of a caption's embedding in a file: a hash of its token ids.
  static std::string name_of(std::span<const int64_t> ids);

 private:
  std::optional<Checkpoint> file_;  // none: random numbers, the same for the same ids
  int64_t text_len_ = 0;
  int64_t text_dim_ = 0;
};

}  // namespace ultraflash

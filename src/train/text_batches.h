// Captions as token ids, ready for the text encoder.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "text/tokenizer.h"
#include "train/objective.h"
#include "ultraflash/status.h"

namespace ultraflash {

/// Host tensors, as Umt5Encoder::run takes them.
struct TokenBatch {
  Tensor ids;      // i64 [batch, text_len]
  Tensor lengths;  // i64 [batch]
};

struct TokenRow {
  std::vector<int64_t> ids;  // text_len of them
  int64_t length = 0;
};

class CaptionTokenizer {
 public:
  /// init.tokenizer, else the file of the recipe's shipped models.
  static Result<CaptionTokenizer> open(const TrainContext& context);

  /// Throws Error on text that is not UTF-8.
  [[nodiscard]] TokenRow encode(const std::string& caption) const;
  /// The prompt of unconditional predictions.
  [[nodiscard]] const TokenRow& empty() const { return empty_; }
  static TokenBatch batch(const std::vector<const TokenRow*>& rows);
  static TokenBatch batch(const std::vector<TokenRow>& rows);

 private:
  CaptionTokenizer(Tokenizer tokenizer, int64_t text_len)
      : tokenizer_(std::move(tokenizer)), text_len_(text_len) {
    empty_ = encode("");
  }
  Tokenizer tokenizer_;
  int64_t text_len_;
  TokenRow empty_;
};

}  // namespace ultraflash

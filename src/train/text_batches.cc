#include "train/text_batches.h"

#include <algorithm>

#include "stream/networks.h"
#include "stream/shipped_models.h"
#include "ultraflash/recipe.h"

namespace ultraflash {

Result<CaptionTokenizer> CaptionTokenizer::open(const TrainContext& context) {
  const TextSpec& text = context.recipe.text;
  std::filesystem::path path = context.config.init.tokenizer;
  if (path.empty()) {
    path = find_weights(shipped_models_folder(context.recipe), text.tokenizer_files);
  }
  if (path.empty() && context.config.init.text_embeddings == "random") {
    // Any tokenizer tells captions apart.
    UF_ASSIGN(const Recipe pocket, Recipe::find("pocket"));
    path = find_weights(shipped_models_folder(pocket.data()), pocket.data().text.tokenizer_files);
  }
  if (path.empty()) {
    return make_status(StatusCode::kNotFound,
                       "recipe '{}' ships no tokenizer; give one as init.tokenizer",
                       context.recipe.name);
  }
  UF_ASSIGN(Tokenizer tokenizer, Tokenizer::load(path, {.extra_ids = text.extra_ids}));
  if (tokenizer.vocabulary_size() > text.encoder.vocab_size) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: {} pieces, but the text encoder has rows for {}", path.string(),
                       tokenizer.vocabulary_size(), text.encoder.vocab_size);
  }
  return CaptionTokenizer(std::move(tokenizer), context.recipe.generator.network.text_len);
}

TokenRow CaptionTokenizer::encode(const std::string& caption) const {
  Result<TokenIds> ids = encode_prompt(tokenizer_, caption, text_len_);
  if (!ids.ok()) throw Error(ids.status());
  return {std::move(ids->ids), ids->length};
}

TokenBatch CaptionTokenizer::batch(const std::vector<const TokenRow*>& rows) {
  const auto count = static_cast<int64_t>(rows.size());
  const auto width = static_cast<int64_t>(rows.front()->ids.size());
  TokenBatch batch{Tensor::allocate(DType::kI64, {count, width}),
                   Tensor::allocate(DType::kI64, {count})};
  for (int64_t i = 0; i < count; ++i) {
    const TokenRow& row = *rows[static_cast<size_t>(i)];
    std::copy(row.ids.begin(), row.ids.end(), batch.ids.mutable_data<int64_t>() + i * width);
    batch.lengths.mutable_data<int64_t>()[i] = row.length;
  }
  return batch;
}

TokenBatch CaptionTokenizer::batch(const std::vector<TokenRow>& rows) {
  std::vector<const TokenRow*> pointers;
  for (const TokenRow& row : rows) pointers.push_back(&row);
  return batch(pointers);
}

}  // namespace ultraflash

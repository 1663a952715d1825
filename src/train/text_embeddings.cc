#include "train/text_embeddings.h"

#include <fmt/format.h>

#include <set>

#include "core/rng.h"
#include "ops/autograd/torch_tensor.h"
#include "train/generator.h"
#include "weights/safetensors_writer.h"

namespace ultraflash {
namespace {

std::span<const int64_t> ids_of(const TokenBatch& tokens, int64_t row) {
  const int64_t width = tokens.ids.dim(1);
  return tokens.ids.span<int64_t>().subspan(
      static_cast<size_t>(row * width),
      static_cast<size_t>(tokens.lengths.span<int64_t>()[static_cast<size_t>(row)]));
}

uint64_t key_of(std::span<const int64_t> ids) {
  return hash_name({reinterpret_cast<const char*>(ids.data()), ids.size_bytes()});
}

}  // namespace

std::string TextEmbeddings::name_of(std::span<const int64_t> ids) {
  return fmt::format("text.{:016x}", key_of(ids));
}

Result<std::shared_ptr<const TextEmbeddings>> TextEmbeddings::open(const TrainContext& context) {
  const std::string& path = context.config.init.text_embeddings;
  if (path.empty()) return std::shared_ptr<const TextEmbeddings>();
  auto result = std::make_shared<TextEmbeddings>();
  result->text_len_ = context.recipe.generator.network.text_len;
  result->text_dim_ = context.recipe.generator.network.text_dim;
  if (path != "random") {
    CheckpointOptions options;
    options.clean_names = false;
    UF_ASSIGN(result->file_, Checkpoint::open(path, options));
  }
  return std::shared_ptr<const TextEmbeddings>(std::move(result));
}

Tensor TextEmbeddings::run(const TrainContext& context, const TokenBatch& tokens) const {
  const int64_t batch = tokens.ids.dim(0);
  at::Tensor y = at::zeros({batch, text_len_, text_dim_}, at::kFloat);
  for (int64_t b = 0; b < batch; ++b) {
    const std::span<const int64_t> ids = ids_of(tokens, b);
    const auto rows = static_cast<int64_t>(ids.size());
    const at::Tensor place = y.select(0, b).narrow(0, 0, rows);
    if (!file_) {
      const Tensor numbers = Tensor::allocate(DType::kF32, {rows, text_dim_});
      fill_normal({key_of(ids), 0}, 0,
                  std::span(numbers.mutable_data<float>(), static_cast<size_t>(numbers.numel())));
      place.copy_(to_torch(numbers));
      continue;
    }
    const Result<Tensor> stored = file_->tensor(name_of(ids));
    if (!stored.ok()) throw Error(stored.status());
    if (stored->shape() != Shape({rows, text_dim_})) {
      throw_error(StatusCode::kMalformed, "{}: {} is {}, expected [{}, {}]", file_->label(),
                  name_of(ids), stored->to_string(), rows, text_dim_);
    }
    place.copy_(to_torch(*stored));
  }
  return from_torch(y.to(context.device, to_torch(context.compute)));
}

Status TextEmbeddings::write(const TrainContext& context, const std::vector<std::string>& captions,
                             const std::filesystem::path& path) {
  const at::NoGradGuard no_graph;
  UF_ASSIGN(const CaptionTokenizer tokenizer, CaptionTokenizer::open(context));
  UF_ASSIGN(const TextNetwork text, TextNetwork::open(context, context.config.init.text_encoder,
                                                      /*trainable=*/false));
  std::vector<NamedTensor> tensors;
  std::set<std::string> names;
  std::vector<std::string> all = captions;
  all.emplace_back();  // the unconditional prompt
  for (const std::string& caption : all) {
    const std::vector<TokenRow> row = {tokenizer.encode(caption)};
    const TokenBatch tokens = CaptionTokenizer::batch(row);
    const std::span<const int64_t> ids = ids_of(tokens, 0);
    if (!names.insert(name_of(ids)).second) continue;
    const at::Tensor y = to_torch(text.run(context, tokens)).select(0, 0);
    tensors.push_back({name_of(ids), from_torch(y.narrow(0, 0, static_cast<int64_t>(ids.size()))
                                                    .to(at::kCPU, at::kBFloat16)
                                                    .contiguous())});
  }
  return save_safetensors(path, tensors, {{"format", "ultraflash text embeddings"}});
}

}  // namespace ultraflash

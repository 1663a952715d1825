#include "train/encoder_check.h"

#include "train/objective.h"

namespace ultraflash {

Status require_encoder(const TrainContext& context, const std::string& init,
                       const DecoderSpec& spec) {
  if (init.empty()) return {};
  UF_ASSIGN(const InitialWeights initial, InitialWeights::open(context, init, spec.checkpoint));
  for (const std::string& name : initial.source->names()) {
    if (name.starts_with("encoder.")) return {};
  }
  return make_status(StatusCode::kNotFound,
                     "{}: a decoder without the encoder that stage '{}' needs; models are shipped "
                     "so. Name the file that the autoencoder stage wrote, or run it first",
                     initial.label, stage_name(context.config.stage));
}

}  // namespace ultraflash

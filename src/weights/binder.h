// Binder: hands a network its parameters by name and shape, and says at the end, in one message,
// all that did not fit.
//
//   Binder binder(source, "wan.safetensors");
//   network.bind(binder.scoped("blocks.0."));   // network calls binder.parameter("ffn.0.weight",
//   ...) UF_TRY(binder.finish());
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"
#include "ultraflash/status.h"
#include "weights/parameter_source.h"

namespace ultraflash {

/// A handle: copies and scoped() binders share one record of what was asked for. Not thread-safe.
class Binder {
 public:
  /// `source` must outlive the binder. `label` names it in messages: the file, as the user knows
  /// it.
  Binder(ParameterSource& source, std::string label);

  /// A binder whose names start with this one's prefix and then `prefix` ("blocks.3.").
  [[nodiscard]] Binder scoped(std::string_view prefix) const;

  /// The parameter `name` (below this binder's prefix) with exactly `shape`. A source that does not
  /// have it so is not this function's failure: it returns an undefined tensor, and finish()
  /// reports. Throws Error(kInternal) when one name is asked for twice.
  Tensor parameter(std::string_view name, const Shape& shape, const ParameterInit& init);
  /// As parameter(), but its absence is fine; a tensor of another shape is still an error. Random
  /// sources always have it.
  Tensor optional_parameter(std::string_view name, const Shape& shape, const ParameterInit& init);

  /// Tensors whose names start with `prefix` may stay unused: the encoder when only the decoder is
  /// wanted. The prefix is a full one, scopes do not apply.
  void ignore_unused(std::string prefix);
  /// The likely cause, added to the message of finish(): "this looks like the 14B model".
  void set_hint(std::string hint);

  /// Ok when every parameter was there in its shape and every tensor of the source was used.
  /// Otherwise kMalformed with one sentence that names the label, how many tensors are missing, of
  /// another shape and unexpected, the first few of each, and the hint. An error that is not about
  /// names and shapes (kUnsupported element type, kOutOfMemory) comes first and alone.
  [[nodiscard]] Status finish() const;

  /// Everything asked for so far, with full names, in order.
  [[nodiscard]] const std::vector<ParameterSpec>& specs() const;

 private:
  struct Record;
  Binder(std::shared_ptr<Record> record, std::string prefix);
  Tensor bind(std::string_view name, const Shape& shape, const ParameterInit& init, bool optional);

  std::shared_ptr<Record> record_;
  std::string prefix_;
};

}  // namespace ultraflash

// Tensor names: what is accepted, and what training wrappers add to them.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "ultraflash/status.h"

namespace ultraflash {

constexpr size_t kMaxTensorNameBytes = 1024;

/// Why `name` cannot be the name of a tensor, as a part of a sentence ("is empty"); null when it
/// can. Names are valid UTF-8 without control characters, 1 to kMaxTensorNameBytes bytes long.
const char* tensor_name_problem(std::string_view name);

/// Removes what training wrappers put into the names of one state dict:
/// - `_fsdp_wrapped_module.`, `_checkpoint_wrapped_module.` and `_orig_mod.` wherever they stand as
///   a whole component;
/// - one leading `module.`, then one leading `model.`, each only when every name has it. The heads
///   that GAN training adds beside the model (`_cls_pred_branch.`, `_register_tokens.`,
///   `_gan_ca_blocks.`) do not count for "every".
/// Names without these parts come out untouched.
void clean_tensor_names(std::span<std::string* const> names);

}  // namespace ultraflash

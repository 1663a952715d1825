// Captions of the pocket world: an English grammar with synonyms and free order, and its reverse.
//
//   caption    = [opening] objects [background] | background "," objects
//   objects    = object | object joint object
//   object     = [article] {size | texture | colour} shape ["with" pattern] [motion]
//   background = preposition [article] ["plain"] [gradient] [starry] ground place
//
// in lower case, with a capital at the start, or in capitals; with and without articles and a final
// full stop. tools/make_pocket_tokenizer.py trains the tokenizer on the same words.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "train/world/scene.h"
#include "ultraflash/status.h"

namespace ultraflash::world {

/// kFull names everything a caption can name, the rest of the wording being free; it is what
/// evaluation uses. kAny leaves out any attributes, shape and colour least often; three in ten of
/// them are full too.
enum class CaptionDetail : uint8_t { kAny, kFull };

/// One of the ways to say what a scene shows: the same for the same (seed, index, variant).
std::string caption(const Scene& scene, uint64_t seed, uint64_t index, uint32_t variant,
                    CaptionDetail detail = CaptionDetail::kAny);

/// What a text says of an object; nothing for what it leaves open.
struct NamedObject {
  std::optional<Shape> shape;
  std::optional<Colour> colour;
  std::optional<Texture> texture;
  std::optional<Size> size;
  std::optional<Motion> motion;
  std::optional<Speed> speed;
  std::optional<bool> spinning;

  bool operator==(const NamedObject&) const = default;
};

struct NamedScene {
  std::vector<NamedObject> objects;  // one or two; the second is in front
  std::optional<Ground> ground;
  std::optional<bool> gradient;
  std::optional<bool> starry;

  bool operator==(const NamedScene&) const = default;
};

/// Everything that is true of a scene and that words can say.
NamedScene name_scene(const Scene& scene);

/// What a caption asks for. Words that are not of the grammar are passed over; kInvalidArgument
/// when it names no object, or more than two.
Result<NamedScene> parse_caption(std::string_view text);

}  // namespace ultraflash::world

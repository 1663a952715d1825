// The words of the captions: what the grammar writes and the parser reads. Internal to world.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace ultraflash::world {

/// What a phrase can mean.
enum class Meaning : uint8_t {
  kShape,
  kColour,
  kTexture,  // before the shape
  kPattern,  // after it: "with stripes"
  kSize,
  kMotion,
  kSpeed,
  kSpinning,
  kGround,
  kGradient,
  kStarry,
  kThing,    // "object": a shape that is not named
  kInFront,  // "in front of"
};

/// `value` is the index in the enumeration of what is meant. The grammar draws evenly from the
/// phrases of one value, so common ones are listed more than once.
struct Phrase {
  Meaning meaning;
  uint8_t value;
  std::string_view text;
};

/// Motions have two forms: "moving", "moves".
struct Verb {
  Meaning meaning;
  uint8_t value;
  std::string_view participle;
  std::string_view finite;
};

/// Everything but verbs.
std::span<const Phrase> phrases();
/// kMotion still, circling and bouncing, and kSpinning.
std::span<const Verb> verbs();
/// Those that go with a direction.
std::span<const Verb> moves();

}  // namespace ultraflash::world

#include "train/world/caption.h"

#include <algorithm>
#include <utility>

#include "train/world/vocabulary.h"

namespace ultraflash::world {
namespace {

constexpr std::array<std::string_view, 12> kOpenings = {
    "a video of", "an animation of", "a clip of", "a scene with", "a scene of", "there is",
    "we see",     "the video shows", "this is",   "look at",      "footage of", "animated video:"};
// What follows these is a noun, or a sentence of its own.
constexpr std::array<std::string_view, 4> kNounJoints = {"and", "with", "together with", "and"};
constexpr std::array<std::string_view, 3> kClauseJoints = {"while", "as", "and"};
constexpr std::array<std::string_view, 8> kPrepositions = {
    "on", "on", "on", "against", "over", "in front of", "across", "in"};
constexpr std::array<std::string_view, 5> kPlaces = {"background", "background", "background",
                                                     "backdrop", "scene"};
constexpr std::array<std::string_view, 2> kSkies = {"sky", "night sky"};

// How an object's motion may be put.
enum class Form : uint8_t { kNoun, kSentence };

class Grammar {
 public:
  Grammar(const Scene& scene, Draw draw, CaptionDetail detail) : scene_(scene), draw_(draw) {
    full_ = detail == CaptionDetail::kFull || draw_.chance(0.3);
    bare_ = draw_.chance(0.2);
  }

  std::string caption() {
    const bool opened = draw_.chance(0.2);
    std::string text = scene_.object_count == 2 ? two_objects(opened) : one_object(opened);
    const bool where = full_ || draw_.chance(0.75);
    if (where && !opened && draw_.chance(0.4)) {
      text = background() + ", " + text;
    } else if (where) {
      text += " " + background();
    }
    if (opened) text = std::string(draw_.pick(kOpenings)) + " " + text;
    if (draw_.chance(0.4)) text += draw_.chance(0.1) ? "!" : ".";
    const double letters = draw_.uniform(0.0, 1.0);
    if (letters < 0.3) text[0] = upper(text[0]);
    if (letters >= 0.3 && letters < 0.36) {
      for (char& c : text) c = upper(c);
    }
    return text;
  }

 private:
  static char upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; }

  // True for what the caption is to mention.
  bool mention(double probability) { return full_ || draw_.chance(probability); }

  std::string_view say(Meaning meaning, uint8_t value) {
    int64_t count = 0;
    for (const Phrase& p : phrases()) count += p.meaning == meaning && p.value == value ? 1 : 0;
    int64_t chosen = draw_.below(count);
    for (const Phrase& p : phrases()) {
      if (p.meaning == meaning && p.value == value && chosen-- == 0) return p.text;
    }
    return {};
  }
  template <typename Enum>
  std::string_view say(Meaning meaning, Enum value) {
    return say(meaning, static_cast<uint8_t>(value));
  }

  const Verb& verb(Meaning meaning, uint8_t value) {
    int64_t count = 0;
    for (const Verb& v : verbs()) count += v.meaning == meaning && v.value == value ? 1 : 0;
    int64_t chosen = draw_.below(count);
    for (const Verb& v : verbs()) {
      if (v.meaning == meaning && v.value == value && chosen-- == 0) return v;
    }
    return verbs().front();
  }

  std::string article(const std::string& words) {
    if (bare_) return words;
    if (draw_.chance(0.1)) return (draw_.chance(0.5) ? "the " : "one ") + words;
    const bool vowel = std::string_view("aeiou").find(words[0]) != std::string_view::npos &&
                       !words.starts_with("uniform");
    return (vowel ? "an " : "a ") + words;
  }

  // Participle and finite form of what the object does; empty when it is not mentioned.
  std::pair<std::string, std::string> motion(const ObjectTraits& traits) {
    std::pair<std::string, std::string> forms;
    if (mention(0.75)) {
      const bool directed = traits.motion >= Motion::kLeft && traits.motion <= Motion::kDown;
      const Verb& v =
          directed ? moves()[static_cast<size_t>(draw_.below(static_cast<int64_t>(moves().size())))]
                   : verb(Meaning::kMotion, static_cast<uint8_t>(traits.motion));
      std::string tail;
      if (directed) tail = " " + std::string(say(Meaning::kMotion, traits.motion));
      if (traits.motion != Motion::kStill && mention(0.5)) {
        const std::string speed = " " + std::string(say(Meaning::kSpeed, traits.speed));
        tail = draw_.chance(0.5) ? tail + speed : speed + tail;
      }
      forms = {std::string(v.participle) + tail, std::string(v.finite) + tail};
    }
    if (traits.spinning && mention(0.6)) {
      const Verb& v = verb(Meaning::kSpinning, 1);
      if (forms.first.empty()) return {std::string(v.participle), std::string(v.finite)};
      forms.first += (draw_.chance(0.5) ? " and " : " while ") + std::string(v.participle);
      forms.second += draw_.chance(0.5) ? " and " + std::string(v.finite)
                                        : " while " + std::string(v.participle);
    }
    return forms;
  }

  std::string object(const ObjectTraits& traits, Form form) {
    std::vector<std::string_view> words;
    if (mention(0.5)) words.push_back(say(Meaning::kSize, traits.size));
    std::string pattern;
    if (mention(0.5)) {
      if (draw_.chance(0.2)) {
        pattern = " with " + std::string(say(Meaning::kPattern, traits.texture));
      } else {
        words.push_back(say(Meaning::kTexture, traits.texture));
      }
    }
    if (mention(0.9)) words.push_back(say(Meaning::kColour, traits.colour));
    if (words.size() > 1 && draw_.chance(0.2)) {
      std::swap(words[0], words[static_cast<size_t>(draw_.below(std::ssize(words)))]);
    }
    const bool commas = draw_.chance(0.1);
    std::string text;
    for (const std::string_view word : words) {
      if (!text.empty()) text += commas ? ", " : " ";
      text += word;
    }
    if (!text.empty()) text += ' ';
    text += mention(0.93) ? say(Meaning::kShape, traits.shape) : say(Meaning::kThing, 0);
    text = article(text) + pattern;
    const auto [participle, finite] = motion(traits);
    if (participle.empty()) return text;
    if (form == Form::kSentence) {
      // "is spinning", but not "is is still".
      return text + (draw_.chance(0.5) ? " " + finite : " is " + participle);
    }
    return text + (draw_.chance(0.75) ? " " + participle : " that " + finite);
  }

  Form any_form(bool opened) { return opened || draw_.chance(0.5) ? Form::kNoun : Form::kSentence; }

  std::string one_object(bool opened) { return object(scene_.objects[0].traits, any_form(opened)); }

  std::string two_objects(bool opened) {
    const ObjectTraits& back = scene_.objects[0].traits;
    const ObjectTraits& front = scene_.objects[1].traits;
    const double kind = draw_.uniform(0.0, 1.0);
    if (kind < 0.1) {
      const std::string first = object(front, Form::kNoun);
      return first + " in front of " + object(back, Form::kNoun);
    }
    if (kind < 0.2) {
      const std::string first = object(back, Form::kNoun);
      return first + " behind " + object(front, Form::kNoun);
    }
    if (kind < 0.6 && !opened) {
      const std::string first = object(back, Form::kSentence);
      const std::string joint(draw_.pick(kClauseJoints));
      return first + " " + joint + " " + object(front, Form::kSentence);
    }
    const std::string first = object(back, Form::kNoun);
    const std::string joint(draw_.pick(kNounJoints));
    return first + " " + joint + " " + object(front, Form::kNoun);
  }

  std::string background() {
    std::string words;
    const bool gradient = scene_.gradient && mention(0.5);
    const bool starry = scene_.starry && mention(0.7);
    if (!scene_.gradient && !scene_.starry && draw_.chance(0.2)) words += "plain ";
    if (gradient) words += std::string(say(Meaning::kGradient, 1)) + " ";
    if (starry) words += std::string(say(Meaning::kStarry, 1)) + " ";
    words += std::string(say(Meaning::kGround, scene_.ground)) + " ";
    const bool dark = scene_.ground == Ground::kBlack || scene_.ground == Ground::kNavy;
    words += dark && draw_.chance(0.3) ? draw_.pick(kSkies) : draw_.pick(kPlaces);
    const std::string preposition(draw_.pick(kPrepositions));
    return preposition + " " + article(words);
  }

  const Scene& scene_;
  Draw draw_;
  bool full_;
  bool bare_;
};

}  // namespace

std::string caption(const Scene& scene, uint64_t seed, uint64_t index, uint32_t variant,
                    CaptionDetail detail) {
  // The stream has room for 8 bits of the variant; the rest goes into the seed.
  const RandomStream stream =
      make_random_stream(seed ^ (static_cast<uint64_t>(variant >> 8) << 40),
                         RandomPurpose::kPocketCaption, index, variant & 0xffU);
  return Grammar(scene, Draw(stream), detail).caption();
}

NamedScene name_scene(const Scene& scene) {
  NamedScene named;
  for (int i = 0; i < scene.object_count; ++i) {
    const ObjectTraits& t = scene.objects[static_cast<size_t>(i)].traits;
    NamedObject object{t.shape, t.colour, t.texture, t.size, t.motion, std::nullopt, t.spinning};
    if (t.motion != Motion::kStill) object.speed = t.speed;
    named.objects.push_back(object);
  }
  named.ground = scene.ground;
  named.gradient = scene.gradient;
  named.starry = scene.starry;
  return named;
}

}  // namespace ultraflash::world

#include <algorithm>
#include <string>
#include <vector>

#include "core/check.h"
#include "train/world/caption.h"
#include "train/world/vocabulary.h"

namespace ultraflash::world {
namespace {

constexpr size_t kMaxCaptionBytes = 4096;

struct Entry {
  std::vector<std::string> words;
  Meaning meaning;
  uint8_t value;
};

// Letters in lower case; hyphens belong to words, everything else separates them.
std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words(1);
  for (const char c : text) {
    const char lower = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    if ((lower >= 'a' && lower <= 'z') || lower == '-') {
      words.back() += lower;
    } else if (!words.back().empty()) {
      words.emplace_back();
    }
  }
  if (words.back().empty()) words.pop_back();
  return words;
}

// All phrases of the grammar, and more that people use for the same, longest first.
const std::vector<Entry>& entries() {
  static const std::vector<Entry> all = [] {
    std::vector<Entry> list;
    const auto add = [&list](Meaning meaning, uint8_t value, std::string_view text) {
      list.push_back({words_of(text), meaning, value});
    };
    for (const Phrase& p : phrases()) add(p.meaning, p.value, p.text);
    for (const Verb& v : verbs()) {
      add(v.meaning, v.value, v.participle);
      add(v.meaning, v.value, v.finite);
    }
    add(Meaning::kSpeed, static_cast<uint8_t>(Speed::kSlow), "slow");
    add(Meaning::kStarry, 1, "with stars");
    add(Meaning::kGround, static_cast<uint8_t>(Ground::kGrey), "dark gray");
    add(Meaning::kMotion, static_cast<uint8_t>(Motion::kBouncing), "bouncing up and down");
    add(Meaning::kMotion, static_cast<uint8_t>(Motion::kBouncing), "bounces up and down");
    std::stable_sort(list.begin(), list.end(), [](const Entry& a, const Entry& b) {
      return a.words.size() > b.words.size();
    });
    return list;
  }();
  return all;
}

const Entry* match(const std::vector<std::string>& words, size_t position) {
  for (const Entry& entry : entries()) {
    if (position + entry.words.size() > words.size()) continue;
    if (std::equal(entry.words.begin(), entry.words.end(),
                   words.begin() + static_cast<std::ptrdiff_t>(position))) {
      return &entry;
    }
  }
  return nullptr;
}

class Parser {
 public:
  void take(const Entry& entry) {
    const uint8_t v = entry.value;
    switch (entry.meaning) {
      case Meaning::kShape:
        waiting_.shape = static_cast<Shape>(v);
        finish_object();
        break;
      case Meaning::kThing:
        finish_object();
        break;
      case Meaning::kColour:
        describe().colour = static_cast<Colour>(v);
        break;
      case Meaning::kTexture:
        describe().texture = static_cast<Texture>(v);
        break;
      case Meaning::kSize:
        describe().size = static_cast<Size>(v);
        break;
      case Meaning::kPattern:
        latest().texture = static_cast<Texture>(v);
        break;
      case Meaning::kMotion:
        latest().motion = static_cast<Motion>(v);
        break;
      case Meaning::kSpeed:
        latest().speed = static_cast<Speed>(v);
        break;
      case Meaning::kSpinning:
        latest().spinning = true;
        break;
      case Meaning::kGround:
        scene_.ground = static_cast<Ground>(v);
        // Adjectives since the last object were the background's: "a plain black sky".
        waiting_ = {};
        described_ = false;
        in_front_ = false;
        break;
      case Meaning::kGradient:
        scene_.gradient = true;
        break;
      case Meaning::kStarry:
        scene_.starry = true;
        break;
      case Meaning::kInFront:
        in_front_ = !scene_.objects.empty();
        break;
    }
  }

  Result<NamedScene> finish() {
    if (scene_.objects.empty()) {
      return make_status(StatusCode::kInvalidArgument, "the caption names no shape or object");
    }
    if (scene_.objects.size() > 2) {
      return make_status(StatusCode::kInvalidArgument,
                         "the caption names {} objects; the pocket world has one or two",
                         scene_.objects.size());
    }
    if (swap_) std::swap(scene_.objects[0], scene_.objects[1]);
    return scene_;
  }

 private:
  // Adjectives come before the shape.
  NamedObject& describe() {
    described_ = true;
    return waiting_;
  }
  // Motions follow the object they belong to, unless one is being described.
  NamedObject& latest() {
    return scene_.objects.empty() || described_ ? describe() : scene_.objects.back();
  }
  void finish_object() {
    scene_.objects.push_back(waiting_);
    waiting_ = {};
    described_ = false;
    swap_ = swap_ || (in_front_ && scene_.objects.size() == 2);
    in_front_ = false;
  }

  NamedScene scene_;
  NamedObject waiting_;
  bool described_ = false;
  bool in_front_ = false;
  bool swap_ = false;  // the first object named is the one in front
};

}  // namespace

Result<NamedScene> parse_caption(std::string_view text) {
  if (text.size() > kMaxCaptionBytes) {
    return make_status(StatusCode::kInvalidArgument, "the caption has {} bytes; at most {}",
                       text.size(), kMaxCaptionBytes);
  }
  const std::vector<std::string> words = words_of(text);
  Parser parser;
  for (size_t i = 0; i < words.size();) {
    const Entry* entry = match(words, i);
    if (entry != nullptr) parser.take(*entry);
    i += entry != nullptr ? entry->words.size() : 1;
  }
  return parser.finish();
}

}  // namespace ultraflash::world

#include "text/unigram.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>

#include "core/check.h"
#include "text/code_points.h"

namespace ultraflash {
namespace {

/// What a character without a piece costs beyond the worst piece.
constexpr double kUnknownPenalty = 10.0;

}  // namespace

Trie::Trie(std::span<const std::string_view> strings) {
  std::vector<int32_t> order(strings.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return strings[static_cast<size_t>(a)] < strings[static_cast<size_t>(b)];
  });
  // Level by level, so that the children of a node are made together. Each node of a level stands
  // for the range of strings that begin with its path.
  struct Range {
    size_t begin, end;
  };
  const auto string_at = [&](size_t i) { return strings[static_cast<size_t>(order[i])]; };
  std::vector<Range> level{{0, order.size()}};
  std::vector<Range> next_level;
  for (size_t depth = 0; !level.empty(); ++depth) {
    const size_t first_node = nodes_.size() - level.size();
    for (size_t n = 0; n < level.size(); ++n) {
      auto [begin, end] = level[n];
      if (begin < end && string_at(begin).size() == depth) {
        nodes_[first_node + n].id = order[begin++];
        UF_CHECK(begin == end || string_at(begin).size() > depth, "strings {} and {} should differ",
                 order[begin - 1], order[begin]);
      }
      nodes_[first_node + n].first_child = static_cast<int32_t>(nodes_.size());
      while (begin < end) {
        const char byte = string_at(begin)[depth];
        size_t same = begin + 1;
        while (same < end && string_at(same)[depth] == byte) ++same;
        nodes_.push_back({.byte = static_cast<uint8_t>(byte)});
        next_level.push_back({begin, same});
        ++nodes_[first_node + n].child_count;
        begin = same;
      }
    }
    level.swap(next_level);
    next_level.clear();
  }
}

int32_t Trie::child(int32_t node, uint8_t byte) const {
  const Node& parent = nodes_[static_cast<size_t>(node)];
  const auto begin = nodes_.begin() + parent.first_child;
  const auto end = begin + parent.child_count;
  const auto found = std::lower_bound(
      begin, end, byte, [](const Node& child, uint8_t value) { return child.byte < value; });
  return found != end && found->byte == byte ? static_cast<int32_t>(found - nodes_.begin()) : kNone;
}

int32_t Trie::find(std::string_view text) const {
  int32_t node = 0;
  for (const char c : text) {
    node = child(node, static_cast<uint8_t>(c));
    if (node == kNone) return kNone;
  }
  return id(node);
}

int32_t Trie::find_longest_prefix(std::string_view text) const {
  int32_t node = 0;
  int32_t longest = kNone;
  for (const char c : text) {
    node = child(node, static_cast<uint8_t>(c));
    if (node == kNone) break;
    if (id(node) != kNone) longest = id(node);
  }
  return longest;
}

Unigram::Unigram(std::span<const std::string_view> texts, std::vector<double> scores,
                 int32_t unknown_id)
    : trie_(texts), scores_(std::move(scores)), unknown_id_(unknown_id) {
  UF_CHECK(!scores_.empty() && scores_.size() == texts.size(), "{} scores for {} pieces",
           scores_.size(), texts.size());
  unknown_score_ = *std::min_element(scores_.begin(), scores_.end()) - kUnknownPenalty;
}

void Unigram::append_ids(std::string_view word, std::vector<int64_t>& ids) const {
  /// The best way to reach an offset of the word.
  struct Best {
    double score = 0;
    size_t begin = 0;  // where its last piece starts
    int32_t id = Trie::kNone;
  };
  std::vector<Best> best(word.size() + 1);
  const auto offer = [&](size_t begin, size_t end, int32_t id, double score) {
    const double total = score + best[begin].score;
    if (best[end].id == Trie::kNone || total > best[end].score) best[end] = {total, begin, id};
  };
  for (size_t begin = 0; begin < word.size();) {
    size_t character_end = begin;
    next_code_point(word, character_end);
    bool character_known = false;
    int32_t node = 0;
    for (size_t end = begin; end < word.size();) {
      node = trie_.child(node, static_cast<uint8_t>(word[end]));
      if (node == Trie::kNone) break;
      ++end;
      const int32_t id = trie_.id(node);
      if (id == Trie::kNone) continue;
      offer(begin, end, id, scores_[static_cast<size_t>(id)]);
      character_known = character_known || end == character_end;
    }
    if (!character_known) offer(begin, character_end, unknown_id_, unknown_score_);
    begin = character_end;
  }

  const size_t first = ids.size();
  for (size_t end = word.size(); end > 0;) {
    size_t begin = best[end].begin;
    int32_t id = best[end].id;
    if (id == unknown_id_) {
      while (begin > 0 && best[begin].id == unknown_id_) begin = best[begin].begin;
      // Unknown characters side by side may spell a piece that lost to them.
      const int32_t spelled = trie_.find(word.substr(begin, end - begin));
      if (spelled != Trie::kNone) id = spelled;
    }
    ids.push_back(id);
    end = begin;
  }
  std::reverse(ids.begin() + static_cast<std::ptrdiff_t>(first), ids.end());
}

}  // namespace ultraflash

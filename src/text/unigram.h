// The unigram language model of a tokenizer: splits a word into the pieces of the highest total
// score.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace ultraflash {

/// A set of byte strings, found by prefix. Immutable.
class Trie {
 public:
  Trie() = default;
  /// The id of a string is its index. Strings are neither empty nor there twice.
  explicit Trie(std::span<const std::string_view> strings);

  static constexpr int32_t kNone = -1;

  /// Node after `byte` at `node` (0 is the root); kNone when no string goes on like that.
  [[nodiscard]] int32_t child(int32_t node, uint8_t byte) const;
  /// Id of the string that ends at `node`, or kNone.
  [[nodiscard]] int32_t id(int32_t node) const { return nodes_[static_cast<size_t>(node)].id; }

  /// Id of `text`, or kNone.
  [[nodiscard]] int32_t find(std::string_view text) const;
  /// Id of the longest string that `text` begins with, or kNone.
  [[nodiscard]] int32_t find_longest_prefix(std::string_view text) const;

 private:
  struct Node {
    int32_t first_child = 0;  // children are neighbours, sorted by byte
    int32_t id = kNone;
    uint16_t child_count = 0;
    uint8_t byte = 0;
  };
  std::vector<Node> nodes_{Node{}};
};

/// Pieces and their scores, and the search. Same results as the Unigram model of the tokenizers
/// library (0.22): scores are added as double, the first of equal sums wins, a character without a
/// piece of its own costs ten less than the worst score, and neighbouring unknown characters become
/// one unknown token. There is no byte fallback.
class Unigram {
 public:
  Unigram() = default;
  /// One score for each text.
  Unigram(std::span<const std::string_view> texts, std::vector<double> scores, int32_t unknown_id);

  /// Appends the ids of `word`, which is valid UTF-8.
  void append_ids(std::string_view word, std::vector<int64_t>& ids) const;

 private:
  Trie trie_;
  std::vector<double> scores_;
  double unknown_score_ = 0;
  int32_t unknown_id_ = 0;
};

}  // namespace ultraflash

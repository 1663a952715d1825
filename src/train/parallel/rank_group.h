// RankGroup: the processes of one host that train together, and the memory they share.
//
// A launcher (launcher.h) makes the memory, an anonymous file that goes away with the last process,
// and starts the ranks with its descriptor and their number in the environment. What passes through
// it is small: decisions, the clock of rank 0, checksums, the identity of an NCCL communicator; and
// all gradients when ranks train on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {

inline constexpr int64_t kMaxRanks = 64;

class RankGroup {
 public:
  /// Memory for `ranks` processes, for the launcher.
  static Result<std::unique_ptr<RankGroup>> create(int64_t ranks);
  /// The group that this process was started in; a group of one when it was started by hand.
  static Result<std::shared_ptr<RankGroup>> from_environment();
  /// True when a launcher started this process.
  static bool in_environment();

  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;
  ~RankGroup();

  [[nodiscard]] int64_t rank() const { return rank_; }
  [[nodiscard]] int64_t size() const { return size_; }
  [[nodiscard]] bool leads() const { return rank_ == 0; }

  // Every rank calls these in the same order, from one thread. They throw Error(kCancelled) when
  // another rank has failed.

  /// `mine` of every rank, in the order of ranks: size() * mine.size() values.
  std::vector<double> gather(std::span<const double> mine);
  std::vector<uint64_t> gather(std::span<const uint64_t> mine);
  /// Copies what rank 0 has in `bytes` to every rank.
  void share(std::span<std::byte> bytes);
  /// Sums over ranks, in place, always in the order of ranks.
  void sum(std::span<float> values);
  void sum(std::span<double> values);
  /// Returns when every rank is here.
  void meet();

  // For the launcher, and for a rank that fails.

  /// Entry of the environment ("NAME=value") that makes a process `rank` of this group. The
  /// descriptor in it is inherited.
  [[nodiscard]] std::string environment_of(int64_t rank) const;
  /// Tells the others that this rank cannot go on, and why. The first message stays.
  void fail(const Status& status);
  /// Ends the waiting of every rank.
  void give_up();
  struct Failure {
    int64_t rank = 0;
    Status status;
  };
  [[nodiscard]] std::optional<Failure> failure() const;

 private:
  struct Shared;
  RankGroup(int descriptor, Shared* shared, size_t bytes, int64_t rank, int64_t size)
      : descriptor_(descriptor), shared_(shared), bytes_(bytes), rank_(rank), size_(size) {}
  static Result<std::unique_ptr<RankGroup>> map(int descriptor, int64_t rank, int64_t size);
  [[nodiscard]] std::byte* slot(int64_t rank) const;
  void publish(std::span<const std::byte> mine);
  template <typename T>
  std::vector<T> gather_values(std::span<const T> mine);
  template <typename T>
  void sum_values(std::span<T> values);

  int descriptor_;  // -1: a group of one, without memory
  Shared* shared_;
  size_t bytes_;
  int64_t rank_;
  int64_t size_;
  uint32_t turn_ = 0;  // which of its two slots a rank writes next
};

}  // namespace ultraflash

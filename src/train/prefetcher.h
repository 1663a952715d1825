// Prefetcher: items made ahead by worker threads and handed out in order. An item depends on its
// index alone, so a run that starts again at an index gets the same items.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace ultraflash {

template <typename Item>
class Prefetcher {
 public:
  /// `make(index)` runs on several threads at once. At most `depth` items exist ahead of next().
  Prefetcher(std::function<Item(int64_t)> make, int64_t first, int64_t workers, int64_t depth)
      : make_(std::move(make)), next_given_(first), next_made_(first), depth_(depth) {
    for (int64_t i = 0; i < workers; ++i) threads_.emplace_back([this] { work(); });
  }
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;
  ~Prefetcher() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    room_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  /// The next item; waits for it. Rethrows what make() threw for it.
  Item next() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return made_.contains(next_given_); });
    auto node = made_.extract(next_given_);
    ++next_given_;
    lock.unlock();
    room_.notify_all();
    if (node.mapped().error) std::rethrow_exception(node.mapped().error);
    return std::move(node.mapped().item);
  }

 private:
  struct Made {
    Item item{};
    std::exception_ptr error;
  };

  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      room_.wait(lock, [&] { return stopping_ || next_made_ < next_given_ + depth_; });
      if (stopping_) return;
      const int64_t index = next_made_++;
      lock.unlock();
      Made made;
      try {
        made.item = make_(index);
      } catch (...) {
        made.error = std::current_exception();
      }
      lock.lock();
      made_.emplace(index, std::move(made));
      ready_.notify_all();
    }
  }

  std::function<Item(int64_t)> make_;
  std::mutex mutex_;
  std::condition_variable ready_, room_;
  std::map<int64_t, Made> made_;
  int64_t next_given_;
  int64_t next_made_;
  int64_t depth_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace ultraflash

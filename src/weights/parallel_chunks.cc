#include "weights/parallel_chunks.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace ultraflash {

void parallel_chunks(int64_t count, int64_t grain,
                     const std::function<void(int64_t begin, int64_t end)>& work) {
  if (count <= 0) return;
  const int64_t parts = (count + grain - 1) / grain;
  const int64_t threads =
      std::min<int64_t>(parts, std::max<int64_t>(1, std::thread::hardware_concurrency()));
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto run = [&] {
    try {
      for (int64_t part = next++; part < parts; part = next++) {
        work(part * grain, std::min(count, (part + 1) * grain));
      }
    } catch (...) {
      next = parts;
      const std::lock_guard lock(mutex);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(threads));
  for (int64_t i = 1; i < threads; ++i) {
    try {
      others.emplace_back(run);
    } catch (const std::exception&) {
      break;  // no more threads to be had, or no memory for them: those that run share the rest
    }
  }
  run();
  for (std::thread& thread : others) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace ultraflash

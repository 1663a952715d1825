#include <span>
#include <utility>

#include "train/parallel/collective.h"

namespace ultraflash {
namespace {

class HostCollective final : public Collective {
 public:
  explicit HostCollective(std::shared_ptr<RankGroup> group) : group_(std::move(group)) {}

  void sum(float* values, int64_t count, void* /*stream*/) override {
    group_->sum(std::span(values, static_cast<size_t>(count)));
  }
  [[nodiscard]] std::string description() const override { return "shared memory"; }

 private:
  std::shared_ptr<RankGroup> group_;
};

}  // namespace

std::unique_ptr<Collective> make_host_collective(std::shared_ptr<RankGroup> group) {
  return std::make_unique<HostCollective>(std::move(group));
}

}  // namespace ultraflash

#include "weights/checkpoint.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "core/check.h"
#include "core/exceptions.h"
#include "core/utf8.h"
#include "weights/names.h"

namespace ultraflash {
namespace {

// The discriminators of adversarial training never stand for the generator.
bool is_critic(const std::string& key) { return key.starts_with("critic"); }

std::string listed(const std::vector<std::string>& keys) {
  constexpr size_t kShown = 8;
  std::vector<std::string> shown;
  for (size_t i = 0; i < std::min(keys.size(), kShown); ++i)
    shown.push_back(printable(keys[i], 60));
  return fmt::format("{}{}", fmt::join(shown, ", "), keys.size() > kShown ? ", ..." : "");
}

}  // namespace

struct Checkpoint::State {
  CheckpointFormat format = CheckpointFormat::kSafetensors;
  std::string label;
  std::vector<std::filesystem::path> files;
  std::string wrapper;
  std::vector<std::string> wrappers;
  std::vector<TensorEntry> entries;
  std::unordered_map<std::string_view, size_t> by_name;  // keys are the entries' names
  CheckpointMetadata metadata;
  std::vector<CheckpointExtra> extras;

  Status choose(std::vector<TensorGroup> groups, const CheckpointOptions& options);
  Status apply_prefix(const std::string& prefix);
  Status index_names(bool clean);
};

// Fills `wrapper` and `entries`.
Status Checkpoint::State::choose(std::vector<TensorGroup> groups,
                                 const CheckpointOptions& options) {
  for (const TensorGroup& group : groups) {
    if (!group.key.empty()) wrappers.push_back(group.key);
  }
  const auto has = [&](const std::string& key) {
    return std::find(wrappers.begin(), wrappers.end(), key) != wrappers.end();
  };
  if (!options.wrapper.empty()) {
    if (!has(options.wrapper)) {
      return make_status(StatusCode::kNotFound, "{}: has no key \"{}\" with tensors; it has {}",
                         label, printable(options.wrapper, 60),
                         wrappers.empty() ? "none" : listed(wrappers));
    }
    wrapper = options.wrapper;
  } else {
    const auto found =
        std::find_if(options.wrapper_order.begin(), options.wrapper_order.end(), has);
    if (found != options.wrapper_order.end()) wrapper = *found;
  }
  for (TensorGroup& group : groups) {
    if (!wrapper.empty() && group.key != wrapper) continue;
    if (wrapper.empty() && is_critic(group.key)) continue;
    for (TensorEntry& entry : group.tensors) {
      if (wrapper.empty() && !group.key.empty()) entry.name.insert(0, group.key + ".");
      entries.push_back(std::move(entry));
    }
  }
  if (entries.empty() && !wrappers.empty()) {
    return make_status(StatusCode::kInvalidArgument,
                       "{}: holds tensors under {} only, which is never taken unasked; name the "
                       "key to take",
                       label, listed(wrappers));
  }
  return {};
}

Status Checkpoint::State::apply_prefix(const std::string& prefix) {
  if (prefix.empty()) return {};
  const size_t before = entries.size();
  const auto outside = [&](const TensorEntry& entry) {
    return entry.name.size() <= prefix.size() || !entry.name.starts_with(prefix);
  };
  entries.erase(std::remove_if(entries.begin(), entries.end(), outside), entries.end());
  if (entries.empty()) {
    return make_status(StatusCode::kNotFound, "{}: none of the {} tensors starts with \"{}\"",
                       label, before, printable(prefix, 60));
  }
  for (TensorEntry& entry : entries) entry.name.erase(0, prefix.size());
  return {};
}

Status Checkpoint::State::index_names(bool clean) {
  if (clean) {
    std::vector<std::string*> names;
    for (TensorEntry& entry : entries) names.push_back(&entry.name);
    clean_tensor_names(names);
  }
  for (size_t i = 0; i < entries.size(); ++i) {
    if (!by_name.emplace(entries[i].name, i).second) {
      return make_status(StatusCode::kMalformed,
                         "{}: two tensors are named {} once the parts that training wrappers add "
                         "are removed",
                         label, printable(entries[i].name));
    }
  }
  return {};
}

std::vector<std::string> default_wrapper_order(bool prefer_ema) {
  std::vector<std::string> order = {"generator_ema", "generator", "generator_lora", "model",
                                    "state_dict"};
  if (!prefer_ema) std::swap(order[0], order[1]);
  return order;
}

Result<Checkpoint> Checkpoint::open(const std::filesystem::path& path,
                                    const CheckpointOptions& options) {
  return without_exceptions([&]() -> Result<Checkpoint> {
    UF_ASSIGN(RawCheckpoint raw, read_raw_checkpoint(path));
    return select(std::move(raw), path.string(), options);
  });
}

Result<Checkpoint> Checkpoint::select(RawCheckpoint raw, std::string label,
                                      const CheckpointOptions& options) {
  return without_exceptions([&]() -> Result<Checkpoint> {
    auto state = std::make_shared<State>();
    state->format = raw.format;
    state->label = std::move(label);
    state->files = std::move(raw.files);
    state->metadata = std::move(raw.metadata);
    state->extras = std::move(raw.extras);
    UF_TRY(state->choose(std::move(raw.groups), options));
    UF_TRY(state->apply_prefix(options.prefix));
    UF_TRY(state->index_names(options.clean_names));
    return Checkpoint(std::move(state));
  });
}

const std::vector<TensorEntry>& Checkpoint::entries() const { return state_->entries; }

const TensorEntry* Checkpoint::find(std::string_view name) const {
  const auto position = state_->by_name.find(name);
  return position == state_->by_name.end() ? nullptr : &state_->entries[position->second];
}

Result<Tensor> Checkpoint::tensor(std::string_view name) const {
  return without_exceptions([&]() -> Result<Tensor> {
    const TensorEntry* entry = find(name);
    if (entry == nullptr) {
      return make_status(StatusCode::kNotFound, "{}: has no tensor {}", label(), printable(name));
    }
    Result<Tensor> loaded = entry->load();
    if (!loaded) {
      return make_status(loaded.status().code(), "{}: {}", label(), loaded.status().message());
    }
    return loaded;
  });
}

CheckpointFormat Checkpoint::format() const { return state_->format; }
const std::string& Checkpoint::label() const { return state_->label; }
const std::vector<std::filesystem::path>& Checkpoint::files() const { return state_->files; }
const std::string& Checkpoint::wrapper() const { return state_->wrapper; }
const std::vector<std::string>& Checkpoint::wrappers() const { return state_->wrappers; }
const CheckpointMetadata& Checkpoint::metadata() const { return state_->metadata; }
const std::vector<CheckpointExtra>& Checkpoint::extras() const { return state_->extras; }

}  // namespace ultraflash

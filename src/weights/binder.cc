#include "weights/binder.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <unordered_set>
#include <utility>

#include "core/check.h"
#include "core/utf8.h"

namespace ultraflash {
namespace {

constexpr size_t kShown = 4;  // examples of each kind of problem

std::string examples(const std::vector<std::string>& all, std::string_view separator) {
  const std::vector<std::string> shown(
      all.begin(), all.begin() + static_cast<ptrdiff_t>(std::min(all.size(), kShown)));
  const std::string rest =
      all.size() > kShown ? fmt::format(" and {} more", all.size() - kShown) : "";
  return fmt::format("{}{}", fmt::join(shown, separator), rest);
}

Shape without_ones(const Shape& shape) {
  std::vector<int64_t> sizes;
  for (const int64_t size : shape.sizes()) {
    if (size != 1) sizes.push_back(size);
  }
  return Shape(std::span<const int64_t>(sizes));
}

// "blocks.0.ffn.0.weight is [13824, 5120], expected [8960, 1536]", with the way out when only axes
// of size 1 differ.
std::string mismatch(const std::string& name, const Shape& found, const Shape& expected) {
  std::string text = fmt::format("{} is {}, expected {}", printable(name), found.to_string(),
                                 expected.to_string());
  if (without_ones(found) == without_ones(expected)) {
    const bool convolution = found.rank() > expected.rank() && expected.rank() == 2;
    const bool linear = found.rank() == 2 && expected.rank() > 2;
    text += convolution ? " (the same elements, stored as a convolution with kernel size 1 where a "
                          "linear layer is expected)"
            : linear    ? " (the same elements, stored as a linear layer where a convolution with "
                          "kernel size 1 is expected)"
                        : " (the same elements with other axes of size 1)";
  }
  return text;
}

}  // namespace

struct Binder::Record {
  ParameterSource& source;
  std::string label;
  std::vector<ParameterSpec> specs;
  std::unordered_set<std::string> asked;
  std::vector<std::string> missing;
  std::vector<std::string> misshapen;
  std::optional<Status> failure;  // the first that is not about names and shapes
  std::vector<std::string> ignored_prefixes;
  std::string hint;

  [[nodiscard]] std::vector<std::string> unexpected() const {
    std::vector<std::string> names;
    for (const std::string& name : source.names()) {
      const auto starts = [&](const std::string& prefix) {
        return name.compare(0, prefix.size(), prefix) == 0;
      };
      if (asked.count(name) == 0 &&
          std::none_of(ignored_prefixes.begin(), ignored_prefixes.end(), starts)) {
        names.push_back(printable(name));
      }
    }
    return names;
  }
};

Binder::Binder(ParameterSource& source, std::string label)
    : record_(
          std::make_shared<Record>(Record{source, std::move(label), {}, {}, {}, {}, {}, {}, {}})) {}

Binder::Binder(std::shared_ptr<Record> record, std::string prefix)
    : record_(std::move(record)), prefix_(std::move(prefix)) {}

Binder Binder::scoped(std::string_view prefix) const {
  return {record_, prefix_ + std::string(prefix)};
}

Tensor Binder::parameter(std::string_view name, const Shape& shape, const ParameterInit& init) {
  return bind(name, shape, init, /*optional=*/false);
}

Tensor Binder::optional_parameter(std::string_view name, const Shape& shape,
                                  const ParameterInit& init) {
  return bind(name, shape, init, /*optional=*/true);
}

Tensor Binder::bind(std::string_view name, const Shape& shape, const ParameterInit& init,
                    bool optional) {
  Record& record = *record_;
  record.specs.push_back({prefix_ + std::string(name), shape, init, optional});
  const ParameterSpec& spec = record.specs.back();
  UF_CHECK(record.asked.insert(spec.name).second, "{} is bound twice", spec.name);
  Result<Tensor> found = record.source.find(spec);
  if (!found) {
    if (found.status().code() != StatusCode::kNotFound) {
      if (!record.failure) record.failure = found.status();
    } else if (!optional) {
      record.missing.push_back(printable(spec.name));
    }
    return {};
  }
  if (found->defined() && found->shape() != shape) {
    record.misshapen.push_back(mismatch(spec.name, found->shape(), shape));
    return {};
  }
  return *std::move(found);
}

void Binder::ignore_unused(std::string prefix) {
  record_->ignored_prefixes.push_back(std::move(prefix));
}

void Binder::set_hint(std::string hint) { record_->hint = std::move(hint); }

Status Binder::finish() const {
  const Record& record = *record_;
  if (record.failure) return *record.failure;
  const std::vector<std::string> unexpected = record.unexpected();
  const std::vector<std::string> complaints = record.source.complaints();
  std::vector<std::string> parts;
  if (!record.missing.empty()) {
    parts.push_back(fmt::format("{} of {} tensors are missing ({})", record.missing.size(),
                                record.specs.size(), examples(record.missing, ", ")));
  }
  if (!record.misshapen.empty()) {
    parts.push_back(fmt::format("{} of another shape: {}", record.misshapen.size(),
                                examples(record.misshapen, "; ")));
  }
  if (!unexpected.empty()) {
    parts.push_back(
        fmt::format("{} unexpected ({})", unexpected.size(), examples(unexpected, ", ")));
  }
  parts.insert(parts.end(), complaints.begin(), complaints.end());
  if (parts.empty()) return {};
  if (!record.hint.empty()) parts.push_back(record.hint);
  return make_status(StatusCode::kMalformed, "{}: {}", record.label, fmt::join(parts, "; "));
}

const std::vector<ParameterSpec>& Binder::specs() const { return record_->specs; }

}  // namespace ultraflash

// What an executor ran, operation by operation: how long each took and how much work it was.
#pragma once

#include <memory>
#include <string>
#include <vector>

namespace ultraflash {

class Moment;

/// Counted from the shapes: multiplications and additions, and bytes that must be read and written
/// at least once.
struct OpCost {
  std::string shape;
  double flops = 0.0;
  double bytes = 0.0;
};

struct OpRecord {
  const char* name;
  OpCost cost;
  std::shared_ptr<Moment> begin, end;
};

using OpLog = std::vector<OpRecord>;

}  // namespace ultraflash

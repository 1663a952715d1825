// TensorWriter: writes a checkpoint tensor by tensor, so that its size is bounded by the disk and
// not by memory.
#pragma once

#include <cstdint>
#include <vector>

#include "core/output_file.h"
#include "ultraflash/status.h"
#include "weights/tensor_entry.h"

namespace ultraflash {

/// Names, types and shapes are fixed when a writer is made; the elements follow in order().
/// Nothing appears under the final name before finish(), and a writer that goes away without it
/// removes what it wrote.
class TensorWriter {
 public:
  virtual ~TensorWriter() = default;
  TensorWriter(const TensorWriter&) = delete;
  TensorWriter& operator=(const TensorWriter&) = delete;

  /// The tensors in the order in which append() expects them.
  [[nodiscard]] const std::vector<TensorHeader>& order() const { return order_; }

  /// Writes the elements of the next tensor, which must be in host memory and have the announced
  /// type and shape (kInternal otherwise). kIo when the disk is full or fails.
  Status append(const Tensor& tensor);
  /// Completes the file and gives it its name. kInternal when tensors are missing.
  Status finish();

 protected:
  explicit TensorWriter(std::vector<TensorHeader> order) : order_(std::move(order)) {}

  /// Writes the contiguous elements of order()[index].
  virtual Status write_elements(size_t index, ByteSpan elements) = 0;
  virtual Status complete() = 0;

 private:
  std::vector<TensorHeader> order_;
  size_t next_ = 0;
};

/// Ok when all names are usable and no two are the same; kInvalidArgument otherwise.
Status check_headers(const std::vector<TensorHeader>& headers, std::string_view label);

/// Appends `tensors` to `writer` in its order and finishes it.
Status write_all(TensorWriter& writer, const std::vector<NamedTensor>& tensors);

}  // namespace ultraflash

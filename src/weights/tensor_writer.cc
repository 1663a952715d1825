#include "weights/tensor_writer.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "core/check.h"
#include "core/exceptions.h"
#include "core/utf8.h"
#include "weights/names.h"

namespace ultraflash {

Status TensorWriter::append(const Tensor& tensor) {
  return without_exceptions([&]() -> Status {
    UF_CHECK(next_ < order_.size(), "more than the {} announced tensors", order_.size());
    const TensorHeader& header = order_[next_];
    UF_CHECK(tensor.defined() && tensor.dtype() == header.dtype && tensor.shape() == header.shape,
             "{} was announced as {} {}, but is {}", header.name, dtype_name(header.dtype),
             header.shape.to_string(), tensor.to_string());
    UF_CHECK(tensor.device().type == DeviceType::kCpu, "{} is not in host memory", header.name);
    const Tensor dense = tensor.contiguous() ? tensor : tensor.copy();
    UF_TRY(write_elements(next_, ByteSpan(dense.raw(), dense.size_bytes())));
    ++next_;
    return {};
  });
}

Status TensorWriter::finish() {
  return without_exceptions([&]() -> Status {
    UF_CHECK(next_ == order_.size(), "{} of {} announced tensors were written", next_,
             order_.size());
    return complete();
  });
}

Status check_headers(const std::vector<TensorHeader>& headers, std::string_view label) {
  std::unordered_set<std::string_view> seen;
  for (const TensorHeader& header : headers) {
    if (const char* problem = tensor_name_problem(header.name)) {
      return make_status(StatusCode::kInvalidArgument, "{}: the tensor name \"{}\" {}", label,
                         printable(header.name, 80), problem);
    }
    if (!seen.insert(header.name).second) {
      return make_status(StatusCode::kInvalidArgument, "{}: two tensors are named {}", label,
                         printable(header.name));
    }
  }
  return {};
}

Status write_all(TensorWriter& writer, const std::vector<NamedTensor>& tensors) {
  std::unordered_map<std::string_view, const Tensor*> by_name;
  for (const NamedTensor& named : tensors) by_name.emplace(named.name, &named.tensor);
  for (const TensorHeader& header : writer.order()) {
    UF_TRY(writer.append(*by_name.at(header.name)));
  }
  return writer.finish();
}

}  // namespace ultraflash

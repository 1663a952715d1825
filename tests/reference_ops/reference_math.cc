#include "reference_ops/reference_math.h"

#include <algorithm>
#include <cmath>

namespace ultraflash::testing {

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kGeluErf:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
  }
  return x;
}

float& at(const Tensor& x, std::initializer_list<int64_t> index) {
  int64_t offset = 0;
  int axis = 0;
  for (const int64_t i : index) offset += i * x.stride(axis++);
  return x.mutable_data<float>()[offset];
}
double get(const Tensor& x, std::initializer_list<int64_t> index) {
  int64_t offset = 0;
  int axis = 0;
  for (const int64_t i : index) offset += i * x.stride(axis++);
  return static_cast<double>(x.data<float>()[offset]);
}

Tensor make(const Shape& shape) { return Tensor::zeros(DType::kF32, shape); }

Tensor map(const Tensor& x, const std::function<double(double)>& f) {
  Tensor y = make(x.shape());
  for (int64_t i = 0; i < x.numel(); ++i) {
    y.mutable_data<float>()[i] = static_cast<float>(f(static_cast<double>(x.data<float>()[i])));
  }
  return y;
}

double modulation(const Tensor& m, int64_t b, int64_t n, int64_t tokens, int64_t d) {
  const int64_t row = n / (tokens / m.dim(1));
  return get(m, {m.dim(0) == 1 ? 0 : b, row, d});
}

std::vector<double> rms(const float* x, const float* weight, int64_t dim, double eps) {
  double sum = 0;
  for (int64_t i = 0; i < dim; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(dim) + eps);
  std::vector<double> y(static_cast<size_t>(dim));
  for (int64_t i = 0; i < dim; ++i) {
    y[static_cast<size_t>(i)] =
        static_cast<double>(x[i]) * inverse * static_cast<double>(weight[i]);
  }
  return y;
}

void rotate(std::vector<double>& x, int64_t head_dim, double frame, double row, double column) {
  const int64_t spatial = 2 * (head_dim / 6);
  const int64_t widths[3] = {head_dim - 2 * spatial, spatial, spatial};
  const double positions[3] = {frame, row, column};
  for (int64_t head = 0; head < static_cast<int64_t>(x.size()); head += head_dim) {
    int64_t begin = head;
    for (int axis = 0; axis < 3; ++axis) {
      for (int64_t j = 0; j < widths[axis] / 2; ++j) {
        const double angle =
            positions[axis] *
            std::pow(10000.0, -2.0 * static_cast<double>(j) / static_cast<double>(widths[axis]));
        double& a = x[static_cast<size_t>(begin + 2 * j)];
        double& b = x[static_cast<size_t>(begin + 2 * j + 1)];
        const double rotated = a * std::cos(angle) - b * std::sin(angle);
        b = a * std::sin(angle) + b * std::cos(angle);
        a = rotated;
      }
      begin += widths[axis];
    }
  }
}

}  // namespace ultraflash::testing

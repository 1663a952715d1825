#include "train/degrade/colour.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "core/check.h"

namespace ultraflash::degrade {
namespace {

constexpr int64_t kBlock = 8;

at::Tensor mixed_channels(const at::Tensor& x, const std::array<float, 9>& rows) {
  const at::Tensor matrix = at::tensor(at::ArrayRef<float>(rows.data(), rows.size()), at::kFloat)
                                .view({3, 3})
                                .to(x.device());
  return at::matmul(x.permute({0, 2, 3, 1}), matrix.t()).permute({0, 3, 1, 2});
}

at::Tensor per_frame(const std::vector<Flicker>& frames, double Flicker::*field,
                     const at::Tensor& like) {
  at::Tensor values = at::empty({static_cast<int64_t>(frames.size()), 1, 1, 1}, at::kFloat);
  for (size_t i = 0; i < frames.size(); ++i) {
    values.mutable_data_ptr<float>()[i] = static_cast<float>(frames[i].*field);
  }
  return values.to(like.device());
}

at::Tensor saturated(const at::Tensor& clip, const at::Tensor& factor) {
  const at::Tensor ycc = to_ycc(clip);
  return from_ycc(at::cat({ycc.narrow(1, 0, 1), ycc.narrow(1, 1, 2) * factor}, 1));
}

// Rows are the orthonormal cosine functions.
at::Tensor cosines(const at::Tensor& like) {
  at::Tensor matrix = at::empty({kBlock, kBlock}, at::kFloat);
  auto values = matrix.accessor<float, 2>();
  for (int64_t k = 0; k < kBlock; ++k) {
    const double scale = std::sqrt((k == 0 ? 1.0 : 2.0) / static_cast<double>(kBlock));
    for (int64_t n = 0; n < kBlock; ++n) {
      values[k][n] = static_cast<float>(
          scale * std::cos(std::numbers::pi * (static_cast<double>(n) + 0.5) *
                           static_cast<double>(k) / static_cast<double>(kBlock)));
    }
  }
  return matrix.to(like.device());
}

// Planes [n, h, w] in cosine blocks, each coefficient rounded to a multiple of its step (a scalar
// or [8, 8]), and back.
at::Tensor quantised(const at::Tensor& planes, const at::Tensor& steps) {
  const int64_t height = planes.size(1);
  const int64_t width = planes.size(2);
  const auto missing = [](int64_t length) { return (kBlock - length % kBlock) % kBlock; };
  const at::Tensor padded =
      at::replication_pad2d(planes.unsqueeze(1), {0, missing(width), 0, missing(height)})
          .squeeze(1);
  const int64_t rows = padded.size(1) / kBlock;
  const int64_t columns = padded.size(2) / kBlock;
  const at::Tensor matrix = cosines(planes);
  const at::Tensor blocks =
      padded.view({-1, rows, kBlock, columns, kBlock}).permute({0, 1, 3, 2, 4});
  at::Tensor coefficients = at::matmul(at::matmul(matrix, blocks), matrix.t());
  coefficients = (coefficients / steps).round() * steps;
  return at::matmul(at::matmul(matrix.t(), coefficients), matrix)
      .permute({0, 1, 3, 2, 4})
      .reshape(padded.sizes())
      .narrow(1, 0, height)
      .narrow(2, 0, width);
}

// ITU-T T.81, tables K.1 and K.2.
constexpr std::array<int, 64> kLuminance = {
    16, 11, 10, 16, 24,  40,  51,  61,  12, 12, 14, 19, 26,  58,  60,  55,
    14, 13, 16, 24, 40,  57,  69,  56,  14, 17, 22, 29, 51,  87,  80,  62,
    18, 22, 37, 56, 68,  109, 103, 77,  24, 35, 55, 64, 81,  104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99};
constexpr std::array<int, 64> kChrominance = {
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99,
    99, 99, 47, 66, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99};

// The table at a quality, as the common encoders scale it, for values in [0, 1].
at::Tensor table_at(const std::array<int, 64>& table, double quality, const at::Tensor& like) {
  const double percent = quality < 50.0 ? 5000.0 / quality : 200.0 - 2.0 * quality;
  at::Tensor steps = at::empty({kBlock, kBlock}, at::kFloat);
  for (size_t i = 0; i < table.size(); ++i) {
    const double step = std::floor((static_cast<double>(table[i]) * percent + 50.0) / 100.0);
    steps.mutable_data_ptr<float>()[i] = static_cast<float>(std::clamp(step, 1.0, 255.0) / 255.0);
  }
  return steps.to(like.device());
}

// Cb and Cr at half the size.
at::Tensor halved(const at::Tensor& x) {
  return at::avg_pool2d(at::replication_pad2d(x, {0, x.size(3) % 2, 0, x.size(2) % 2}), {2, 2});
}

}  // namespace

at::Tensor to_ycc(const at::Tensor& clip) {
  return mixed_channels(
      clip, {0.299F, 0.587F, 0.114F, -0.168736F, -0.331264F, 0.5F, 0.5F, -0.418688F, -0.081312F});
}

at::Tensor from_ycc(const at::Tensor& ycc) {
  return mixed_channels(ycc,
                        {1.0F, 0.0F, 1.402F, 1.0F, -0.344136F, -0.714136F, 1.0F, 1.772F, 0.0F});
}

at::Tensor flicker(const at::Tensor& clip, const std::vector<Flicker>& frames) {
  UF_CHECK(static_cast<int64_t>(frames.size()) == clip.size(0), "{} of {} frames", frames.size(),
           clip.size(0));
  const at::Tensor x =
      clip * per_frame(frames, &Flicker::gain, clip) + per_frame(frames, &Flicker::bias, clip);
  const at::Tensor curved = x.clamp(0.0, 1.0).pow(per_frame(frames, &Flicker::gamma, clip));
  return saturated(curved, per_frame(frames, &Flicker::saturation, clip)).clamp(0.0, 1.0);
}

std::vector<Flicker> draw_flicker(world::Draw& draw, int64_t frames, double amplitude) {
  constexpr double kKept = 0.7;
  const double fresh = std::sqrt(1.0 - kKept * kKept);
  // Close to normal: the sum of three uniform numbers of variance 1.
  const auto normal = [&] {
    return draw.uniform(-1.0, 1.0) + draw.uniform(-1.0, 1.0) + draw.uniform(-1.0, 1.0);
  };
  std::array<double, 4> state = {normal(), normal(), normal(), normal()};
  const auto bounded = [](double x) { return std::clamp(x, -2.0, 2.0) / 2.0; };
  std::vector<Flicker> result;
  for (int64_t t = 0; t < frames; ++t) {
    if (t > 0) {
      for (double& s : state) s = kKept * s + fresh * normal();
    }
    result.push_back({1.0 + amplitude * 0.02 * state[0], amplitude * 0.01 * state[1],
                      1.0 + amplitude * 0.05 * bounded(state[2]),
                      1.0 + amplitude * 0.05 * bounded(state[3])});
  }
  return result;
}

at::Tensor colour_drift(const at::Tensor& clip, double saturation, double contrast) {
  const double last = static_cast<double>(std::max<int64_t>(clip.size(0) - 1, 1));
  const at::Tensor t = at::arange(clip.size(0), clip.options()).view({-1, 1, 1, 1}) / last;
  const at::Tensor x = saturated(clip, 1.0 + (saturation - 1.0) * t);
  const at::Tensor middle = x.mean({1, 2, 3}, /*keepdim=*/true);
  return (middle + (x - middle) * (1.0 + (contrast - 1.0) * t)).clamp(0.0, 1.0);
}

at::Tensor gaussian_noise(const at::Tensor& clip, double sigma, bool grey) {
  std::vector<int64_t> sizes = clip.sizes().vec();
  if (grey) sizes[1] = 1;
  return (clip + sigma * at::randn(sizes, clip.options())).clamp(0.0, 1.0);
}

at::Tensor poisson_noise(const at::Tensor& clip, double scale, bool grey) {
  const at::Tensor light = grey ? to_ycc(clip).narrow(1, 0, 1) : clip;
  const at::Tensor counts = light.clamp(0.0, 1.0) * 255.0;
  const at::Tensor noise = (at::poisson(counts) - counts) / 255.0;
  return (clip + scale * noise).clamp(0.0, 1.0);
}

at::Tensor jpeg(const at::Tensor& clip, double quality) {
  const at::Tensor ycc = to_ycc(clip);
  // Around 0, as the codec does, so that the mean of a block is coarse in the same way.
  const at::Tensor y = quantised(ycc.select(1, 0) - 0.5, table_at(kLuminance, quality, clip)) + 0.5;
  const at::Tensor small = halved(ycc.narrow(1, 1, 2));
  const at::Tensor coded =
      quantised(small.flatten(0, 1), table_at(kChrominance, quality, clip)).view(small.sizes());
  const at::Tensor chroma =
      at::upsample_bilinear2d(coded, {small.size(2) * 2, small.size(3) * 2}, false)
          .narrow(2, 0, clip.size(2))
          .narrow(3, 0, clip.size(3));
  return from_ycc(at::cat({y.unsqueeze(1), chroma}, 1)).clamp(0.0, 1.0);
}

at::Tensor predictive_blocks(const at::Tensor& clip, double crf, int64_t gop) {
  const at::Tensor ycc = to_ycc(clip);
  const at::Tensor luma = ycc.narrow(1, 0, 1);
  const at::Tensor small = halved(ycc.narrow(1, 1, 2));
  const auto coded = [&](const at::Tensor& planes) {
    // The transform is orthonormal, as H.264's is up to its scaling, so a step means the same.
    const at::Tensor step = at::full({}, std::exp2((crf - 4.0) / 6.0) / 255.0, planes.options());
    at::Tensor before = at::zeros_like(planes.select(0, 0));
    std::vector<at::Tensor> frames;
    for (int64_t t = 0; t < planes.size(0); ++t) {
      if (t % gop == 0) before = at::full_like(before, 0.0);
      before = before + quantised(planes.select(0, t) - before, step);
      frames.push_back(before);
    }
    return at::stack(frames);
  };
  const at::Tensor chroma =
      at::upsample_bilinear2d(coded(small), {small.size(2) * 2, small.size(3) * 2}, false)
          .narrow(2, 0, clip.size(2))
          .narrow(3, 0, clip.size(3));
  return from_ycc(at::cat({coded(luma), chroma}, 1)).clamp(0.0, 1.0);
}

}  // namespace ultraflash::degrade

#include <gtest/gtest.h>

#include <cstdint>

#include "models/model_fixture.h"

namespace ultraflash {
namespace {

// The embedding orders a patch [channel][row][column], the head [row][column][channel]; an
// index-coded latent shows both orders.
TEST(PatchTest, OrdersOfEmbeddingAndHead) {
  const std::unique_ptr<Executor> ops = testing::cpu_executor();
  const int64_t frames = 2;
  const int64_t height = 4;
  const int64_t width = 6;
  const int64_t channels = 16;
  Tensor latent = Tensor::allocate(DType::kF32, {1, frames, height, width, channels});
  for (int64_t i = 0; i < latent.numel(); ++i)
    latent.mutable_data<float>()[i] = static_cast<float>(i);
  const auto value = [&](int64_t f, int64_t y, int64_t x, int64_t c) {
    return static_cast<float>(((f * height + y) * width + x) * channels + c);
  };
  const Tensor patches = ops->patchify(latent, {}, DType::kF32);
  const TokenGrid grid{frames, height / 2, width / 2};
  Tensor head = Tensor::allocate(DType::kF32, patches.shape());
  for (int64_t token = 0; token < grid.tokens(); ++token) {
    const int64_t f = token / grid.tokens_per_frame();
    const int64_t y = token / grid.width % grid.height;
    const int64_t x = token % grid.width;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t p = 0; p < 2; ++p) {
        for (int64_t q = 0; q < 2; ++q) {
          const float expected = value(f, 2 * y + p, 2 * x + q, c);
          ASSERT_EQ(patches.data<float>()[token * 64 + c * 4 + p * 2 + q], expected);
          head.mutable_data<float>()[token * 64 + (p * 2 + q) * channels + c] = expected;
        }
      }
    }
  }
  EXPECT_EQ(testing::relative_error(ops->unpatchify(head, grid, DType::kF32), latent), 0.0);
}

}  // namespace
}  // namespace ultraflash

// What tests of single networks and losses of training begin with.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>

#include "ops/autograd/autograd_executor.h"
#include "train/objective.h"
#include "ultraflash/recipe.h"

namespace ultraflash::testing {

/// A context in f32 on the CPU for a recipe (a preset's name or a file), its noise seeded.
inline TrainContext make_context(const std::string& recipe) {
  TrainContext context;
  const Result<Recipe> found = Recipe::find(recipe);
  EXPECT_TRUE(found.ok()) << found.status().message();
  context.recipe = found->data();
  context.compute = DType::kF32;
  context.executor = make_autograd_executor({});
  context.seed_step(0);
  return context;
}

/// Norm of the difference as a part of the norm of `expected`.
inline double relative(const at::Tensor& got, const at::Tensor& expected) {
  return ((got - expected).norm() / expected.norm()).item<double>();
}

}  // namespace ultraflash::testing

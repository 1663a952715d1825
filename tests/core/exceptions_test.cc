#include "core/exceptions.h"

#include <stdexcept>
#include <vector>

#include "core/check.h"
#include "support/status.h"

namespace ultraflash {
namespace {

TEST(ExceptionsTest, ErrorsAndLackOfMemoryBecomeStatus) {
  EXPECT_OK(without_exceptions([] { return Status(); }));
  expect_failure(
      without_exceptions([]() -> Status { throw_error(StatusCode::kDevice, "{} is lost", "x"); }),
      StatusCode::kDevice, {"x is lost"});
  const auto too_much = []() -> Result<int> { throw std::bad_alloc(); };
  expect_failure(without_exceptions(too_much).status(), StatusCode::kOutOfMemory,
                 {"not enough memory"});
  expect_failure(without_exceptions(too_much, [] { return std::string("a: no memory"); }).status(),
                 StatusCode::kOutOfMemory, {"a: no memory"});
}

TEST(ExceptionsTest, ASentenceThatDoesNotFitIsLeftOut) {
  const auto describe = []() -> std::string { throw std::bad_alloc(); };
  expect_failure(without_exceptions([]() -> Status { throw std::bad_alloc(); }, describe),
                 StatusCode::kOutOfMemory, {"out of memory"});
}

TEST(ExceptionsTest, OthersFlyOn) {
  EXPECT_THROW(
      static_cast<void>(without_exceptions([]() -> Status { throw std::runtime_error("mine"); })),
      std::runtime_error);
}

}  // namespace
}  // namespace ultraflash

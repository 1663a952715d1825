#include "ultraflash/status.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>

#include "core/check.h"

namespace ultraflash {
namespace {

TEST(StatusTest, TableHasEveryCodeOnceWithDistinctNamesAndExitStatuses) {
  std::set<std::string> names;
  std::set<int> exit_statuses;
  int expected = 0;
  for (const StatusCodeInfo& info : status_code_table()) {
    EXPECT_EQ(static_cast<int>(info.code), expected++);
    EXPECT_TRUE(names.insert(info.name).second) << info.name;
    if (info.exit_status != 0) {
      EXPECT_TRUE(exit_statuses.insert(info.exit_status).second) << info.name;
    }
    EXPECT_NE(info.exit_status, 1) << "1 means: the command ran and its answer is no";
    EXPECT_GE(info.http_status, 200);
    EXPECT_LT(info.http_status, 600);
    EXPECT_EQ(status_code_info(info.code).name, std::string(info.name));
  }
  EXPECT_EQ(expected, static_cast<int>(StatusCode::kInternal) + 1);
}

TEST(StatusTest, UnknownCodeIsReportedAsInternal) {
  EXPECT_EQ(status_code_info(static_cast<StatusCode>(999)).code, StatusCode::kInternal);
}

TEST(ResultTest, CarriesMoveOnlyValuesAndStatuses) {
  Result<std::unique_ptr<int>> good = std::make_unique<int>(7);
  ASSERT_TRUE(good.ok());
  EXPECT_EQ(**good, 7);
  const Result<std::unique_ptr<int>> bad(StatusCode::kNotFound, "no such thing");
  EXPECT_FALSE(bad);
  EXPECT_EQ(bad.status().to_string(), "not_found: no such thing");
}

Result<int> doubled(Result<int> input) {
  UF_ASSIGN(const int value, std::move(input));
  return 2 * value;
}

TEST(ResultTest, AssignMacroPassesStatusOn) {
  EXPECT_EQ(*doubled(4), 8);
  EXPECT_EQ(doubled(Status(StatusCode::kBusy, "later")).status().code(), StatusCode::kBusy);
}

TEST(CheckTest, NamesThePlaceAndTheNumbers) {
  try {
    UF_CHECK(1 + 1 == 3, "{} apples", 2);
    FAIL() << "UF_CHECK did not throw";
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), StatusCode::kInternal);
    EXPECT_NE(error.status().message().find("1 + 1 == 3"), std::string::npos);
    EXPECT_NE(error.status().message().find("2 apples"), std::string::npos);
  }
}

}  // namespace
}  // namespace ultraflash

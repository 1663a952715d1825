// What tests expect of a Status.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ultraflash/status.h"

namespace ultraflash {

/// `status` has this code and a message that contains all of `parts`.
inline void expect_failure(const Status& status, StatusCode code,
                           const std::vector<std::string>& parts) {
  EXPECT_EQ(status_code_info(status.code()).name, std::string(status_code_info(code).name))
      << status.message();
  for (const std::string& part : parts) EXPECT_THAT(status.message(), ::testing::HasSubstr(part));
}

}  // namespace ultraflash

#define EXPECT_OK(expression)                                       \
  do {                                                              \
    const ::ultraflash::Status uf_expected_ok = (expression);       \
    EXPECT_TRUE(uf_expected_ok.ok()) << uf_expected_ok.to_string(); \
  } while (false)
#define ASSERT_OK(expression)                                       \
  do {                                                              \
    const ::ultraflash::Status uf_expected_ok = (expression);       \
    ASSERT_TRUE(uf_expected_ok.ok()) << uf_expected_ok.to_string(); \
  } while (false)

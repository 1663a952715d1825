// ultraflash eval: what it prints and leaves. What it measures: tests of the pocket world.
#include <filesystem>

#include "cli/program.h"

namespace ultraflash::cli_test {
namespace {

class EvalTest : public CliTest {};

TEST_F(EvalTest, ASheetThatCannotBeWrittenCostsNoMeasurements) {
  UF_NEEDS_FFMPEG();
  ASSERT_TRUE(is_success(
      run({"eval", "clips", "--make", "1", "--render", "1", "--render-seconds", "1", "-q"})));
  const Outcome measured = run({"eval", "clips", "--seconds", "1", "--threads", "1", "--json",
                                "--sheet", "missing/sheet.png", "-q"});
  EXPECT_NE(measured.status, 0);
  EXPECT_NE(measured.err.find(has_png() ? "missing/sheet.png" : "PNG"), std::string::npos)
      << measured.err;
  const nlohmann::json report = json_of(measured);
  ASSERT_EQ(report["windows"].size(), 1U);
  EXPECT_EQ(report["windows"][0]["clips"], 1);
}

}  // namespace
}  // namespace ultraflash::cli_test

#include "base/output_path.h"

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"

namespace troupe {
namespace {

std::string error_of(const std::filesystem::path& path) {
  try {
    require_output_path(path);
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(OutputPath, BelowAFileIsRefused) {
  EXPECT_EQ(error_of("/proc/self/exe/report.json"),
            "/proc/self/exe/report.json: cannot be created (/proc/self/exe is no directory)");
}

TEST(OutputPath, InADirectoryThatIsMissingIsRefused) {
  EXPECT_EQ(error_of("/no/such/report.json"),
            "/no/such/report.json: cannot be created (access: No such file or directory)");
}

TEST(OutputPath, OfANewFileIsAccepted) {
  EXPECT_EQ(error_of("output_path_test_of_a_new_file.json"), "accepted");
}

}  // namespace
}  // namespace troupe

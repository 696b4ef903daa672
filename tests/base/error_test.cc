#include "base/error.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <functional>

namespace troupe {
namespace {

template <class Error>
std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(Error, UserErrorIsItsFormattedLine) {
  EXPECT_EQ(message_of<UserError>([] { throw_user_error("{}: {} is no size", "a.yaml", 7); }),
            "a.yaml: 7 is no size");
}

TEST(Error, RankErrorIsItsFormattedLine) {
  EXPECT_EQ(message_of<RankError>([] { throw_rank_error("rank {} died", 3); }), "rank 3 died");
}

TEST(Error, ErrnoTextNamesTheCallAndTheReason) {
  errno = EMFILE;
  EXPECT_EQ(errno_text("memfd_create"), "memfd_create: Too many open files");
}

TEST(Check, PassesSilently) {
  int evaluated = 0;
  EXPECT_NO_THROW(TROUPE_CHECK(++evaluated == 1, "{}", evaluated));
  EXPECT_EQ(evaluated, 1);
}

TEST(Check, SaysConditionPlaceAndValues) {
  const int a = 2;
  const std::string text =
      message_of<std::logic_error>([&] { TROUPE_CHECK(a == 3, "a is {}", a); });
  EXPECT_NE(text.find("a == 3 does not hold at"), std::string::npos) << text;
  EXPECT_NE(text.find("error_test.cc:"), std::string::npos) << text;
  EXPECT_TRUE(text.ends_with(": a is 2")) << text;
}

TEST(Check, NeedsNoValues) {
  const std::string text = message_of<std::logic_error>([] { TROUPE_CHECK(1 > 2); });
  EXPECT_NE(text.find("1 > 2 does not hold"), std::string::npos) << text;
}

}  // namespace
}  // namespace troupe

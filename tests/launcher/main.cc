// Tests of the launcher. Started as "rank ..." the program is a rank of supervisor_test.cc.
#include <gtest/gtest.h>

#include <string_view>

int run_test_rank(int argc, char** argv);  // supervisor_test.cc

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "rank") return run_test_rank(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

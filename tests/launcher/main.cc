// Tests of the launcher. Started as "rank ..." the program is a rank: one of supervisor_test.cc, or
// a real one of a launch.
#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "actors/rank.h"
#include "launcher/supervisor.h"

int run_test_rank(int argc, char** argv);  // supervisor_test.cc

namespace {

// rank --rank N --address A --launcher-pid P
int run_real_rank(char** argv) {
  using troupe::launcher::Supervisor;
  const int rank = std::stoi(argv[3]);
  troupe::launcher::enter_rank_process(rank, std::stoi(argv[7]));
  constexpr int kFirst = Supervisor::kFirstFd;
  return troupe::actors::run_rank(
      rank, argv[5],
      {.arena = kFirst, .weights = kFirst + 1, .kv_cache = kFirst + 2, .observation = kFirst + 3});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "rank") {
    const bool is_real = argc == 8 && std::string_view(argv[4]) == "--address";
    return is_real ? run_real_rank(argv) : run_test_rank(argc, argv);
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

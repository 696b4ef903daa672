// What is said about a launch that failed.
#include "launcher/failure.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <link.h>

#include <nlohmann/json.hpp>

#include "comm/flight_recorder.h"
#include "launcher/failure_dump.h"
#include "launcher/symbols.h"
#include "tests/model/files.h"

namespace troupe::launcher {

// Found by name in this program's own symbols.
[[gnu::noinline]] int a_function_with_a_name(int x) {
  volatile int y = x;
  return y + 1;
}

namespace {

uint64_t load_bias() {
  uint64_t bias = 0;
  ::dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {  // the first one is the program
        *static_cast<uint64_t*>(out) = info->dlpi_addr;
        return 1;
      },
      &bias);
  return bias;
}

TEST(Symbols, NameTheFunctionThatCoversAnAddress) {
  const uint64_t address = reinterpret_cast<uint64_t>(&a_function_with_a_name) - load_bias();

  EXPECT_EQ(function_at("/proc/self/exe", address + 3),
            "troupe::launcher::a_function_with_a_name(int)+0x3");
}

TEST(Symbols, AreEmptyForWhatIsNoProgram) {
  const model::TemporaryDirectory directory;
  EXPECT_EQ(function_at("/proc/self/exe", 1), "");
  EXPECT_EQ(function_at("/no/such/file", 4096), "");
  EXPECT_EQ(function_at(directory.write("empty", ""), 4096), "");
  EXPECT_EQ(function_at(directory.write("text", std::string(10000, 'x')), 4096), "");
}

TEST(Symbols, OfADamagedProgramAreNotReadOutsideTheFile) {
  const model::TemporaryDirectory directory;
  const std::string whole = model::read_file("/proc/self/exe").substr(0, 1 << 16);
  // Its section headers lie behind the end of what is left of it.
  EXPECT_EQ(function_at(directory.write("cut", whole), 4096), "");
  std::string wild = whole;
  wild.replace(40, 8, std::string(8, '\xff'));  // e_shoff
  EXPECT_EQ(function_at(directory.write("wild", wild), 4096), "");
}

TEST(RankRole, SaysWhereARankStandsInAttentionAndExperts) {
  EXPECT_EQ(rank_role({.world_size = 4}, 3), "DP 3, EP 3");
  EXPECT_EQ(rank_role({.world_size = 8, .attn_tp_size = 4, .moe_tp_size = 2}, 6),
            "DP 1, TP 2, EP 3, ETP 0");
}

TEST(FailureLine, HasOneForm) {
  Failure failure{.rank = 3,
                  .pid = 4711,
                  .role = "DP 3, EP 3",
                  .what = "was killed by SIGKILL (signal 9)",
                  .place = {.stage = comm::Stage::kDecode,
                            .step = 14,
                            .layer = 3,
                            .operation = comm::Operation::kDispatch,
                            .group = 6,
                            .sequence = 421},
                  .detail = "",
                  .waiters = {0, 2}};
  EXPECT_EQ(failure_line(failure),
            "rank 3 (pid 4711, DP 3, EP 3) was killed by SIGKILL (signal 9) in decode step 14, "
            "layer 3, dispatch of group 6 (#421); waited for by ranks 0, 2");

  failure.detail = "why";
  failure.waiters = {1};
  failure.place = {.stage = comm::Stage::kIdle, .step = 7};
  EXPECT_EQ(failure_line(failure),
            "rank 3 (pid 4711, DP 3, EP 3) was killed by SIGKILL (signal 9) in idle after step 7: "
            "why; waited for by rank 1");
}

TEST(FailureDump, SaysWhyItCouldNotBeWritten) {
  EXPECT_EQ(write_failure_dump("", {}), "no dump: runtime_config.dump_dir is empty");
  EXPECT_TRUE(write_failure_dump("/no/such/directory", {}).starts_with("no dump: /no/such/"));
  EXPECT_TRUE(write_failure_dump("/proc", {}).starts_with("no dump: /proc/"));
}

TEST(FailureDump, OfAThousandRanksStaysUnder16MB) {
  constexpr int kWorld = 1024;
  const comm::Arena arena =
      comm::Arena::create({.world_size = kWorld, .comm_buffer_bytes = size_t{kWorld} * 2 * 4096});
  // The largest numbers there are, in as many records as a rank keeps.
  for (int rank = 0; rank < kWorld; ++rank) {
    comm::FlightRecorder recorder(arena, rank);
    for (size_t i = 0; i < comm::kFlightRecords; ++i) {
      recorder.begin(comm::Operation::kReduceScatter, UINT32_MAX, kWorld, UINT64_MAX - i,
                     UINT64_MAX);
      recorder.end();
    }
  }

  const nlohmann::json dump =
      failure_dump({arena, std::vector<int>(kWorld, 1), {.world_size = kWorld}, {}}, {}, "");

  EXPECT_LT(dump.dump(2).size(), size_t{16} << 20);
  EXPECT_GE(dump.at("ranks").at(1023).at("collectives").size(), 8u);
}

}  // namespace
}  // namespace troupe::launcher

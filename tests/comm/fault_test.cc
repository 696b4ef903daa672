// Faults on request: what is asked for, where it strikes, and what a crash leaves behind.
#include "comm/fault.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <ctime>

#include "base/error.h"
#include "comm/crash.h"
#include "world.h"

namespace troupe::comm {
namespace {

std::string refusal(const std::string& text) {
  try {
    parse_fault(text, 4);
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(FaultText, SaysWhatWhoAndWhere) {
  const Fault fault = parse_fault("kill:rank=3,stage=dispatch,step=12,layer=2", 4);

  EXPECT_EQ(fault.kind, Fault::Kind::kKill);
  EXPECT_EQ(fault.rank, 3);
  EXPECT_EQ(fault.operation, Operation::kDispatch);
  EXPECT_FALSE(fault.stage);
  EXPECT_EQ(fault.step, 12u);
  EXPECT_EQ(fault.layer, 2);
}

TEST(FaultText, NamesStagesByTheirFirstWord) {
  EXPECT_EQ(parse_fault("stop:rank=0,stage=loading", 4).stage, Stage::kLoading);
  EXPECT_EQ(parse_fault("stop:rank=0,stage=draft", 4).stage, Stage::kDraft);
}

TEST(FaultText, GivesDelayAndSlowTheirMeasure) {
  EXPECT_EQ(parse_fault("delay:rank=1,ms=250", 4).ms, 250);
  EXPECT_EQ(parse_fault("slow:rank=1,factor=2.5", 4).factor, 2.5);
  EXPECT_EQ(parse_fault("slow:rank=1", 4).factor, 10);
}

TEST(FaultText, IsReadStrictly) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "expected KIND"},
      {"kill", "expected KIND"},
      {"kil:rank=1", "one of kill, stop"},
      {"kill:", "no key=value"},
      {"kill:rank", "no key=value"},
      {"kill:rank=1,", "no key=value"},
      {"kill:step=2", "rank is missing"},
      {"kill:rank=4", "rank is a number from 0 to 3, not '4'"},
      {"kill:rank=-1", "not '-1'"},
      {"kill:rank=1x", "not '1x'"},
      {"kill:rank=1,rank=2", "rank is given twice"},
      {"kill:rank=1,step=0", "step is a number from 1"},
      {"kill:rank=1,stage=none", "unknown stage 'none'"},
      {"kill:rank=1,stage=Dispatch", "unknown stage 'Dispatch'"},
      {"kill:rank=1,ms=5", "unknown key 'ms'"},
      {"delay:rank=1,ms=0", "ms is a number from 1"},
      {"slow:rank=1,factor=nan", "factor is a number from 1"},
      {"kill:rank=1,stage=loading,step=3", "no steps"},
      {"drop:rank=1,stage=starting", "no collectives"},
  };
  for (const auto& [text, part] : cases) {
    const std::string message = refusal(text);
    EXPECT_NE(message.find(part), std::string::npos) << "'" << text << "': " << message;
    EXPECT_NE(message.find(std::string("--inject ") + text), std::string::npos) << message;
  }
}

// A rank of `faults`, which comes to `places` in turn; what is due is left for take().
TEST(FaultInjector, StrikesOnceAtTheFirstPlaceThatMatches) {
  FaultInjector injector({parse_fault("drop:rank=0,stage=all_gather,step=5,layer=2", 4)});
  const auto arrive = [&](uint64_t step, int layer, Operation operation) {
    injector.arrive(
        {.stage = Stage::kDecode, .step = step, .layer = layer, .operation = operation});
    return injector.take(Misdeed::kSkipCollective);
  };

  EXPECT_FALSE(arrive(4, 2, Operation::kAllGather));
  EXPECT_FALSE(arrive(5, 1, Operation::kAllGather));
  EXPECT_FALSE(arrive(5, 2, Operation::kNone));
  EXPECT_FALSE(arrive(5, 2, Operation::kAllReduce));
  EXPECT_TRUE(arrive(6, 2, Operation::kAllGather)) << "a later step does too";
  EXPECT_FALSE(arrive(7, 2, Operation::kAllGather));
}

TEST(FaultInjector, SpoilsAHeaderInACollectiveAndElseAMessage) {
  FaultInjector injector({parse_fault("corrupt:rank=0,stage=barrier", 4),
                          parse_fault("corrupt:rank=0,stage=idle", 4)});

  injector.arrive({.stage = Stage::kDecode, .operation = Operation::kBarrier});
  EXPECT_TRUE(injector.take(Misdeed::kSpoilHeader));
  EXPECT_FALSE(injector.take(Misdeed::kSpoilMessage));
  injector.arrive({.stage = Stage::kIdle});
  EXPECT_TRUE(injector.take(Misdeed::kSpoilMessage));
}

// Three ranks do `call` twice, of which rank 1 does something wrong in the first.
std::vector<std::string> with_fault(const std::string& fault,
                                    const std::function<void(ProcessGroup&)>& call) {
  Arena arena = make_arena(3);
  return run_threads(3, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    if (rank == 1) communicator.inject({parse_fault(fault, 3)});
    ProcessGroup group(communicator, 4, ranks_up_to(3));
    call(group);
    call(group);
    group.barrier();
  });
}

TEST(DroppedCollective, IsAnErrorAtTheNextCallOnEveryRank) {
  std::vector<std::byte> in(8);
  for (const std::string& error : with_fault("drop:rank=1,stage=all_gather", [&](ProcessGroup& g) {
         std::vector<std::byte> out(24);
         g.all_gather(in, out);
       })) {
    EXPECT_NE(error.find("all_gather of group 4 (#1)"), std::string::npos) << error;
    EXPECT_NE(error.find("all_gather of group 4 (#2)"), std::string::npos) << error;
  }
  for (const std::string& error :
       with_fault("drop:rank=1,stage=barrier", [&](ProcessGroup& g) { g.barrier(); }))
    EXPECT_NE(error.find("barrier of group 4 (#2)"), std::string::npos) << error;
}

TEST(CorruptHeader, IsAnErrorAtThatCallOnEveryRank) {
  for (const char* operation : {"all_reduce", "barrier"})
    for (const std::string& error :
         with_fault(fmt::format("corrupt:rank=1,stage={}", operation), [&](ProcessGroup& g) {
           std::vector<float> data(16);
           if (operation == std::string("barrier"))
             g.barrier();
           else
             g.all_reduce(data);
         })) {
      EXPECT_NE(error.find("from rank 1, which brings"), std::string::npos) << error;
      EXPECT_NE(error.find("(#1)"), std::string::npos) << error;
    }
}

int64_t thread_cpu_ns() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

TEST(SlowRank, SleepsForWhatItComputed) {
  FaultInjector injector({parse_fault("slow:rank=0,factor=5", 1)});
  injector.arrive({});
  const int64_t start_cpu = thread_cpu_ns();
  const auto start = std::chrono::steady_clock::now();

  while (thread_cpu_ns() - start_cpu < 5'000'000) {
  }
  injector.arrive({});

  // Load on the machine makes it longer, never shorter.
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(5 * 5));
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(CrashedRank, LeavesItsSignalItsStackAndDiesOfIt) {
  Arena arena = make_arena(2);

  Processes ranks(2, [&](int rank) {
    install_crash_handler(arena, rank);
    Communicator communicator(arena, rank, kPatient);
    if (rank == 1) communicator.inject({parse_fault("segv:rank=1,stage=loading", 2)});
    communicator.enter_step(Stage::kLoading, 0);
  });
  const std::vector<std::string> ends = ranks.join();

  EXPECT_EQ(ends[0], "");
  EXPECT_EQ(ends[1], "killed by signal 11");
  EXPECT_FALSE(crash_report(arena, 0));
  const auto report = crash_report(arena, 1);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->signal, SIGSEGV);
  EXPECT_EQ(report->fault_address, 0u);
  ASSERT_GE(report->frames.size(), 4u);  // the write, strike, arrive, enter_step, ...
  for (size_t i = 0; i < 4; ++i)
    EXPECT_TRUE(report->frames[i].module.ends_with("comm_tests")) << report->frames[i].module;
}

TEST(CrashedRank, ThatAbortsLeavesItsStackToo) {
  Arena arena = make_arena(1);

  Processes ranks(1, [&](int rank) {
    install_crash_handler(arena, rank);
    std::abort();
  });

  EXPECT_EQ(ranks.join()[0], "killed by signal 6");
  const auto report = crash_report(arena, 0);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->signal, SIGABRT);
  EXPECT_FALSE(report->frames.empty());
}
#endif

}  // namespace
}  // namespace troupe::comm

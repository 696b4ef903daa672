// What facts about a machine mean. Each finding against facts that were written down by hand.
#include "launcher/doctor.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace troupe::launcher {
namespace {

using Level = Finding::Level;

// A machine on which there is nothing to find.
MachineFacts fine() {
  MachineFacts facts;
  facts.isa = "avx512";
  facts.cores = 8;
  facts.memory_bytes = size_t{64} << 30;
  facts.available_bytes = size_t{60} << 30;
  facts.huge_pages = "madvise";
  facts.shared_huge_pages = "advise";
  return facts;
}

constexpr LaunchNeeds kSmall{.ranks = 4, .memory_bytes = size_t{8} << 30, .mapped_bytes = 1 << 30};

// The findings that are not fine.
std::vector<Finding> trouble(const MachineFacts& facts, const LaunchNeeds& needs = kSmall) {
  std::vector<Finding> findings = examine(facts, needs);
  std::erase_if(findings, [](const Finding& finding) { return finding.level == Level::kOk; });
  return findings;
}

void expect_one(const std::vector<Finding>& found, Level level, const std::string& subject,
                const std::string& part) {
  ASSERT_EQ(found.size(), 1u) << findings_text(found);
  EXPECT_EQ(found[0].level, level);
  EXPECT_EQ(found[0].subject, subject);
  EXPECT_NE(found[0].text.find(part), std::string::npos) << found[0].text;
  EXPECT_NE(found[0].cure, "");
}

TEST(Doctor, FindsNothingOnAMachineThatIsFine) {
  EXPECT_EQ(findings_text(trouble(fine())), "");
  EXPECT_EQ(findings_text(trouble(fine(), {})), "");
}

TEST(Doctor, FindsWhatMakesLaunchesSlow) {
  MachineFacts facts = fine();
  facts.faster_isas = {"avx512_bf16"};
  expect_one(trouble(facts), Level::kSlow, "CPU", "this CPU has avx512_bf16");
  facts = fine();
  facts.isa = "scalar";
  expect_one(trouble(facts), Level::kSlow, "CPU", "no AVX2");
  facts = fine();
  facts.cpu_quota_cores = 1.5;
  expect_one(trouble(facts), Level::kSlow, "cores", "1.5 of 8 cores");
  facts = fine();
  facts.cores = 2;
  expect_one(trouble(facts), Level::kSlow, "cores", "4 ranks with 1 threads each share 2 cores");
  facts = fine();
  facts.huge_pages = "never";
  expect_one(trouble(facts), Level::kSlow, "huge pages", "a quarter slower");
  facts = fine();
  facts.shared_huge_pages = "never";
  expect_one(trouble(facts), Level::kSlow, "huge pages", "weights that ranks share");
}

TEST(Doctor, FindsWhatKeepsALaunchFromRunning) {
  MachineFacts facts = fine();
  facts.memory_bytes = size_t{4} << 30;
  facts.available_bytes.reset();
  expect_one(trouble(facts), Level::kProblem, "memory", "need 8.00 GiB, there are 4.00 GiB");
  facts = fine();
  facts.available_bytes = size_t{6} << 30;
  expect_one(trouble(facts), Level::kProblem, "memory", "6.00 GiB of 64.00 GiB are free now");
  facts = fine();
  facts.overcommit = 2;
  expect_one(trouble(facts), Level::kProblem, "memory", "vm.overcommit_memory is 2");
  facts = fine();
  facts.open_files = 47;
  expect_one(trouble(facts), Level::kProblem, "limits", "4 ranks need 48 open files");
  facts = fine();
  facts.address_space = 1 << 29;
  expect_one(trouble(facts), Level::kProblem, "limits", "need 1.00 GiB of address space each");
  facts = fine();
  facts.processes = 15;
  expect_one(trouble(facts), Level::kProblem, "limits", "need 16 processes and threads");
  facts = fine();
  facts.group_processes = 15;
  expect_one(trouble(facts), Level::kProblem, "limits", "pids.max is 15");
  facts = fine();
  facts.refused_call = "pidfd_open: Function not implemented";
  expect_one(trouble(facts), Level::kProblem, "system calls", "pidfd_open");
}

TEST(Limits, ThatJustDoAreNotRefused) {
  MachineFacts facts = fine();
  facts.open_files = 48;
  facts.address_space = 1 << 30;
  facts.processes = facts.group_processes = 16;

  EXPECT_NO_THROW(require_limits(kSmall, facts));
}

TEST(MachineFacts, OfThisMachineArePlausible) {
  const MachineFacts facts = read_machine_facts();

  EXPECT_GE(facts.cores, 1);
  EXPECT_GT(facts.memory_bytes, size_t{64} << 20);
  EXPECT_GE(facts.numa_nodes, 1);
  EXPECT_EQ(facts.refused_call, "");
  EXPECT_FALSE(facts.isa.empty());
}

}  // namespace
}  // namespace troupe::launcher

#include "launcher/doctor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "launcher/layout_table.h"

namespace troupe::launcher {
namespace {

using Level = Finding::Level;

std::string size_text(uint64_t bytes) { return bytes_text(static_cast<double>(bytes)); }

class Examination {
 public:
  Examination(const MachineFacts& facts, const LaunchNeeds& needs) : facts_(facts), needs_(needs) {}

  std::vector<Finding> findings() {
    check_cpu();
    check_cores();
    check_memory();
    check_limits();
    check_pages();
    check_numa();
    check_shared_memory();
    return std::move(findings_);
  }

 private:
  void ok(const char* subject, std::string text) {
    findings_.push_back({Level::kOk, subject, std::move(text), ""});
  }
  void slow(const char* subject, std::string text, std::string cure) {
    findings_.push_back({Level::kSlow, subject, std::move(text), std::move(cure)});
  }
  void problem(const char* subject, std::string text, std::string cure) {
    findings_.push_back({Level::kProblem, subject, std::move(text), std::move(cure)});
  }

  void check_cpu() {
    if (!facts_.faster_isas.empty())
      return slow("CPU",
                  fmt::format("kernels use {}, this CPU has {}", facts_.isa,
                              fmt::join(facts_.faster_isas, ", ")),
                  "unset TROUPE_ISA");
    if (facts_.isa == "scalar")
      return slow("CPU", "kernels use plain loops: this CPU has no AVX2",
                  "use a CPU with AVX2 or AVX-512; results are the same, many times slower here");
    ok("CPU", fmt::format("kernels use {}", facts_.isa));
  }

  void check_cores() {
    if (facts_.cpu_quota_cores && *facts_.cpu_quota_cores < facts_.cores)
      slow("cores",
           fmt::format("the container may use {:.1f} of {} cores: threads are stopped when that is "
                       "used up, and others wait for them",
                       *facts_.cpu_quota_cores, facts_.cores),
           "give it whole cores (--cpuset-cpus) instead of a quota (--cpus)");
    const int threads = needs_.ranks * needs_.threads_per_rank;
    if (threads > facts_.cores)
      return slow("cores",
                  fmt::format("{} ranks with {} threads each share {} cores and take turns",
                              needs_.ranks, needs_.threads_per_rank, facts_.cores),
                  "fine for looking at a layout; for speed use as many threads as cores");
    ok("cores", fmt::format("{} to run on", facts_.cores));
  }

  void check_memory() {
    const size_t all = facts_.memory_bytes;
    if (needs_.memory_bytes > all)
      problem("memory",
              fmt::format("the ranks need {}, there are {}", size_text(needs_.memory_bytes),
                          size_text(all)),
              "see troupe check: fewer sequences, shorter prompts, a smaller weight_format");
    else if (facts_.available_bytes && needs_.memory_bytes > *facts_.available_bytes)
      problem(
          "memory",
          fmt::format("the ranks need {}, {} of {} are free now", size_text(needs_.memory_bytes),
                      size_text(*facts_.available_bytes), size_text(all)),
          "end other programs, or see troupe check");
    else
      ok("memory", fmt::format("{}{}", size_text(all),
                               facts_.available_bytes
                                   ? fmt::format(", {} free", size_text(*facts_.available_bytes))
                                   : ""));
    if (facts_.overcommit == 2)
      problem("memory",
              "vm.overcommit_memory is 2: windows that are mapped and never touched count",
              "sysctl vm.overcommit_memory=0, or a smaller runtime_config.comm_buffer_mb");
  }

  void check_limits() {
    // Without a configuration: those of a launch with 128 ranks.
    LaunchNeeds needs = needs_;
    if (needs.ranks == 0) needs.ranks = 128;
    try {
      require_limits(needs, facts_);
      ok("limits",
         fmt::format("open files, processes and address space do for {} ranks", needs.ranks));
    } catch (const UserError& error) {
      const std::string text = error.what();
      const size_t cure = text.find("; ");
      findings_.push_back({needs_.ranks > 0 ? Level::kProblem : Level::kSlow, "limits",
                           text.substr(0, cure), text.substr(cure + 2)});
    }
    if (!facts_.refused_call.empty())
      problem(
          "system calls", fmt::format("one is refused: {}", facts_.refused_call),
          "use Linux 5.4 or newer and a seccomp profile that allows memfd_create, pidfd_open and "
          "Unix sockets");
  }

  void check_pages() {
    if (facts_.huge_pages.empty() || facts_.huge_pages == "never")
      return slow("huge pages", "weights lie in pages of 4 KiB: reading them is a quarter slower",
                  "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
    if (facts_.shared_huge_pages == "never" || facts_.shared_huge_pages == "deny")
      return slow("huge pages", "weights that ranks share lie in pages of 4 KiB",
                  "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled");
    ok("huge pages", facts_.huge_pages);
  }

  void check_numa() {
    if (facts_.numa_nodes == 1) return ok("NUMA", "one node");
    ok("NUMA", fmt::format("{} nodes: a rank for each, runtime_config.pin: True and as many "
                           "threads_per_rank as a node has cores keep reads local",
                           facts_.numa_nodes));
  }

  void check_shared_memory() {
    ok("shared memory",
       fmt::format("anonymous (memfd): the size of /dev/shm ({}), leftovers there and RemoveIPC "
                   "do not matter{}",
                   facts_.shm_free_bytes ? size_text(*facts_.shm_free_bytes) + " free" : "none",
                   facts_.in_container ? "; it counts as the container's memory" : ""));
  }

  const MachineFacts& facts_;
  const LaunchNeeds& needs_;
  std::vector<Finding> findings_;
};

}  // namespace

std::vector<Finding> examine(const MachineFacts& facts, const LaunchNeeds& needs) {
  return Examination(facts, needs).findings();
}

std::string findings_text(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& finding : findings) {
    const char* level = finding.level == Level::kOk     ? "ok"
                        : finding.level == Level::kSlow ? "slow"
                                                        : "PROBLEM";
    text += fmt::format("{:<8} {:<14} {}\n", level, finding.subject, finding.text);
    if (!finding.cure.empty()) text += fmt::format("{:<23} cure: {}\n", "", finding.cure);
  }
  return text;
}

}  // namespace troupe::launcher

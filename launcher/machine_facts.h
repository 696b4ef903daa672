// launcher/machine_facts.h: what the system allows a launch, and how much of it a launch needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace troupe::launcher {

// Limits without a bound, and what the system does not say, are nothing.
struct MachineFacts {
  std::string isa;                        // the instruction-set path in use
  std::vector<std::string> faster_isas;   // what it could use (TROUPE_ISA holds it back)
  int cores = 1;                          // this process may run on
  std::optional<double> cpu_quota_cores;  // of its control group
  size_t memory_bytes = 0;                // of the machine, or of its control group
  std::optional<size_t> available_bytes;  // now, without swapping
  std::optional<uint64_t> open_files, processes, address_space;  // RLIMIT_NOFILE, _NPROC, _AS
  std::optional<uint64_t> group_processes;                       // pids.max
  int overcommit = 0;                                            // vm.overcommit_memory
  std::string huge_pages,
      shared_huge_pages;  // "always", "madvise", "never", "advise", ...; "": unknown
  int numa_nodes = 1;
  std::optional<uint64_t> shm_free_bytes;  // of /dev/shm
  bool in_container = false;
  std::string
      refused_call;  // a system call that a launch needs and that fails here, with its error
};
MachineFacts read_machine_facts();

struct LaunchNeeds {
  int ranks = 0, threads_per_rank = 1;
  size_t memory_bytes = 0;          // all ranks together
  size_t mapped_bytes = 0;          // address space of the process that maps most
  uint64_t launcher_files() const;  // open files of the launcher
  uint64_t processes() const;       // and threads
};

// What a rank maps at most, while it loads.
struct RankMappings {
  size_t arena = 0;         // whole, with the rings of a trace
  size_t weights = 0;       // its own and those shared
  size_t weight_files = 0;  // of the checkpoint, mapped while weights are packed
  size_t buffers = 0;       // KV cache, observations, activations
  int threads = 1;          // that compute
  // With code, libraries, and a stack and a heap for each thread.
  size_t address_space() const;
};

// UserError, with what is needed and what is there, where the limits of this process make the
// launch impossible: before any rank is started.
void require_limits(const LaunchNeeds& needs, const MachineFacts& facts);

}  // namespace troupe::launcher

#include "launcher/machine_facts.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/memory.h"
#include "launcher/layout_table.h"
#include "launcher/rank_memory.h"
#include "layers/isa.h"

namespace troupe::launcher {
namespace {

namespace fs = std::filesystem;

// Of the launcher: standard streams, shared memory and its copies, poll sets, ZeroMQ's own.
constexpr uint64_t kLauncherFiles = 40;
constexpr uint64_t kFilesPerRank = 2;  // a pidfd and a ZeroMQ connection
// Address space, hardly any of it memory: code, libraries and the first heap; glibc's heap of a
// thread (64 MiB, placed inside twice as much). A stack has the size of RLIMIT_STACK.
constexpr size_t kProgramBytes = size_t{128} << 20;
constexpr size_t kThreadHeapBytes = size_t{64} << 20, kUsualStackBytes = size_t{8} << 20;
constexpr uint64_t kOtherThreads = 3;  // of a rank, beside its compute threads: ZeroMQ's

std::optional<uint64_t> limit(int resource) {
  rlimit limit{};
  if (::getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return std::nullopt;
  return limit.rlim_cur;
}

// The first number of a file; nothing for "max", and where there is no such file.
std::optional<uint64_t> number_in(const fs::path& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? std::optional(value) : std::nullopt;
}

// The word in brackets: "always [madvise] never".
std::string choice_in(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  const size_t open = line.find('['), close = line.find(']');
  return close == std::string::npos || open > close ? "" : line.substr(open + 1, close - open - 1);
}

std::optional<double> cpu_quota() {
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (v2 >> quota >> period && period > 0) return quota / period;
  const auto us = number_in("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  const auto of = number_in("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  if (us && of && *of > 0) return static_cast<double>(*us) / static_cast<double>(*of);
  return std::nullopt;
}

std::optional<size_t> available_memory() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("MemAvailable:")) return std::stoull(line.substr(13)) << 10;
  return std::nullopt;
}

int numa_nodes() {
  int nodes = 0;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator("/sys/devices/system/node", none)) {
    const std::string name = entry.path().filename();
    nodes += name.size() > 4 && name.starts_with("node") &&
             name.find_first_not_of("0123456789", 4) == std::string::npos;
  }
  return std::max(nodes, 1);
}

// Sandboxes and old kernels refuse some of these.
std::string refused_call() {
  try {
    const Fd memory = create_shared_memory("troupe-doctor", 4096);
    const Mapping mapping(memory.get(), 4096, Mapping::Access::kReadWrite);
  } catch (const std::exception& error) {
    return error.what();
  }
  const Fd self(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  if (!self) return errno_text("pidfd_open");
  const Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket) return errno_text("socket(AF_UNIX)");
  return "";
}

}  // namespace

MachineFacts read_machine_facts() {
  MachineFacts facts;
  const layers::Isa isa = layers::active_isa();
  facts.isa = layers::isa_name(isa);
  for (const layers::Isa other : layers::supported_isas())
    if (other > isa) facts.faster_isas.emplace_back(layers::isa_name(other));
  cpu_set_t cores;
  if (::sched_getaffinity(0, sizeof(cores), &cores) == 0) facts.cores = CPU_COUNT(&cores);
  facts.cpu_quota_cores = cpu_quota();
  facts.memory_bytes = machine_bytes();
  facts.available_bytes = available_memory();
  facts.open_files = limit(RLIMIT_NOFILE);
  if (::geteuid() != 0) facts.processes = limit(RLIMIT_NPROC);  // root is not bound by it
  facts.address_space = limit(RLIMIT_AS);
  facts.group_processes = number_in("/sys/fs/cgroup/pids.max");
  if (!facts.group_processes) facts.group_processes = number_in("/sys/fs/cgroup/pids/pids.max");
  facts.overcommit = static_cast<int>(number_in("/proc/sys/vm/overcommit_memory").value_or(0));
  facts.huge_pages = choice_in("/sys/kernel/mm/transparent_hugepage/enabled");
  facts.shared_huge_pages = choice_in("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  facts.numa_nodes = numa_nodes();
  struct statvfs shm {};
  if (::statvfs("/dev/shm", &shm) == 0) facts.shm_free_bytes = shm.f_bavail * shm.f_frsize;
  facts.in_container = fs::exists("/.dockerenv") || fs::exists("/run/.containerenv");
  facts.refused_call = refused_call();
  return facts;
}

size_t RankMappings::address_space() const {
  const size_t stack = limit(RLIMIT_STACK).value_or(kUsualStackBytes);
  return arena + weights + weight_files + buffers + kProgramBytes + kThreadHeapBytes +
         (static_cast<size_t>(threads) + kOtherThreads) * (kThreadHeapBytes + stack);
}

uint64_t LaunchNeeds::launcher_files() const {
  return kLauncherFiles + kFilesPerRank * static_cast<uint64_t>(ranks);
}

uint64_t LaunchNeeds::processes() const {
  return static_cast<uint64_t>(ranks) * (static_cast<uint64_t>(threads_per_rank) + kOtherThreads);
}

void require_limits(const LaunchNeeds& needs, const MachineFacts& facts) {
  if (facts.open_files && *facts.open_files < needs.launcher_files())
    throw_user_error(
        "{} ranks need {} open files, the limit (RLIMIT_NOFILE) is {}; raise it with ulimit -n {}, "
        "or use fewer ranks",
        needs.ranks, needs.launcher_files(), *facts.open_files, needs.launcher_files());
  if (facts.address_space && *facts.address_space < needs.mapped_bytes)
    throw_user_error(
        "{} ranks need {} of address space each, the limit (RLIMIT_AS) is {}; raise it with "
        "ulimit -v unlimited, or make runtime_config.comm_buffer_mb smaller",
        needs.ranks, bytes_text(static_cast<double>(needs.mapped_bytes)),
        bytes_text(static_cast<double>(*facts.address_space)));
  if (facts.processes && *facts.processes < needs.processes())
    throw_user_error(
        "{} ranks need {} processes and threads, the limit (RLIMIT_NPROC) is {}; raise it with "
        "ulimit -u, or use fewer ranks",
        needs.ranks, needs.processes(), *facts.processes);
  if (facts.group_processes && *facts.group_processes < needs.processes())
    throw_user_error(
        "{} ranks need {} processes and threads, the container's pids.max is {}; start it with "
        "--pids-limit {}, or use fewer ranks",
        needs.ranks, needs.processes(), *facts.group_processes, 2 * needs.processes());
}

}  // namespace troupe::launcher

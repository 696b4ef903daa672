// `troupe bench collectives`: how long each collective takes, beside bench/peer_mpi_collectives.cc.
//
//   GB/s of allreduce, broadcast  = buffer bytes / time
//   GB/s of allgather, alltoall, reduce_scatter = bytes of the larger buffer of a rank / time
//   GB/s of alltoallv             = bytes received by the busiest rank, its own included / time
//
// "blocked" is no time but the CPU time of all ranks together while they wait in a barrier for the
// last one, in microseconds per second.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <ctime>
#include <memory>
#include <numeric>
#include <thread>

#include "base/error.h"
#include "launcher/bench_command.h"
#include "launcher/bench_routing.h"
#include "launcher/bench_rows.h"

namespace troupe::launcher {
namespace {

constexpr size_t kKiB = 1024;
constexpr size_t kReduced[] = {14 * kKiB, 112 * kKiB, 1024 * kKiB, 4096 * kKiB, 16384 * kKiB};
constexpr size_t kGathered[] = {14 * kKiB, 112 * kKiB, 1024 * kKiB, 4096 * kKiB};  // of one rank

constexpr int kBlockedRounds = 5;

// The rows of one rank; rank 0 reports them.
class CollectivesBench {
 public:
  CollectivesBench(comm::Communicator& communicator, double seconds, std::string& report)
      : group_(communicator, 0, world(communicator)), seconds_(seconds), report_(report) {}

  void barrier() {
    add("barrier", "", 0, [&] { group_.barrier(); });
  }

  void broadcast() {
    for (const size_t bytes : kReduced) {
      std::vector<std::byte> data(bytes, std::byte(group_.rank()));
      group_.broadcast(data, group_.size() - 1);
      require(data.back() == std::byte(group_.size() - 1));
      add("broadcast", "", bytes, [&] { group_.broadcast(data, 0); });
    }
  }

  void blocked() {
    std::vector<double> used(kBlockedRounds);
    for (double& us_per_second : used) {
      group_.barrier();
      const double before = cpu_us();
      if (group_.rank() == 0) std::this_thread::sleep_for(std::chrono::duration<double>(seconds_));
      group_.barrier();
      std::vector<float> sum{static_cast<float>(cpu_us() - before)};
      group_.all_reduce(std::span(sum));
      us_per_second = sum[0] / seconds_;
    }
    std::sort(used.begin(), used.end());
    append_row(report_, {.op = "blocked",
                         .ranks = group_.size(),
                         .op_case = "cpu us per s",
                         .bytes = 0,
                         .times = {used.front(), used[kBlockedRounds / 2], used.back()}});
  }

  template <class T>
  void all_reduce(const char* op, const char* op_case) {
    for (const size_t bytes : kReduced) {
      std::vector<T> data(bytes / sizeof(T), number<T>(group_.rank() + 1));
      group_.all_reduce(std::span(data));
      const T sum = number<T>(group_.size() * (group_.size() + 1) / 2);
      require(std::memcmp(&data.back(), &sum, sizeof(T)) == 0);
      std::fill(data.begin(), data.end(), T{});  // sums of sums would overflow
      add(op, op_case, bytes, [&] { group_.all_reduce(std::span(data)); });
    }
  }

  void reduce_scatter() {
    for (const size_t bytes : kReduced) {
      const size_t part = bytes / sizeof(float) / group_.size();
      std::vector<float> data(part * group_.size(), 1), sum(part);
      const auto call = [&] {
        group_.reduce_scatter(std::span<const float>(data), std::span(sum));
      };
      call();
      require(sum.empty() || sum.back() == static_cast<float>(group_.size()));
      add("reduce_scatter fp32", "", data.size() * sizeof(float), call);
    }
  }

  void all_gather() {
    for (const size_t bytes : kGathered) {
      std::vector<std::byte> in(bytes, std::byte(group_.rank())), out(bytes * group_.size());
      const auto call = [&] { group_.all_gather(in, out); };
      call();
      require(out.back() == std::byte(group_.size() - 1));
      add("allgather", per_rank(bytes), out.size(), call);
    }
  }

  void all_to_all() {
    for (const size_t bytes : kGathered) {
      std::vector<std::byte> in(bytes * group_.size(), std::byte(group_.rank())), out(in.size());
      const auto call = [&] { group_.all_to_all(in, out); };
      call();
      require(out.back() == std::byte(group_.size() - 1));
      add("alltoall", per_rank(bytes), out.size(), call);
    }
  }

  void all_to_all_v() {
    for (const int tokens : kBenchTokens)
      for (const Routing routing : {Routing::kUniform, Routing::kSkewed})
        all_to_all_v(tokens, routing);
  }

 private:
  static std::vector<int> world(const comm::Communicator& communicator) {
    std::vector<int> ranks(communicator.world_size());
    std::iota(ranks.begin(), ranks.end(), 0);
    return ranks;
  }

  static double cpu_us() {
    timespec time{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_nsec) * 1e-3;
  }

  template <class T>
  static T number(int value) {
    if constexpr (std::is_same_v<T, Bf16>)
      return to_bf16(static_cast<float>(value));
    else
      return static_cast<T>(value);
  }

  static std::string per_rank(size_t bytes) { return fmt::format("{} KiB/rank", bytes / kKiB); }

  static void require(bool correct) { TROUPE_CHECK(correct, "a collective has a wrong result"); }

  void all_to_all_v(int tokens, Routing routing) {
    constexpr int64_t kRow = kBenchHidden * sizeof(Bf16);
    const int size = group_.size();
    std::vector<int64_t> sent = rows_to_ranks(group_, tokens, routing), received(size);
    group_.all_to_all(std::as_bytes(std::span(sent)), std::as_writable_bytes(std::span(received)));
    int64_t in_rows = 0, out_rows = 0;
    std::vector<int64_t> send_displs(size), recv_displs(size);
    for (int r = 0; r < size; ++r) {
      send_displs[r] = kRow * std::exchange(in_rows, in_rows + sent[r]);
      recv_displs[r] = kRow * std::exchange(out_rows, out_rows + received[r]);
      sent[r] *= kRow;
      received[r] *= kRow;
    }
    std::vector<int64_t> rows_of_all(size);
    group_.all_gather(std::as_bytes(std::span(&out_rows, 1)),
                      std::as_writable_bytes(std::span(rows_of_all)));
    std::vector<std::byte> in(in_rows * kRow, std::byte{1}), out(out_rows * kRow);
    const auto call = [&] {
      group_.all_to_all_v(in, out, {sent, send_displs, received, recv_displs});
    };
    call();
    require(std::count(out.begin(), out.end(), std::byte{1}) == out_rows * kRow);
    add("alltoallv", routing_case(tokens, routing),
        static_cast<size_t>(*std::max_element(rows_of_all.begin(), rows_of_all.end()) * kRow),
        call);
  }

  void add(const std::string& op, const std::string& op_case, size_t bytes,
           const std::function<void()>& call) {
    append_row(report_, {.op = op,
                         .ranks = group_.size(),
                         .op_case = op_case,
                         .bytes = static_cast<double>(bytes),
                         .times = measure_collective(group_, seconds_, call)});
  }

  comm::ProcessGroup group_;
  double seconds_;
  std::string& report_;
};

struct Op {
  const char* name;
  void (*run)(CollectivesBench&);
};

constexpr Op kOps[] = {
    {"barrier", [](CollectivesBench& bench) { bench.barrier(); }},
    {"allreduce fp32",
     [](CollectivesBench& bench) { bench.all_reduce<float>("allreduce fp32", ""); }},
    {"allreduce bf16",
     [](CollectivesBench& bench) { bench.all_reduce<Bf16>("allreduce bf16", "user op"); }},
    {"allgather", [](CollectivesBench& bench) { bench.all_gather(); }},
    {"alltoallv", [](CollectivesBench& bench) { bench.all_to_all_v(); }},
    {"broadcast", [](CollectivesBench& bench) { bench.broadcast(); }},
    {"reduce_scatter fp32", [](CollectivesBench& bench) { bench.reduce_scatter(); }},
    {"alltoall", [](CollectivesBench& bench) { bench.all_to_all(); }},
    {"blocked", [](CollectivesBench& bench) { bench.blocked(); }},
};

// "all", or names of kOps.
std::vector<const Op*> chosen_ops(const std::vector<std::string>& names) {
  std::vector<const Op*> chosen;
  std::string known;
  for (const Op& op : kOps) {
    known += fmt::format(", {}", op.name);
    const bool wanted = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      return name == "all" || name == op.name;
    });
    if (wanted) chosen.push_back(&op);
  }
  for (const std::string& name : names)
    if (name != "all" && std::none_of(std::begin(kOps), std::end(kOps),
                                      [&](const Op& op) { return name == op.name; }))
      throw_user_error("bench collectives --ops: {} is unknown; write all{}", name, known);
  return chosen;
}

}  // namespace

void add_bench_collectives(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand("collectives", "the collectives between rank processes");
  const auto arguments = std::make_shared<BenchArguments>();
  add_bench_options(*command, *arguments);
  command->callback([arguments] {
    const auto ops = chosen_ops(arguments->ops);
    run_bench(*arguments, [&](comm::Communicator& communicator, std::string& report) {
      CollectivesBench rows(communicator, arguments->seconds, report);
      for (const Op* op : ops) op->run(rows);
    });
  });
}

}  // namespace troupe::launcher

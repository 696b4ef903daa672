// launcher/bench_rows.h: the rows of `troupe bench collectives` and `troupe bench moe`.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "launcher/bench_ranks.h"

namespace CLI {
class App;
}

namespace troupe::launcher {

struct BenchArguments {
  std::vector<int> ranks;        // --ranks: one launch for each
  std::vector<std::string> ops;  // --ops, {"all"} for all
  double seconds = 0.3;          // --seconds a row
  std::filesystem::path json;    // --json
  bool huge_windows = false;     // --comm-hugepages
};
void add_bench_options(CLI::App& command, BenchArguments& arguments);

// `op` and `op_case` are spelled as bench/peer_mpi_collectives.cc spells them, so that rows of both
// can be joined.
struct BenchRow {
  std::string op;
  int ranks = 0;
  std::string op_case;
  double bytes = 0;  // 0: none, no bandwidth
  BenchTimes times;
};

// A rank's report (launcher/bench_ranks.h) as rows, and back.
void append_row(std::string& report, const BenchRow& row);
std::vector<BenchRow> rows_of(const std::string& report);

void print_header();
void print_row(const BenchRow& row);
// {"rows": [{op, ranks, case, bytes, p10_us, p50_us, p90_us, gb_per_s}]}; gb_per_s is bytes / p50,
// null without bytes.
void write_rows(const std::filesystem::path& path, const std::vector<BenchRow>& rows);

// Runs `body` on each number of ranks, prints the rows that rank 0 reports and writes --json.
void run_bench(const BenchArguments& arguments, const BenchBody& body);

}  // namespace troupe::launcher

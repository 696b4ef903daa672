#include "launcher/bench_rows.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/output_path.h"
#include "launcher/report.h"

namespace troupe::launcher {
namespace {

constexpr int kMaxRanks = 1024;
constexpr size_t kWindowBytes = size_t{16} << 20;  // the default of runtime_config.comm_buffer_mb
constexpr std::chrono::seconds kTimeout{30};

nlohmann::json json_of(const BenchRow& row) {
  nlohmann::json json{{"op", row.op},
                      {"ranks", row.ranks},
                      {"case", row.op_case},
                      {"bytes", row.bytes},
                      {"p10_us", row.times.p10_us},
                      {"p50_us", row.times.p50_us},
                      {"p90_us", row.times.p90_us},
                      {"gb_per_s", nullptr}};
  if (row.bytes > 0) json["gb_per_s"] = row.bytes / row.times.p50_us * 1e-3;
  return json;
}

}  // namespace

void add_bench_options(CLI::App& command, BenchArguments& arguments) {
  command.add_option("--ranks", arguments.ranks, "numbers of ranks")
      ->delimiter(',')
      ->default_val(std::vector<int>{2, 4, 8});
  command.add_option("--ops", arguments.ops, "all, or operations as in the first column")
      ->delimiter(',')
      ->default_val(std::vector<std::string>{"all"});
  command.add_option("--seconds", arguments.seconds, "to spend on a row")->default_val(0.3);
  command.add_option("--json", arguments.json, "write the rows to this file");
  command.add_flag("--comm-hugepages", arguments.huge_windows,
                   "ask for huge pages for the windows, as runtime_config.comm_hugepages does");
}

void append_row(std::string& report, const BenchRow& row) { report += json_of(row).dump() + "\n"; }

std::vector<BenchRow> rows_of(const std::string& report) {
  std::vector<BenchRow> rows;
  for (size_t begin = 0; begin < report.size();) {
    const size_t end = report.find('\n', begin);
    const auto json = nlohmann::json::parse(report.substr(begin, end - begin));
    rows.push_back({.op = json["op"],
                    .ranks = json["ranks"],
                    .op_case = json["case"],
                    .bytes = json["bytes"],
                    .times = {json["p10_us"], json["p50_us"], json["p90_us"]}});
    begin = end + 1;
  }
  return rows;
}

void print_header() {
  fmt::print("{:>5} {:<22} {:<18} {:>12} {:>11} {:>11} {:>11} {:>9}\n", "ranks", "operation",
             "argument", "bytes", "median us", "p10 us", "p90 us", "GB/s");
}

void print_row(const BenchRow& row) {
  const std::string gb_per_s =
      row.bytes > 0 ? fmt::format("{:.2f}", row.bytes / row.times.p50_us * 1e-3) : "-";
  fmt::print("{:>5} {:<22} {:<18} {:>12.0f} {:>11.2f} {:>11.2f} {:>11.2f} {:>9}\n", row.ranks,
             row.op, row.op_case, row.bytes, row.times.p50_us, row.times.p10_us, row.times.p90_us,
             gb_per_s);
  std::fflush(stdout);
}

void write_rows(const std::filesystem::path& path, const std::vector<BenchRow>& rows) {
  nlohmann::json list = nlohmann::json::array();
  for (const BenchRow& row : rows) list.push_back(json_of(row));
  write_json_file(path, {{"rows", list}});
}

void run_bench(const BenchArguments& arguments, const BenchBody& body) {
  for (const int ranks : arguments.ranks)
    if (ranks < 1 || ranks > kMaxRanks)
      throw_user_error("bench --ranks: {} is not in 1 .. {}", ranks, kMaxRanks);
  if (!(arguments.seconds > 0 && arguments.seconds <= 60))
    throw_user_error("bench --seconds: {} is not in (0, 60]", arguments.seconds);
  if (!arguments.json.empty()) require_output_path(arguments.json);
  std::vector<BenchRow> rows;
  print_header();
  for (const int ranks : arguments.ranks) {
    const auto reports = run_bench_ranks({.world_size = ranks,
                                          .comm_buffer_bytes = kWindowBytes,
                                          .huge_windows = arguments.huge_windows},
                                         kTimeout, body);
    for (const BenchRow& row : rows_of(reports[0])) {
      print_row(row);
      rows.push_back(row);
    }
  }
  if (!arguments.json.empty()) write_rows(arguments.json, rows);
}

}  // namespace troupe::launcher

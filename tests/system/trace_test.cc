// Traces of whole runs: the files by the letter of the Chrome trace format, their sums against the
// report's, and the page in a browser.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <set>

#include "tests/system/jobs.h"

namespace troupe::system_tests {
namespace {

namespace fs = std::filesystem;

constexpr int kWorld = 4;
constexpr int kMaxNewTokens = 12;

fs::path rank_file(const fs::path& directory, int rank) {
  return directory / ("rank-" + std::to_string(rank) + ".trace.json");
}

json read_json(const fs::path& path) { return json::parse(model::read_file(path)); }

// One run with a trace, for all tests of it.
struct TracedRun {
  model::TemporaryDirectory directory;
  json report;
  std::vector<json> ranks;
  json launcher;

  fs::path path() const { return directory.path() / "trace"; }

  TracedRun() {
    json config = configuration(tiny_moe(), kWorld, "bfloat16");
    config["model_config"]["next_n"] = 1;
    config["scheduler_config"] = {{"batch_size", 8}, {"max_new_tokens", kMaxNewTokens}};
    const std::string report_path = directory.path() / "report.json";
    auto words = command_line("run", config, {{0, 5, 6, 7}, {0, 9}, {0, 11, 12}, {0, 3}, {0, 30}},
                              directory);
    words.insert(words.end(), {"--ignore-eos", "--json", report_path, "--trace", path()});
    const Ended ended = run_troupe(words);
    if (ended.status != 0 || !ended.err.empty()) throw std::runtime_error(ended.err);
    report = read_json(report_path);
    for (int rank = 0; rank < kWorld; ++rank) ranks.push_back(read_json(rank_file(path(), rank)));
    launcher = read_json(path() / "launcher.trace.json");
  }
};

const TracedRun& traced_run() {
  static const TracedRun run;
  return run;
}

int64_t nanoseconds(const json& event, const char* key) {
  return std::llround(event.at(key).get<double>() * 1000);
}

// What a reader of the format may rely on, event by event.
void expect_chrome_trace(const json& trace) {
  static const std::map<std::string, std::set<std::string>> kKeys = {
      {"M", {"ph", "name", "pid", "args"}},
      {"X", {"ph", "name", "cat", "pid", "tid", "ts", "dur", "args"}},
      {"s", {"ph", "name", "cat", "pid", "tid", "ts", "id", "args"}},
      {"f", {"ph", "name", "cat", "pid", "tid", "ts", "id", "bp", "args"}},
      {"C", {"ph", "name", "pid", "tid", "ts", "args"}}};
  std::set<json> named_threads, named_processes;
  std::map<json, std::vector<int64_t>> around;  // by thread: ends of the open spans
  std::map<json, int64_t> last_start;
  for (const json& event : trace.at("traceEvents")) {
    std::set<std::string> keys;
    for (const auto& [key, value] : event.items()) keys.insert(key);
    const std::string phase = event.at("ph");
    if (phase == "M" && event.contains("tid")) keys.erase("tid");
    ASSERT_TRUE(kKeys.contains(phase)) << event;
    ASSERT_EQ(keys, kKeys.at(phase)) << event;
    ASSERT_GT(event.at("pid").get<int>(), 0);
    if (phase == "M") {
      if (event.at("name") == "thread_name") named_threads.insert(event.at("tid"));
      if (event.at("name") == "process_name") named_processes.insert(event.at("pid"));
      continue;
    }
    ASSERT_TRUE(named_processes.contains(event.at("pid"))) << event;
    ASSERT_TRUE(named_threads.contains(event.at("tid"))) << event;
    const int64_t start = nanoseconds(event, "ts");
    std::vector<int64_t>& ends = around[event.at("tid")];
    while (!ends.empty() && ends.back() <= start) ends.pop_back();
    if (phase == "X") {
      const int64_t end = start + nanoseconds(event, "dur");
      ASSERT_GE(start, last_start[event.at("tid")]) << "not in order: " << event;
      last_start[event.at("tid")] = start;
      if (!ends.empty()) {
        ASSERT_LE(end, ends.back()) << "overlaps the span around it: " << event;
      }
      ends.push_back(end);
    } else if (phase != "C") {
      ASSERT_FALSE(ends.empty()) << "an arrow that is tied to no span: " << event;
      ASSERT_TRUE(event.at("id").is_string());
    }
    for (const auto& [key, value] : event.at("args").items())
      ASSERT_TRUE(value.is_number()) << event;
  }
}

int64_t sum_of(const json& trace, const std::string& phase, const std::string& name,
               const std::string& argument) {
  int64_t sum = 0;
  for (const json& event : trace.at("traceEvents"))
    if (event.at("ph") == phase && event.at("name") == name)
      sum += argument == "dur" ? nanoseconds(event, "dur")
                               : event.at("args").value(argument, int64_t{0});
  return sum;
}

TEST(TraceOfARun, IsAChromeTrace) {
  for (const json& rank : traced_run().ranks) expect_chrome_trace(rank);
  expect_chrome_trace(traced_run().launcher);
}

TEST(TraceOfARun, HasATrackForEachActor) {
  std::set<std::string> tracks;
  for (const json& event : traced_run().ranks[2].at("traceEvents"))
    if (event.at("name") == "thread_name") tracks.insert(event.at("args").at("name"));
  EXPECT_EQ(tracks, (std::set<std::string>{"rank", "attention", "moe", "lm_head", "mtp"}));
  for (const json& event : traced_run().launcher.at("traceEvents"))
    if (event.at("name") == "thread_name") {
      EXPECT_EQ(event.at("args").at("name"), "scheduler");
    }
}

TEST(TraceOfARun, DrawsAnArrowFromEachDispatchToTheRanksThatReceived) {
  struct End {
    int rank;
    int64_t ns;
    json args;
  };
  std::map<std::string, End> sent, received;
  for (int rank = 0; rank < kWorld; ++rank)
    for (const json& event : traced_run().ranks[rank].at("traceEvents")) {
      if (event.at("ph") != "s" && event.at("ph") != "f") continue;
      auto& ends = event.at("ph") == "s" ? sent : received;
      const End end{rank, nanoseconds(event, "ts"), event.at("args")};
      EXPECT_TRUE(ends.emplace(event.at("id"), end).second) << "an id is used twice";
    }
  ASSERT_GT(sent.size(), 100u);
  ASSERT_EQ(sent.size(), received.size());
  for (const auto& [id, from] : sent) {
    ASSERT_TRUE(received.contains(id));
    const End& to = received.at(id);
    EXPECT_EQ(from.args.at("peer"), to.rank);
    EXPECT_EQ(to.args.at("peer"), from.rank);
    EXPECT_LE(from.ns, to.ns);
    for (const char* same : {"step", "layer", "tokens", "bytes"})
      EXPECT_EQ(from.args.at(same), to.args.at(same));
  }
}

TEST(TraceOfARun, CountsWhatTheReportCounts) {
  const json& figures = traced_run().report.at("metrics").at("ranks");
  for (int rank = 0; rank < kWorld; ++rank) {
    const json& trace = traced_run().ranks[rank];
    const json& other = trace.at("otherData");
    ASSERT_EQ(other.at("forgotten_events"), 0);
    EXPECT_EQ(other.at("rank"), rank);
    EXPECT_EQ(other.at("world_size"), kWorld);
    EXPECT_EQ(other.at("sent_bytes")[rank], 0);
    uint64_t bytes = 0;
    for (const json& to : other.at("sent_bytes")) bytes += to.get<uint64_t>();
    EXPECT_EQ(bytes, figures[rank].at("bytes_sent"));
    // A wait's span lies around the time that the report adds up.
    const double waited = static_cast<double>(sum_of(trace, "X", "wait", "dur")) * 1e-6;
    EXPECT_GE(waited, figures[rank].at("wait_ms").get<double>() * 0.999 - 0.01);
  }
}

TEST(TraceOfARun, CountsTheRowsOfExperts) {
  int64_t in_spans = 0, in_totals = 0, routed = 0;
  for (int rank = 0; rank < kWorld; ++rank) {
    const json& trace = traced_run().ranks[rank];
    in_spans += sum_of(trace, "X", "experts", "tokens");
    EXPECT_EQ(sum_of(trace, "X", "experts", "tokens"), sum_of(trace, "C", "expert_rows", "rows"));
    for (const json& layer : trace.at("otherData").at("expert_rows"))
      for (const json& rows : layer) in_totals += rows.get<int64_t>();
    routed += sum_of(trace, "X", "gate", "tokens");
  }
  const int64_t topk = read_json(tiny_moe() / "config.json").at("num_experts_per_tok");
  EXPECT_EQ(in_spans, in_totals);
  EXPECT_EQ(in_spans, routed * topk);
}

TEST(TraceOfARun, ShowsKvBlocksAndAcceptanceOverTime) {
  const json& outputs = traced_run().report.at("outputs");
  int64_t drafted = 0, accepted = 0;
  for (const json& output : outputs) {
    drafted += output.at("mtp").at("drafted").get<int64_t>();
    accepted += output.at("mtp").at("accepted").get<int64_t>();
  }
  EXPECT_EQ(sum_of(traced_run().launcher, "C", "drafted", "drafted"), drafted);
  EXPECT_EQ(sum_of(traced_run().launcher, "C", "accepted", "accepted"), accepted);
  int64_t peak = 0;
  for (const json& event : traced_run().launcher.at("traceEvents"))
    if (event.at("name") == "kv_blocks 1")
      peak = std::max(peak, event.at("args").at("kv_blocks").get<int64_t>());
  EXPECT_GE(peak, 1);
}

TEST(TraceOfARun, CanBeSummedUpAndMerged) {
  const std::string path = traced_run().path();
  const Ended summary = run_troupe({"--log-level", "error", "trace", "summary", path});
  EXPECT_EQ(summary.status, 0) << summary.err;
  for (const char* part : {"compute", "imbalance", "critical path of step", "experts"})
    EXPECT_NE(summary.out.find(part), std::string::npos) << part;

  const fs::path merged = traced_run().directory.path() / "merged.json";
  ASSERT_EQ(run_troupe({"trace", "merge", path, "--output", merged}).status, 0);
  const json trace = read_json(merged);
  expect_chrome_trace(trace);
  size_t events = traced_run().launcher.at("traceEvents").size();
  for (const json& rank : traced_run().ranks) events += rank.at("traceEvents").size();
  EXPECT_EQ(trace.at("traceEvents").size(), events);
}

TEST(TraceOfARun, OfTheProfilerKeyGoesToProf) {
  const model::TemporaryDirectory directory;
  json config = configuration(tiny_moe(), 1, "bfloat16");
  config["model_config"]["enable_profiler"] = true;
  config["model_config"]["model_path"] = fs::absolute(tiny_moe());
  const auto words = command_line("score", config, {{0, 5, 6}}, directory);
  const fs::path before = fs::current_path();
  fs::current_path(directory.path());
  const Ended ended = run_troupe(words);
  fs::current_path(before);

  EXPECT_EQ(ended.status, 0) << ended.err;
  expect_chrome_trace(read_json(directory.path() / "prof/rank-0.trace.json"));
}

TEST(TraceOfARun, OfADeadRankIsWritten) {
  const model::TemporaryDirectory directory;
  json config = configuration(tiny_moe(), 2, "bfloat16");
  config["scheduler_config"] = {{"batch_size", 2}, {"max_new_tokens", 100000}};
  auto words = command_line("run", config, {{0, 5, 6, 7}}, directory);
  words.insert(words.end(), {"--ignore-eos", "--trace", directory.path() / "trace"});
  TroupeProcess process(words);
  process.wait_until("tokens come", [&] { return process.out_so_far().size() > 40; });
  ::kill(process.rank_pid(1), SIGKILL);

  EXPECT_EQ(process.wait().status, 3);
  for (int rank = 0; rank < 2; ++rank) {
    const json trace = read_json(rank_file(directory.path() / "trace", rank));
    expect_chrome_trace(trace);
    EXPECT_GT(sum_of(trace, "X", "decode", "dur"), 0) << rank;
  }
  const Ended summary = run_troupe({"trace", "summary", directory.path() / "trace"});
  EXPECT_EQ(summary.status, 0) << summary.err;
}

TEST(TraceOfARun, RefusesADirectoryThatCannotBeMadeBeforeItStarts) {
  const model::TemporaryDirectory directory;
  directory.write("file", "");
  auto words = command_line("run", configuration(tiny_moe(), 2, "bfloat16"), {{0, 5}}, directory);
  words.insert(words.end(), {"--trace", directory.path() / "file"});
  const Ended ended = run_troupe(words);
  EXPECT_EQ(ended.status, 2);
  EXPECT_EQ(ended.error_lines().size(), 1u) << ended.err;
  EXPECT_EQ(ended.out, "");
}

// ---- the page -----------------------------------------------------------------------------------

// The page of the run in headless Chromium, as it is once its scripts have run. Empty: there is
// none here.
std::string page_in_browser(const std::string& address_end) {
  const fs::path page = traced_run().directory.path() / "trace.html";
  const Ended made = run_troupe({"trace", "html", traced_run().path(), "--output", page});
  if (made.status != 0) throw std::runtime_error(made.err);
  const fs::path out = traced_run().directory.path() / "dom.html";
  const std::string profile = traced_run().directory.path() / "chromium";
  const std::string command =
      "timeout 120 chromium --headless --no-sandbox --disable-gpu --user-data-dir=" + profile +
      " --window-size=1400,1000 --virtual-time-budget=3000 --dump-dom 'file://" + page.string() +
      address_end + "' >" + out.string() + " 2>/dev/null";
  if (std::system(command.c_str()) != 0) throw std::runtime_error("chromium failed: " + command);
  return model::read_file(out);
}

bool has_chromium() { return std::system("command -v chromium >/dev/null 2>&1") == 0; }

std::string attribute(const std::string& dom, const std::string& name) {
  const size_t begin = dom.find(" " + name + "=\"");
  if (begin == std::string::npos) return "";
  const size_t value = begin + name.size() + 3;
  return dom.substr(value, dom.find('"', value) - value);
}

TEST(TracePage, ShowsTheRunInABrowser) {
  if (!has_chromium()) GTEST_SKIP() << "chromium is not installed: apt-get install chromium";
  const std::string dom = page_in_browser("#step=5&search=gate%20rank:2");

  EXPECT_EQ(attribute(dom, "data-ready"), "yes");
  EXPECT_EQ(attribute(dom, "data-error"), "");
  size_t spans = 0, gates = 0;
  for (int rank = 0; rank < kWorld; ++rank)
    for (const json& event : traced_run().ranks[rank].at("traceEvents")) {
      spans += event.at("ph") == "X";
      gates += rank == 2 && event.at("name") == "gate";
    }
  EXPECT_EQ(attribute(dom, "data-spans"), std::to_string(spans));
  EXPECT_NE(dom.find(std::to_string(gates) + " found"), std::string::npos);
  // Every number of the matrix of bytes is a cell.
  for (int rank = 0; rank < kWorld; ++rank)
    for (const json& bytes : traced_run().ranks[rank].at("otherData").at("sent_bytes"))
      EXPECT_NE(dom.find("data-value=\"" + bytes.dump() + "\""), std::string::npos);
  EXPECT_EQ(dom.find("<p class=\"none\">"), std::string::npos) << "a chart is empty";
}

}  // namespace
}  // namespace troupe::system_tests

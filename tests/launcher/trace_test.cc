// The files of a trace, read back as anybody reads them, and what is made of them.
#include "comm/trace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "comm/arena.h"
#include "launcher/trace_files.h"
#include "launcher/trace_page.h"
#include "launcher/trace_reader.h"
#include "launcher/trace_summary.h"
#include "tests/model/files.h"

namespace troupe::launcher {
namespace {

namespace fs = std::filesystem;
using comm::TraceEvent;
using comm::TraceOp;
using comm::TraceTrack;
using nlohmann::json;

constexpr int64_t kUs = 1000;
constexpr int64_t kStart = 123'456'789'012'345;  // of the clock, when the trace begins

TraceEvent span(TraceOp op, int64_t start_us, int64_t end_us, int32_t peer = -1) {
  return {.start = kStart + start_us * kUs,
          .end = end_us < 0 ? 0 : kStart + end_us * kUs,
          .step = 1,
          .peer = peer,
          .track = TraceTrack::kMoe,
          .which = static_cast<uint8_t>(op)};
}

TraceEvent arrow(TraceEvent::Kind kind, int64_t us, int32_t peer, uint64_t round) {
  return {.start = kStart + us * kUs,
          .end = static_cast<int64_t>(round),
          .bytes = 64,
          .tokens = 2,
          .step = 1,
          .group = 3,
          .peer = peer,
          .layer = 4,
          .kind = kind,
          .track = TraceTrack::kMoe};
}

comm::TraceSnapshot snapshot(std::vector<TraceEvent> events, std::vector<uint64_t> sent = {0, 0}) {
  return {.forgotten = 0,
          .events = std::move(events),
          .sent_bytes = std::move(sent),
          .expert_rows = {1, 2, 3, 4}};
}

void write_file(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A launch of two ranks.
class TraceDirectory {
 public:
  TraceDirectory(const comm::TraceSnapshot& rank_0, const comm::TraceSnapshot& rank_1,
                 const comm::TraceSnapshot& launcher = snapshot({})) {
    write_file(trace_file(path(), 0), trace_json(rank_0, 0, 2, 2));
    write_file(trace_file(path(), 1), trace_json(rank_1, 1, 2, 2));
    write_file(launcher_trace_file(path()), trace_json(launcher, -1, 2, 2));
  }
  fs::path path() const { return directory_.path(); }
  TraceSet read() const { return read_traces(path()); }

 private:
  model::TemporaryDirectory directory_;
};

std::vector<json> events_of(const json& trace, const std::string& phase) {
  std::vector<json> found;
  for (const json& event : trace.at("traceEvents"))
    if (event.at("ph") == phase) found.push_back(event);
  return found;
}

TEST(TraceFiles, HaveTimesToTheNanosecond) {
  TraceEvent event = span(TraceOp::kGate, 0, 1);
  event.end += 7;
  const json trace = json::parse(trace_json(snapshot({event}), 1, 2, 2));

  const json found = events_of(trace, "X").at(0);
  EXPECT_EQ(found.at("name"), "gate");
  EXPECT_EQ(found.at("cat"), "compute");
  EXPECT_EQ(std::llround(found.at("ts").get<double>() * 1000), kStart);
  EXPECT_EQ(std::llround(found.at("dur").get<double>() * 1000), 1007);
  EXPECT_EQ(found.at("args").at("step"), 1);
}

TEST(TraceFiles, NameTheirProcessAndTheTracksInUse) {
  const json trace = json::parse(trace_json(snapshot({span(TraceOp::kGate, 0, 1)}), 1, 2, 2));

  std::map<std::string, json> names;
  for (const json& event : events_of(trace, "M")) names[event.at("name")] = event;
  EXPECT_EQ(names.at("process_name").at("args").at("name"), "rank 1");
  EXPECT_EQ(names.at("thread_name").at("args").at("name"), "moe");
  const json found = events_of(trace, "X").at(0);
  EXPECT_EQ(found.at("pid"), names.at("process_name").at("pid"));
  EXPECT_EQ(found.at("tid"), names.at("thread_name").at("tid"));
}

TEST(TraceFiles, EndAnOpenSpanWithWhatItLiesIn) {
  const json trace = json::parse(
      trace_json(snapshot({span(TraceOp::kDecode, 0, 50), span(TraceOp::kGate, 10, -1),
                           span(TraceOp::kAttend, 60, -1), span(TraceOp::kWait, 70, 90)}),
                 0, 2, 2));

  const auto spans = events_of(trace, "X");
  ASSERT_EQ(spans.size(), 4u);
  EXPECT_DOUBLE_EQ(spans[1].at("dur"), 40) << "to the end of the step";
  EXPECT_DOUBLE_EQ(spans[2].at("dur"), 30) << "to the last event";
}

TEST(TraceFiles, GiveBothEndsOfAnArrowOneId) {
  const auto ids = [](const comm::TraceSnapshot& events, int rank, const char* phase) {
    std::vector<std::string> found;
    for (const json& event : events_of(json::parse(trace_json(events, rank, 2, 2)), phase))
      found.push_back(event.at("id"));
    return found;
  };
  const auto sent =
      snapshot({arrow(TraceEvent::kSent, 1, 1, 7), arrow(TraceEvent::kSent, 2, 1, 8)});
  const auto received =
      snapshot({arrow(TraceEvent::kReceived, 3, 0, 7), arrow(TraceEvent::kReceived, 4, 0, 8)});

  EXPECT_EQ(ids(sent, 0, "s"), ids(received, 1, "f"));
  EXPECT_NE(ids(sent, 0, "s")[0], ids(sent, 0, "s")[1]);
  EXPECT_NE(ids(sent, 0, "s"), ids(sent, 1, "s")) << "from another rank";
}

TEST(TraceFiles, ReplaceThoseOfAnEarlierTraceAndNothingElse) {
  const model::TemporaryDirectory directory;
  for (const char* name : {"rank-0.trace.json", "rank-7.trace.json", "launcher.trace.json",
                           "rank-x.trace.json", "notes.txt"})
    write_file(directory.path() / name, "old");
  comm::Arena arena = comm::Arena::create(
      {.world_size = 2, .trace = {.num_events = 8, .num_layers = 1, .num_experts = 2}});
  comm::Trace(arena, 1).count(comm::TraceCounter::kRunning, 5);

  write_trace_files(arena, directory.path());

  EXPECT_EQ(read_traces(directory.path()).ranks.at(1).counters.at(0).value, 5);
  EXPECT_FALSE(fs::exists(trace_file(directory.path(), 7)));
  EXPECT_EQ(model::read_file(directory.path() / "notes.txt"), "old");
  EXPECT_EQ(model::read_file(directory.path() / "rank-x.trace.json"), "old");
}

TEST(TraceFiles, NeedADirectoryThatCanBeMade) {
  const model::TemporaryDirectory directory;
  write_file(directory.path() / "file", "");
  EXPECT_NO_THROW(make_trace_directory(directory.path() / "a/b"));
  EXPECT_TRUE(fs::is_directory(directory.path() / "a/b"));
  for (const char* name : {"file", "file/below"})
    EXPECT_THROW(make_trace_directory(directory.path() / name), UserError) << name;
}

TEST(TraceFiles, KeepEventsForAFewStepsHoweverManyRanks) {
  EXPECT_EQ(trace_events(1), trace_events(8));
  EXPECT_EQ(trace_events(16), trace_events(8) / 2);
  EXPECT_EQ(trace_events(1024), 8192);
  EXPECT_EQ(trace_events(12), 32768) << "a power of two";
}

TEST(TraceReader, ReadsWhatWasWritten) {
  const TraceDirectory directory(
      snapshot({span(TraceOp::kDecode, 0, 50), arrow(TraceEvent::kSent, 5, 1, 7),
                span(TraceOp::kWait, 10, 30, 1)},
               {0, 640}),
      snapshot({}));
  const TraceSet set = directory.read();

  ASSERT_EQ(set.ranks.size(), 2u);
  const ProcessTrace& rank = set.ranks[0];
  EXPECT_EQ(rank.sent_bytes, (std::vector<int64_t>{0, 640}));
  EXPECT_EQ(rank.expert_rows, (std::vector<std::vector<int64_t>>{{1, 2}, {3, 4}}));
  ASSERT_EQ(rank.spans.size(), 2u);
  EXPECT_TRUE(set.is(rank.spans[1], "wait"));
  EXPECT_EQ(rank.spans[1].start_ns, kStart + 10 * kUs);
  EXPECT_EQ(rank.spans[1].peer, 1);
  EXPECT_EQ(rank.spans[1].parent, 0);
  EXPECT_EQ(rank.spans[0].self_ns, 30 * kUs);
  ASSERT_EQ(rank.arrows.size(), 1u);
  EXPECT_EQ(rank.arrows[0].bytes, 64);
}

TEST(TraceReader, RefusesWhatIsNoTraceInOneLine) {
  const auto refusal = [](const std::function<void(const TraceDirectory&)>& spoil) {
    const TraceDirectory directory(snapshot({span(TraceOp::kGate, 0, 1)}), snapshot({}));
    spoil(directory);
    return model::user_error([&] { directory.read(); });
  };
  const auto rewritten = [&](const std::function<void(json&)>& change) {
    return refusal([&](const TraceDirectory& directory) {
      const fs::path path = trace_file(directory.path(), 0);
      json trace = json::parse(model::read_file(path));
      change(trace);
      write_file(path, trace.dump());
    });
  };
  std::vector<std::string> refusals = {
      model::user_error([] { read_traces("/nowhere"); }),
      refusal([](const auto& d) { fs::remove(trace_file(d.path(), 1)); }),
      refusal([](const auto& d) { fs::remove(launcher_trace_file(d.path())); }),
      refusal([](const auto& d) {
        const std::string text = model::read_file(trace_file(d.path(), 0));
        write_file(trace_file(d.path(), 0), text.substr(0, text.size() / 2));
      }),
      refusal([](const auto& d) {
        fs::copy_file(trace_file(d.path(), 0), trace_file(d.path(), 1),
                      fs::copy_options::overwrite_existing);
      }),
      rewritten([](json& t) {
        t = json::array({1, 2});
      }),
      rewritten([](json& t) { t.erase("otherData"); }),
      rewritten([](json& t) { t["otherData"]["troupe_trace"] = 99; }),
      rewritten([](json& t) { t["otherData"]["rank"] = 5; }),
      rewritten([](json& t) { t["otherData"]["world_size"] = -2; }),
      rewritten([](json& t) {
        t["traceEvents"].push_back({{"ph", "X"}});
      }),
      rewritten([](json& t) {
        t["traceEvents"].push_back({{"ph", "b"}, {"ts", 1}});
      }),
      rewritten([](json& t) { t["traceEvents"].back()["ts"] = -1; }),
      rewritten([](json& t) { t["traceEvents"].back()["ts"] = "soon"; }),
      rewritten([](json& t) { t["traceEvents"].back()["tid"] = 29; }),
      rewritten([](json& t) { t["traceEvents"].back()["args"]["bytes"] = -1; }),
      rewritten([](json& t) { t["traceEvents"].back()["args"]["bytes"] = 1e300; }),
      rewritten([](json& t) { t["traceEvents"].back()["args"]["bytes"] = UINT64_MAX; }),
      rewritten([](json& t) { t["traceEvents"].back()["args"]["step"] = int64_t{1} << 31; }),
      rewritten([](json& t) { t["traceEvents"].back()["args"]["peer"] = -2; }),
      rewritten([](json& t) {
        t["otherData"]["sent_bytes"] = {0, 1.5};
      }),
      rewritten([](json& t) { t["otherData"]["expert_rows"] = {{INT64_MAX}}; }),
      rewritten([](json& t) { t["otherData"]["forgotten_events"] = "none"; }),
      rewritten([](json& t) {
        json late = t["traceEvents"].back();
        late["dur"] = 1e6;
        late["ts"] = late["ts"].get<double>() + 0.5;
        t["traceEvents"].push_back(late);
      })};
  for (const std::string& text : refusals) EXPECT_NE(text.find(": "), std::string::npos) << text;
}

// Rank 0:  decode 0..100: gate 10..30, then dispatch 30..80 with a wait for rank 1 of 40..70.
// Rank 1:  decode 5..60:  experts 20..55.
TraceDirectory two_ranks() {
  return {snapshot({span(TraceOp::kDecode, 0, 100), span(TraceOp::kGate, 10, 30),
                    span(TraceOp::kDispatch, 30, 80), span(TraceOp::kWait, 40, 70, 1)}),
          snapshot({span(TraceOp::kAwaitPlan, 0, 5), span(TraceOp::kDecode, 5, 60),
                    span(TraceOp::kExperts, 20, 55)})};
}

TEST(TraceSummary, SharesOutTheTimeOfARank) {
  const TraceSet set = two_ranks().read();
  const RankTime rank_0 = rank_time(set, 0), rank_1 = rank_time(set, 1);

  EXPECT_EQ(rank_0.steps, 1);
  EXPECT_EQ(rank_0.compute_ns, 20 * kUs);
  EXPECT_EQ(rank_0.communication_ns, 20 * kUs);
  EXPECT_EQ(rank_0.wait_ns, 30 * kUs);
  EXPECT_EQ(rank_0.other_ns, 30 * kUs);
  EXPECT_EQ(rank_1.plan_ns, 5 * kUs);
  EXPECT_EQ(rank_1.compute_ns, 35 * kUs);
  EXPECT_EQ(rank_1.other_ns, 20 * kUs);
}

// The launcher plans step 1 at 100, has both answers at 200, plans again at once (step 2, answered
// at 300), then waits until somebody asks at 700 (step 3, answered at 800).
comm::TraceSnapshot two_turns() {
  return snapshot({span(TraceOp::kAwaitAnswers, 0, 100), span(TraceOp::kPlanStep, 100, 110),
                   span(TraceOp::kAwaitAnswers, 110, 180), span(TraceOp::kAnswer, 180, 185),
                   span(TraceOp::kAwaitAnswers, 185, 195), span(TraceOp::kAnswer, 195, 200),
                   span(TraceOp::kPlanStep, 202, 210), span(TraceOp::kAnswer, 290, 292),
                   span(TraceOp::kAnswer, 298, 300), span(TraceOp::kAwaitAnswers, 301, 699),
                   span(TraceOp::kPlanStep, 700, 710), span(TraceOp::kAnswer, 790, 795),
                   span(TraceOp::kAnswer, 795, 800), span(TraceOp::kAwaitAnswers, 801, 850)});
}

TEST(TraceSummary, TellsWaitingForAPlanFromTimesInWhichNobodyAsks) {
  const TraceDirectory directory(
      snapshot({span(TraceOp::kAwaitPlan, -40, 105), span(TraceOp::kDecode, 105, 180),
                span(TraceOp::kAwaitPlan, 180, 205), span(TraceOp::kDecode, 205, 285),
                span(TraceOp::kAwaitPlan, 285, 705), span(TraceOp::kDecode, 705, 790),
                span(TraceOp::kAwaitPlan, 790, 900)}),
      snapshot({}), two_turns());

  const TraceSet set = directory.read();
  const RankTime time = rank_time(set, 0);

  EXPECT_EQ(time.idle_ns, (140 + 400 + 100) * kUs) << "to 100, of 300 to 700, from 800";
  EXPECT_EQ(time.plan_ns, (5 + 25 + 15 + 5 + 10) * kUs) << "the rest of its waits for plans";
  EXPECT_EQ(time.busy_ns(), time.plan_ns + (75 + 80 + 85) * kUs);
  for (const OperationTime& operation : operation_times(set))
    if (set.names[operation.name].text == "await_plan") {
      EXPECT_EQ(operation.self_ns, time.plan_ns);
      EXPECT_EQ(operation.calls, 4);
    }
}

TEST(TraceSummary, KnowsNoPauseBeforeTheFirstEventThatIsKept) {
  comm::TraceSnapshot cut = two_turns();
  cut.forgotten = 7;
  cut.events.erase(cut.events.begin(), cut.events.begin() + 5);  // in the middle of step 1
  const TraceDirectory directory(snapshot({span(TraceOp::kAwaitPlan, -40, 105)}), snapshot({}),
                                 cut);
  const TraceSet set = directory.read();

  EXPECT_EQ(rank_time(set, 0).idle_ns, 0);
  EXPECT_EQ(pauses(set).size(), 2u) << "before step 3 and after it";
}

TEST(TraceSummary, OrdersOperationsByTheirOwnTime) {
  const TraceSet set = two_ranks().read();
  const auto times = operation_times(set);

  ASSERT_EQ(times.size(), 6u);
  EXPECT_EQ(set.names[times[0].name].text, "decode");  // 30 + 20
  EXPECT_EQ(times[0].calls, 2);
  EXPECT_EQ(times[0].self_ns, 50 * kUs);
  EXPECT_EQ(set.names[times[1].name].text, "experts");
}

TEST(TraceSummary, FollowsTheCriticalPathToTheRankThatWasWaitedFor) {
  const TraceSet set = two_ranks().read();
  const CriticalPath path = critical_path(set);

  EXPECT_EQ(path.step, 1);
  EXPECT_EQ(path.end_ns - path.start_ns, 100 * kUs);
  struct Expected {
    int rank;
    const char* name;
    int64_t from, to;
  };
  // Rank 1 had ended its step when rank 0's wait ended: its work is on the path up to there.
  const Expected expected[] = {{0, "decode", 80, 100},
                               {0, "dispatch", 70, 80},
                               {1, "decode", 55, 60},
                               {1, "experts", 20, 55},
                               {1, "decode", 5, 20}};
  ASSERT_EQ(path.pieces.size(), std::size(expected));
  for (size_t i = 0; i < std::size(expected); ++i) {
    EXPECT_EQ(path.pieces[i].rank, expected[i].rank) << i;
    EXPECT_EQ(set.names[path.pieces[i].name].text, expected[i].name) << i;
    EXPECT_EQ(path.pieces[i].start_ns, kStart + expected[i].from * kUs) << i;
    EXPECT_EQ(path.pieces[i].end_ns, kStart + expected[i].to * kUs) << i;
  }
}

TEST(TraceSummary, HasNoPathWithoutAWholeStep) {
  const TraceDirectory directory(snapshot({span(TraceOp::kGate, 0, 1)}), snapshot({}));
  EXPECT_EQ(critical_path(directory.read()).step, 0);
  EXPECT_NE(trace_summary(directory.read()).find("no step is whole"), std::string::npos);
}

TEST(TraceSummary, AStepThatOneRankHasTwiceAndAnotherNeverIsNotWhole) {
  const auto step = [](int64_t us) {
    return std::vector{span(TraceOp::kDecode, us, us + 10), span(TraceOp::kGate, us, us + 5)};
  };
  auto twice = step(0);
  for (const TraceEvent& event : step(20)) twice.push_back(event);
  const TraceDirectory directory(snapshot(twice), snapshot({}));

  EXPECT_EQ(critical_path(directory.read()).step, 0);
}

TEST(TraceSummary, SaysThatEarlierEventsAreNotKept) {
  comm::TraceSnapshot cut = snapshot({span(TraceOp::kGate, 0, 1)});
  cut.forgotten = 4321;
  const TraceDirectory directory(cut, snapshot({}));
  EXPECT_NE(trace_summary(directory.read()).find("4321 earlier events"), std::string::npos);
}

TEST(TraceSummary, ImbalanceIsTheLargestOverTheMean) {
  EXPECT_DOUBLE_EQ(imbalance({1, 2, 3, 6}), 2);
  EXPECT_DOUBLE_EQ(imbalance({5, 5}), 1);
  EXPECT_DOUBLE_EQ(imbalance({0, 0}), 1);
}

TEST(TraceMerge, HasTheEventsOfAllFiles) {
  const TraceDirectory directory = two_ranks();
  const json merged = json::parse(merged_trace(directory.path(), 2));

  size_t events = 0;
  for (const fs::path& path : {trace_file(directory.path(), 0), trace_file(directory.path(), 1),
                               launcher_trace_file(directory.path())}) {
    const json file = json::parse(model::read_file(path));
    for (const json& event : file.at("traceEvents")) {
      const json& all = merged.at("traceEvents");
      EXPECT_NE(std::ranges::find(all, event), all.end());
      ++events;
    }
  }
  EXPECT_EQ(merged.at("traceEvents").size(), events);
}

TEST(TracePage, IsOneFileThatAsksForNothing) {
  const std::string page = trace_page(two_ranks().read());
  for (const char* foreign : {"http:", "https:", " src=", "@import", "<link", "<!--DATA", "<!--SC"})
    EXPECT_EQ(page.find(foreign), std::string::npos) << foreign;
  EXPECT_EQ(page.find("</html>"), page.rfind("</html>"));
}

TEST(TracePage, ANameFromAFileCannotLeaveItsScript) {
  const TraceDirectory directory(snapshot({span(TraceOp::kGate, 0, 1)}), snapshot({}));
  const fs::path path = trace_file(directory.path(), 0);
  json trace = json::parse(model::read_file(path));
  trace["traceEvents"].back()["name"] = "</script><script>alert(1)";
  write_file(path, trace.dump());

  EXPECT_EQ(trace_page(directory.read()).find("alert(1)</"), std::string::npos);
  EXPECT_EQ(trace_page(directory.read()).find("</script><script>alert"), std::string::npos);
}

}  // namespace
}  // namespace troupe::launcher

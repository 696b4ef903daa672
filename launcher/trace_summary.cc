#include "launcher/trace_summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <ranges>

#include "comm/trace.h"

namespace troupe::launcher {
namespace {

const char* const kWait = comm::trace_op(comm::TraceOp::kWait).name;
const char* const kAwaitPlan = comm::trace_op(comm::TraceOp::kAwaitPlan).name;
const char* const kPlanStep = comm::trace_op(comm::TraceOp::kPlanStep).name;
const char* const kAnswer = comm::trace_op(comm::TraceOp::kAnswer).name;
const char* const kAwaitAnswers = comm::trace_op(comm::TraceOp::kAwaitAnswers).name;
const char* const kDecode = comm::trace_op(comm::TraceOp::kDecode).name;
const char* const kPrefill = comm::trace_op(comm::TraceOp::kPrefill).name;

double ms(int64_t ns) { return static_cast<double>(ns) * 1e-6; }
double us(int64_t ns) { return static_cast<double>(ns) * 1e-3; }
double percent(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

// ---- the critical path --------------------------------------------------------------------------

// The innermost span at each moment of a step, without gaps: `span` from start to end.
struct Moment {
  int64_t start_ns = 0, end_ns = 0;
  const SpanRecord* span = nullptr;
};

class StepOfRank {
 public:
  StepOfRank(const std::vector<SpanRecord>& spans, size_t step) {
    const int64_t end = spans[step].end_ns;
    size_t last = step;
    while (last + 1 < spans.size() && spans[last + 1].start_ns < end) ++last;
    std::vector<const SpanRecord*> around;
    int64_t now = spans[step].start_ns;
    const auto pass_to = [&](int64_t until) {
      while (!around.empty() && around.back()->end_ns <= until) {
        add(now, around.back()->end_ns, around.back());
        now = around.back()->end_ns;
        around.pop_back();
      }
      if (!around.empty()) add(now, until, around.back());
      now = until;
    };
    for (size_t i = step; i <= last; ++i) {
      pass_to(spans[i].start_ns);
      around.push_back(&spans[i]);
    }
    pass_to(end);
  }

  int64_t start_ns() const { return moments_.front().start_ns; }
  int64_t end_ns() const { return moments_.back().end_ns; }
  // The last moment that begins before `ns`.
  const Moment* before(int64_t ns) const {
    const auto after = std::ranges::lower_bound(moments_, ns, {}, &Moment::start_ns);
    return after == moments_.begin() ? nullptr : &*(after - 1);
  }

 private:
  void add(int64_t start, int64_t end, const SpanRecord* span) {
    if (start < end) moments_.push_back({start, end, span});
  }
  std::vector<Moment> moments_;
};

// Steps by their number: of each rank the index of its span, the first if a file has several.
std::map<int32_t, std::vector<size_t>> whole_steps(const TraceSet& set, const char* name) {
  std::map<int32_t, std::vector<size_t>> steps;
  for (size_t rank = 0; rank < set.ranks.size(); ++rank) {
    const std::vector<SpanRecord>& spans = set.ranks[rank].spans;
    for (size_t i = 0; i < spans.size(); ++i) {
      if (!set.is(spans[i], name) || spans[i].self_ns >= spans[i].end_ns - spans[i].start_ns)
        continue;
      std::vector<size_t>& of_ranks = steps[spans[i].step];
      if (of_ranks.size() == rank) of_ranks.push_back(i);
    }
  }
  std::erase_if(steps, [&](const auto& entry) { return entry.second.size() != set.ranks.size(); });
  return steps;
}

std::vector<StepOfRank> median_step(const TraceSet& set,
                                    const std::map<int32_t, std::vector<size_t>>& steps,
                                    CriticalPath& path) {
  struct Candidate {
    int64_t start = 0, end = 0;
    int32_t step = 0;
  };
  std::vector<Candidate> candidates;
  for (const auto& [step, spans] : steps) {
    Candidate candidate{.start = INT64_MAX, .step = step};
    for (size_t rank = 0; rank < spans.size(); ++rank) {
      const SpanRecord& span = set.ranks[rank].spans[spans[rank]];
      candidate.start = std::min(candidate.start, span.start_ns);
      candidate.end = std::max(candidate.end, span.end_ns);
    }
    candidates.push_back(candidate);
  }
  const auto middle = candidates.begin() + static_cast<ptrdiff_t>(candidates.size() / 2);
  std::ranges::nth_element(candidates, middle, {},
                           [](const Candidate& c) { return c.end - c.start; });
  path.step = middle->step;
  path.start_ns = middle->start;
  path.end_ns = middle->end;
  std::vector<StepOfRank> ranks;
  for (size_t rank = 0; rank < set.ranks.size(); ++rank)
    ranks.emplace_back(set.ranks[rank].spans, steps.at(path.step)[rank]);
  return ranks;
}

}  // namespace

CriticalPath critical_path(const TraceSet& set) {
  CriticalPath path;
  auto steps = whole_steps(set, kDecode);
  if (steps.empty()) steps = whole_steps(set, kPrefill);
  if (steps.empty()) return path;
  const std::vector<StepOfRank> ranks = median_step(set, steps, path);
  auto rank =
      static_cast<int>(std::ranges::max_element(ranks, {}, &StepOfRank::end_ns) - ranks.begin());
  int64_t now = path.end_ns;
  while (const Moment* moment = ranks[rank].before(now)) {
    const int32_t peer = moment->span->peer;
    const bool waited = set.is(*moment->span, kWait) && peer >= 0 && peer < std::ssize(ranks);
    // A wait that has ended leads to whom it was for; one under way is what this rank does.
    if (waited && moment->end_ns <= now && ranks[peer].start_ns() < moment->end_ns) {
      rank = peer;
      now = std::min(now - 1, moment->end_ns);
      continue;
    }
    path.pieces.push_back(
        {rank, moment->span->name, moment->start_ns, std::min(now, moment->end_ns)});
    now = moment->start_ns;
  }
  return path;
}

std::vector<Pause> pauses(const TraceSet& set) {
  constexpr int64_t kUnderWay = INT64_MAX;
  std::vector<Pause> found;
  int64_t free_since = set.launcher.forgotten == 0 ? INT64_MIN : kUnderWay;
  bool waited = true;  // with nothing under way; else the next plan came at once
  bool plans = false;
  size_t answers = 0;
  for (const SpanRecord& span : set.launcher.spans) {
    if (set.is(span, kPlanStep)) {
      if (free_since != kUnderWay && waited) found.push_back({free_since, span.start_ns});
      free_since = kUnderWay;
      waited = false;
      plans = true;
      answers = 0;
    } else if (set.is(span, kAnswer)) {
      if (++answers == set.ranks.size()) free_since = span.end_ns;
    } else if (set.is(span, kAwaitAnswers)) {
      waited = waited || free_since <= span.start_ns;
    }
  }
  if (free_since != kUnderWay) found.push_back({free_since, INT64_MAX});
  return plans ? found : std::vector<Pause>{};
}

namespace {

// How much of a span lies in pauses, which are in order and apart.
int64_t paused_ns(const SpanRecord& span, const std::vector<Pause>& pauses) {
  int64_t sum = 0;
  for (auto pause = std::ranges::upper_bound(pauses, span.start_ns, {}, &Pause::end_ns);
       pause != pauses.end() && pause->start_ns < span.end_ns; ++pause)
    sum += std::min(span.end_ns, pause->end_ns) - std::max(span.start_ns, pause->start_ns);
  return sum;
}

}  // namespace

RankTime rank_time(const TraceSet& set, int rank) {
  const std::vector<Pause> paused = pauses(set);
  RankTime time;
  for (const SpanRecord& span : set.ranks[rank].spans) {
    const TraceSet::Name& name = set.names[span.name];
    if (name.text == kDecode || name.text == kPrefill) ++time.steps;
    if (name.text == kAwaitPlan) {
      const int64_t idle = paused_ns(span, paused);
      time.idle_ns += idle;
      time.plan_ns += span.self_ns - idle;
      continue;
    }
    (name.text == kWait                 ? time.wait_ns
     : name.category == "compute"       ? time.compute_ns
     : name.category == "communication" ? time.communication_ns
                                        : time.other_ns) += span.self_ns;
  }
  return time;
}

std::vector<OperationTime> operation_times(const TraceSet& set) {
  const std::vector<Pause> paused = pauses(set);
  std::vector<OperationTime> times(set.names.size());
  for (const ProcessTrace& rank : set.ranks)
    for (const SpanRecord& span : rank.spans) {
      times[span.name].self_ns += span.self_ns;
      if (set.is(span, kAwaitPlan)) times[span.name].self_ns -= paused_ns(span, paused);
      ++times[span.name].calls;
    }
  for (size_t i = 0; i < times.size(); ++i) times[i].name = static_cast<int32_t>(i);
  std::erase_if(times, [](const OperationTime& time) { return time.calls == 0; });
  std::ranges::stable_sort(times, std::greater(), &OperationTime::self_ns);
  return times;
}

double imbalance(const std::vector<double>& values) {
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  return sum == 0 ? 1 : std::ranges::max(values) * static_cast<double>(values.size()) / sum;
}

// ---- the table ----------------------------------------------------------------------------------

namespace {

constexpr size_t kTopOperations = 14;

std::string rank_table(const TraceSet& set) {
  std::string text =
      fmt::format("{:<6}{:>7}{:>12}{:>12}{:>12}{:>12}{:>12}{:>11}{:>11}\n", "rank", "steps",
                  "compute", "comm", "wait", "plan", "other", "busy ms", "idle ms");
  for (int rank = 0; rank < std::ssize(set.ranks); ++rank) {
    const RankTime t = rank_time(set, rank);
    text += fmt::format("{:<6}{:>7}", rank, t.steps);
    for (const int64_t part : {t.compute_ns, t.communication_ns, t.wait_ns, t.plan_ns, t.other_ns})
      text += fmt::format("{:>10.1f} %", percent(part, t.busy_ns()));
    text += fmt::format("{:>11.1f}{:>11.1f}\n", ms(t.busy_ns()), ms(t.idle_ns));
  }
  return text;
}

std::string operation_table(const TraceSet& set) {
  const std::vector<OperationTime> times = operation_times(set);
  int64_t all = 0;
  for (const OperationTime& time : times) all += time.self_ns;
  std::string text = fmt::format("\n{:<16}{:<16}{:>10}{:>12}{:>12}{:>9}\n", "operation", "is",
                                 "calls", "self ms", "mean us", "share");
  for (const OperationTime& time : times | std::views::take(kTopOperations))
    text +=
        fmt::format("{:<16}{:<16}{:>10}{:>12.2f}{:>12.2f}{:>7.1f} %\n", set.names[time.name].text,
                    set.names[time.name].category, time.calls, ms(time.self_ns),
                    us(time.self_ns) / static_cast<double>(time.calls), percent(time.self_ns, all));
  return text;
}

std::string imbalance_lines(const TraceSet& set) {
  std::vector<double> compute, rows;
  for (int rank = 0; rank < std::ssize(set.ranks); ++rank) {
    compute.push_back(static_cast<double>(rank_time(set, rank).compute_ns));
    double sum = 0;
    for (const auto& layer : set.ranks[rank].expert_rows)
      sum += static_cast<double>(std::accumulate(layer.begin(), layer.end(), int64_t{0}));
    rows.push_back(sum);
  }
  const auto line = [](const char* what, const std::vector<double>& values) {
    const auto most = std::ranges::max_element(values) - values.begin();
    return fmt::format("imbalance of {}: max/mean {:.2f} (rank {})\n", what, imbalance(values),
                       most);
  };
  std::string text = fmt::format("\n{}", line("compute", compute));
  if (std::ranges::max(rows) > 0) text += line("expert rows, whole run", rows);
  return text;
}

std::string path_lines(const TraceSet& set) {
  const CriticalPath path = critical_path(set);
  if (path.step == 0) return "\nno step is whole on all ranks: no critical path\n";
  std::map<int32_t, int64_t> by_name;
  std::vector<int64_t> by_rank(set.ranks.size());
  int64_t all = 0, hops = 0;
  for (size_t i = 0; i < path.pieces.size(); ++i) {
    const CriticalPath::Piece& piece = path.pieces[i];
    by_name[piece.name] += piece.end_ns - piece.start_ns;
    by_rank[piece.rank] += piece.end_ns - piece.start_ns;
    all += piece.end_ns - piece.start_ns;
    hops += i > 0 && path.pieces[i - 1].rank != piece.rank;
  }
  std::string text =
      fmt::format("\ncritical path of step {} (median, {:.1f} us), {} changes of rank\n", path.step,
                  us(path.end_ns - path.start_ns), hops);
  std::vector<std::pair<int64_t, std::string>> parts;
  for (const auto& [name, ns] : by_name)
    parts.emplace_back(ns, set.names[name].text == kWait ? "wake_up" : set.names[name].text);
  std::ranges::sort(parts, std::greater());
  for (const auto& [ns, name] : parts | std::views::take(kTopOperations))
    text += fmt::format("  {:<16}{:>10.1f} us{:>8.1f} %\n", name, us(ns), percent(ns, all));
  text += "  by rank:";
  for (size_t rank = 0; rank < by_rank.size(); ++rank)
    if (by_rank[rank] > 0) text += fmt::format(" {} {:.0f} %", rank, percent(by_rank[rank], all));
  return text + "\n";
}

}  // namespace

std::string trace_summary(const TraceSet& set) {
  int64_t forgotten = 0;
  for (const ProcessTrace& rank : set.ranks) forgotten = std::max(forgotten, rank.forgotten);
  std::string text;
  if (forgotten > 0)
    text = fmt::format("the end of the run: up to {} earlier events of a rank are not kept\n\n",
                       forgotten);
  return text + rank_table(set) + operation_table(set) + imbalance_lines(set) + path_lines(set);
}

}  // namespace troupe::launcher

#include "launcher/trace_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "comm/trace.h"
#include "launcher/trace_page_text.h"
#include "launcher/trace_summary.h"

namespace troupe::launcher {
namespace {

using nlohmann::json;

class PageData {
 public:
  explicit PageData(const TraceSet& set) : set_(set), origin_(first_event()) {}

  json data() const {
    json data{{"names", json::array()},      {"tracks", json::array()},
              {"processes", json::array()},  {"arrows", arrows()},
              {"sent_bytes", json::array()}, {"expert_rows", json::array()},
              {"counters", counters()},      {"pauses", paused()}};
    for (const TraceSet::Name& name : set_.names)
      data["names"].push_back({name.text, name.category});
    for (int track = 0; track < comm::kTraceTracks; ++track)
      data["tracks"].push_back(comm::track_name(static_cast<comm::TraceTrack>(track)));
    data["processes"].push_back(process(set_.launcher));
    for (const ProcessTrace& rank : set_.ranks) {
      data["processes"].push_back(process(rank));
      data["sent_bytes"].push_back(rank.sent_bytes);
      data["expert_rows"].push_back(rank.expert_rows);
    }
    return data;
  }

 private:
  int64_t first_event() const {
    int64_t first = INT64_MAX;
    const auto look = [&](const ProcessTrace& process) {
      if (!process.spans.empty()) first = std::min(first, process.spans.front().start_ns);
      for (const CounterRecord& counter : process.counters) first = std::min(first, counter.ns);
    };
    look(set_.launcher);
    for (const ProcessTrace& rank : set_.ranks) look(rank);
    return first;
  }

  json process(const ProcessTrace& process) const {
    json spans = json::array();
    for (const SpanRecord& span : process.spans)
      for (const int64_t number :
           {int64_t{span.name}, int64_t{span.track}, span.start_ns - origin_,
            span.end_ns - span.start_ns, int64_t{span.step}, int64_t{span.layer},
            int64_t{span.tokens}, span.bytes, int64_t{span.peer}})
        spans.push_back(number);
    return {{"rank", process.rank}, {"forgotten", process.forgotten}, {"spans", std::move(spans)}};
  }

  // Those of which both ends are there.
  json arrows() const {
    std::map<std::string, std::pair<int, int64_t>> sent;  // by id: rank, time
    for (const ProcessTrace& rank : set_.ranks)
      for (const ArrowRecord& arrow : rank.arrows)
        if (arrow.sent) sent[arrow.id] = {rank.rank, arrow.ns};
    json matched = json::array();
    for (const ProcessTrace& rank : set_.ranks)
      for (const ArrowRecord& arrow : rank.arrows)
        if (const auto from = sent.find(arrow.id); !arrow.sent && from != sent.end())
          matched.push_back(
              {from->second.first, from->second.second - origin_, rank.rank, arrow.ns - origin_});
    return matched;
  }

  json counters() const {
    std::map<std::string, json> points;
    for (const CounterRecord& counter : set_.launcher.counters)
      points[counter.name].push_back({counter.ns - origin_, counter.value});
    json all = json::array();
    for (auto& [name, values] : points)
      all.push_back({{"name", name}, {"points", std::move(values)}});
    return all;
  }

  json paused() const {
    constexpr int64_t kNever = int64_t{1} << 52;  // which a number of JavaScript can hold
    json all = json::array();
    for (const Pause& pause : pauses(set_))
      all.push_back(
          {std::max(pause.start_ns, origin_) - origin_, std::min(pause.end_ns - origin_, kNever)});
    return all;
  }

  const TraceSet& set_;
  int64_t origin_;
};

// Names come from files: no text in the page may end the element that holds it.
std::string for_script(const json& data) {
  const std::string text = data.dump(-1, ' ', false, json::error_handler_t::replace);
  std::string safe;
  safe.reserve(text.size());
  for (const char c : text)
    if (c == '<')
      safe += "\\u003c";
    else
      safe += c;
  return safe;
}

}  // namespace

std::string trace_page(const TraceSet& set) {
  constexpr std::string_view page(kTracePageText), mark = "<!--DATA-->";
  const size_t place = page.find(mark);
  TROUPE_CHECK(place != std::string_view::npos);
  std::string text(page.substr(0, place));
  text += for_script(PageData(set).data());
  text += page.substr(place + mark.size());
  return text;
}

}  // namespace troupe::launcher

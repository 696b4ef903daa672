#include "launcher/serve_replay.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "layers/sampler.h"

namespace troupe::launcher {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

actors::Request request_of(const Arrival& arrival, uint64_t number, int64_t vocab_size) {
  actors::Request request;
  for (int i = 0; i < arrival.input_tokens; ++i)
    request.prompt.push_back(
        static_cast<int32_t>(layers::uniform(number, 0, i) * static_cast<double>(vocab_size)));
  request.max_new_tokens = arrival.output_tokens;
  return request;
}

ReplaySample sample_of(const Session& session, double now) {
  const actors::SchedulerState state = session.state();
  return {.at_s = now,
          .waiting = state.waiting,
          .running = state.running,
          .kv_use = static_cast<double>(state.blocks_in_use) / static_cast<double>(state.blocks),
          .preemptions = session.statistics().preemptions};
}

void add_times(Replay& result, const actors::Completion& c, double late_s) {
  result.queue_s.push_back(late_s + c.admitted_s);
  result.ttft_s.push_back(late_s + c.first_token_s);
  const auto tokens = static_cast<double>(c.tokens.size());
  if (tokens >= 2) result.tpot_s.push_back((c.last_token_s - c.first_token_s) / (tokens - 1));
}

nlohmann::json percentiles_ms(const std::vector<double>& seconds) {
  return {{"p50", 1000 * percentile(seconds, 0.5)},
          {"p90", 1000 * percentile(seconds, 0.9)},
          {"p99", 1000 * percentile(seconds, 0.99)}};
}

// One curve in a frame of its own, with the largest value beside it.
std::string panel(const Replay& replay, int top, const char* title, const char* colour,
                  double (*value)(const ReplaySample&)) {
  constexpr int kLeft = 150, kWidth = 640, kHeight = 90;
  double most = 0;
  for (const ReplaySample& s : replay.samples) most = std::max(most, value(s));
  std::string points;
  double before = 0;
  for (const ReplaySample& s : replay.samples) {  // steps: a value holds until the next one
    const double x = kLeft + kWidth * s.at_s / std::max(replay.seconds, 1e-9);
    const auto y = [&](double v) { return top + kHeight - kHeight * v / std::max(most, 1e-9); };
    points += fmt::format("{:.1f},{:.1f} {:.1f},{:.1f} ", x, y(before), x, y(value(s)));
    before = value(s);
  }
  return fmt::format(
      "<rect x=\"{0}\" y=\"{1}\" width=\"{2}\" height=\"{3}\" fill=\"none\" stroke=\"#bbb\"/>\n"
      "<text x=\"10\" y=\"{4}\">{5}</text>\n<text x=\"10\" y=\"{6}\">at most {7:.3g}</text>\n"
      "<polyline points=\"{8}\" fill=\"none\" stroke=\"{9}\"/>\n",
      kLeft, top, kWidth, kHeight, top + 40, title, top + 58, most, points, colour);
}

}  // namespace

Load load_of(const std::vector<Arrival>& arrivals) {
  Load load;
  for (const Arrival& a : arrivals) {
    load.longest_prompt = std::max<int64_t>(load.longest_prompt, a.input_tokens);
    load.longest_sequence =
        std::max<int64_t>(load.longest_sequence, int64_t{a.input_tokens} + a.output_tokens);
  }
  return load;
}

Replay replay(Session& session, const std::vector<Arrival>& arrivals, int64_t vocab_size) {
  Replay result;
  std::vector<double> late_s;
  const auto start = steady_clock::now();
  const auto now_s = [&] {
    return std::chrono::duration<double>(steady_clock::now() - start).count();
  };
  size_t next = 0;
  while (next < arrivals.size() || !session.idle()) {
    for (; next < arrivals.size() && arrivals[next].at_s <= now_s(); ++next) {
      session.submit(request_of(arrivals[next], next, vocab_size));
      late_s.push_back(now_s() - arrivals[next].at_s);
    }
    const double until_next = next < arrivals.size() ? arrivals[next].at_s - now_s() : 1;
    session.poll(milliseconds(std::clamp<int64_t>(std::llround(1000 * until_next), 0, 1000)));
    result.samples.push_back(sample_of(session, now_s()));
  }
  result.seconds = now_s();
  for (size_t i = 0; i < arrivals.size(); ++i) {
    const actors::Completion& completion = session.completion(static_cast<int>(i));
    add_times(result, completion, late_s[i]);
    result.input_tokens += arrivals[i].input_tokens;
    result.output_tokens += std::ssize(completion.tokens);
  }
  result.statistics = session.statistics();
  return result;
}

double percentile(std::vector<double> values, double fraction) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  const auto rank = static_cast<size_t>(std::ceil(fraction * static_cast<double>(values.size())));
  return values[std::clamp<size_t>(rank, 1, values.size()) - 1];
}

nlohmann::json replay_json(const Replay& r) {
  nlohmann::json samples = nlohmann::json::array();
  double peak = 0;
  for (const ReplaySample& s : r.samples) {
    samples.push_back({s.at_s, s.waiting, s.running, s.kv_use, s.preemptions});
    peak = std::max(peak, s.kv_use);
  }
  const double step_s = r.statistics.prefill_s + r.statistics.decode_s;
  return {{"requests", r.ttft_s.size()},
          {"seconds", r.seconds},
          {"input_tokens", r.input_tokens},
          {"output_tokens", r.output_tokens},
          {"output_tokens_per_s", static_cast<double>(r.output_tokens) / r.seconds},
          {"ttft_ms", percentiles_ms(r.ttft_s)},
          {"tpot_ms", percentiles_ms(r.tpot_s)},
          {"queue_ms", percentiles_ms(r.queue_s)},
          {"preemptions", r.statistics.preemptions},
          {"kv_use_peak", peak},
          {"scheduler_share", step_s > 0 ? r.statistics.scheduler_s / step_s : 0},
          {"timeline",
           {{"columns", {"at_s", "waiting", "running", "kv_use", "preemptions"}},
            {"rows", std::move(samples)}}}};
}

std::string replay_table(const Replay& r) {
  const nlohmann::json json = replay_json(r);
  std::string text = fmt::format(
      "{} requests, {} tokens in, {} out in {:.2f} s: {:.1f} tokens/s out\n"
      "{:<10} {:>10} {:>10} {:>10}\n",
      r.ttft_s.size(), r.input_tokens, r.output_tokens, r.seconds,
      static_cast<double>(r.output_tokens) / r.seconds, "ms", "p50", "p90", "p99");
  for (const auto& [name, key] : {std::pair{"TTFT", "ttft_ms"}, std::pair{"TPOT", "tpot_ms"},
                                  std::pair{"queue", "queue_ms"}}) {
    const nlohmann::json& p = json.at(key);
    text += fmt::format("{:<10} {:>10.2f} {:>10.2f} {:>10.2f}\n", name, p.at("p50").get<double>(),
                        p.at("p90").get<double>(), p.at("p99").get<double>());
  }
  return text +
         fmt::format("KV use at most {:.0f} %, {} preemptions, scheduler {:.2f} % of the steps\n",
                     100 * json.at("kv_use_peak").get<double>(), r.statistics.preemptions,
                     100 * json.at("scheduler_share").get<double>());
}

std::string replay_svg(const Replay& r) {
  std::string svg =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 810 470\" "
      "font-family=\"sans-serif\" "
      "font-size=\"13\">\n<rect width=\"810\" height=\"470\" fill=\"white\"/>\n";
  svg += panel(r, 20, "running", "#1f77b4",
               [](const ReplaySample& s) { return static_cast<double>(s.running); });
  svg += panel(r, 130, "waiting", "#ff7f0e",
               [](const ReplaySample& s) { return static_cast<double>(s.waiting); });
  svg +=
      panel(r, 240, "KV use, %", "#2ca02c", [](const ReplaySample& s) { return 100 * s.kv_use; });
  svg += panel(r, 350, "preemptions", "#d62728",
               [](const ReplaySample& s) { return static_cast<double>(s.preemptions); });
  return svg + fmt::format(
                   "<text x=\"150\" y=\"460\">0 s</text>\n"
                   "<text x=\"790\" y=\"460\" text-anchor=\"end\">{:.1f} s</text>\n</svg>\n",
                   r.seconds);
}

}  // namespace troupe::launcher

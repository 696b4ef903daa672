#include "serve/metrics.h"

#include <fmt/format.h>

#include <algorithm>

namespace troupe::serve {

namespace {

constexpr double kTtftBounds[] = {0.001, 0.005, 0.01, 0.02,  0.04,  0.06,  0.08, 0.1,
                                  0.25,  0.5,   0.75, 1.0,   2.5,   5.0,   7.5,  10.0,
                                  20.0,  40.0,  80.0, 160.0, 640.0, 2560.0};
constexpr double kTokenBounds[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,  0.3,  0.4, 0.5,
                                   0.75, 1.0,   2.5,  5.0,   7.5, 10.0, 20.0, 40.0, 80.0};
constexpr double kRequestBounds[] = {0.3,  0.5,   0.8,   1.0,   1.5,   2.0,    2.5,
                                     5.0,  10.0,  15.0,  20.0,  30.0,  40.0,   50.0,
                                     60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0};
constexpr double kLengthBounds[] = {1,   2,    5,    10,   20,    50,    100,   200,
                                    500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};

const char* reason_name(actors::FinishReason reason) {
  switch (reason) {
    case actors::FinishReason::kNone:
    case actors::FinishReason::kStop:
      return "stop";
    case actors::FinishReason::kLength:
      return "length";
    case actors::FinishReason::kCancelled:
      return "abort";
  }
  return "";
}

// A label's value, as the text format wants it.
std::string escaped(const std::string& value) {
  std::string text;
  for (const char c : value) {
    if (c == '\\' || c == '"') text += '\\';
    text += c == '\n' ? ' ' : c;
  }
  return text;
}

std::string described(const std::string& name, const char* type, const char* help) {
  return fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

}  // namespace

void Histogram::add(double value, int64_t times) {
  counts_[std::ranges::lower_bound(bounds_, value) - bounds_.begin()] += times;
  sum_ += value * static_cast<double>(times);
  count_ += times;
}

std::string Histogram::text(const std::string& name, const std::string& labels) const {
  std::string text;
  int64_t up_to = 0;
  for (size_t i = 0; i < bounds_.size(); ++i) {
    up_to += counts_[i];
    text += fmt::format("{}_bucket{{{},le=\"{}\"}} {}\n", name, labels, bounds_[i], up_to);
  }
  text += fmt::format("{}_bucket{{{},le=\"+Inf\"}} {}\n", name, labels, count_);
  return text +
         fmt::format("{0}_sum{{{1}}} {2}\n{0}_count{{{1}}} {3}\n", name, labels, sum_, count_);
}

Metrics::Metrics()
    : ttft_(kTtftBounds),
      inter_token_(kTokenBounds),
      per_output_token_(kTokenBounds),
      end_to_end_(kRequestBounds),
      queue_(kRequestBounds),
      prompt_length_(kLengthBounds),
      answer_length_(kLengthBounds) {}

void Metrics::on_first_token(double ttft_s) {
  const std::lock_guard lock(mutex_);
  ttft_.add(ttft_s);
}

void Metrics::on_more_tokens(double seconds, int64_t tokens) {
  const std::lock_guard lock(mutex_);
  totals_.generation_tokens += tokens;
  if (seconds > 0) inter_token_.add(seconds / static_cast<double>(tokens), tokens);
}

void Metrics::on_end(const actors::Completion& c, int64_t prompt_tokens) {
  const std::lock_guard lock(mutex_);
  const auto tokens = static_cast<double>(c.tokens.size());
  ++ended_[c.reason];
  ++totals_.requests;
  totals_.prompt_tokens += prompt_tokens;
  if (c.tokens.empty()) return;  // its client left before the first
  queue_.add(c.admitted_s);
  end_to_end_.add(c.last_token_s);
  prompt_length_.add(static_cast<double>(prompt_tokens));
  answer_length_.add(tokens);
  if (tokens > 1) per_output_token_.add((c.last_token_s - c.first_token_s) / (tokens - 1));
}

void Metrics::on_refused() {
  const std::lock_guard lock(mutex_);
  ++refused_;
}

void Metrics::on_step(const actors::StepStatistics& statistics,
                      const actors::SchedulerState& state) {
  const std::lock_guard lock(mutex_);
  totals_.steps = statistics;
  totals_.now = state;
}

Metrics::Totals Metrics::totals() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

std::string Metrics::text(const std::string& model_name) const {
  const std::lock_guard lock(mutex_);
  const std::string labels = fmt::format("model_name=\"{}\"", escaped(model_name));
  std::string text;
  const auto value = [&](const char* name, const char* type, const char* help, auto number) {
    const std::string full = fmt::format("troupe:{}", name);
    text += described(full, type, help) + fmt::format("{}{{{}}} {}\n", full, labels, number);
  };
  const auto histogram = [&](const char* name, const char* help, const Histogram& h) {
    const std::string full = fmt::format("troupe:{}", name);
    text += described(full, "histogram", help) + h.text(full, labels);
  };
  const actors::StepStatistics& s = totals_.steps;
  const actors::SchedulerState& now = totals_.now;
  value("num_requests_running", "gauge", "Requests in the ranks' batches.", now.running);
  value("num_requests_waiting", "gauge", "Requests that wait to run.", now.waiting);
  value("kv_cache_usage_perc", "gauge", "KV blocks in use; 1 is all of them.",
        now.blocks > 0 ? static_cast<double>(now.blocks_in_use) / static_cast<double>(now.blocks)
                       : 0.0);
  value("kv_cache_blocks", "gauge", "KV blocks of all ranks.", now.blocks);
  value("prefix_cache_queries_total", "counter", "Tokens looked up in the prefix cache.",
        s.admitted_tokens);
  value("prefix_cache_hits_total", "counter", "Tokens found there.", s.reused_tokens);
  value("num_preemptions_total", "counter", "Sequences stopped for want of KV blocks.",
        s.preemptions);
  value("prompt_tokens_total", "counter", "Tokens of the prompts of ended requests.",
        totals_.prompt_tokens);
  value("generation_tokens_total", "counter", "Tokens generated.", totals_.generation_tokens);
  value("prefill_steps_total", "counter", "Steps with prompt tokens.", s.prefill_steps);
  value("decode_steps_total", "counter", "Steps without.", s.decode_steps);
  value("requests_refused_total", "counter", "Requests refused for a full queue.", refused_);

  text += described("troupe:request_success_total", "counter", "Requests by how they ended.");
  for (const auto& [reason, count] : ended_)
    text += fmt::format("troupe:request_success_total{{{},finished_reason=\"{}\"}} {}\n", labels,
                        reason_name(reason), count);
  int64_t drafted = 0, accepted = 0;
  for (size_t i = 0; i < s.drafted_at.size(); ++i) {
    drafted += s.drafted_at[i];
    accepted += s.accepted_at[i];
  }
  value("spec_decode_num_draft_tokens_total", "counter", "Drafts verified.", drafted);
  value("spec_decode_num_accepted_tokens_total", "counter", "Drafts accepted.", accepted);
  for (const auto& [name, help, counts] :
       {std::tuple{"spec_decode_num_draft_tokens_per_pos_total", "Drafts verified, by place.",
                   &s.drafted_at},
        std::tuple{"spec_decode_num_accepted_tokens_per_pos_total", "Drafts accepted, by place.",
                   &s.accepted_at}}) {
    text += described(fmt::format("troupe:{}", name), "counter", help);
    for (size_t i = 0; i < counts->size(); ++i)
      text += fmt::format("troupe:{}{{{},position=\"{}\"}} {}\n", name, labels, i, (*counts)[i]);
  }
  histogram("time_to_first_token_seconds", "From arrival to the first token.", ttft_);
  histogram("inter_token_latency_seconds", "From token to token.", inter_token_);
  histogram("request_time_per_output_token_seconds", "A request's mean from token to token.",
            per_output_token_);
  histogram("e2e_request_latency_seconds", "From arrival to the last token.", end_to_end_);
  histogram("request_queue_time_seconds", "From arrival to the first step.", queue_);
  histogram("request_prompt_tokens", "Tokens of a prompt.", prompt_length_);
  histogram("request_generation_tokens", "Tokens of an answer.", answer_length_);
  return text;
}

}  // namespace troupe::serve

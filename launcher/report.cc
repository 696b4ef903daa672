#include "launcher/report.h"

#include <fcntl.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/memory.h"
#include "base/output_path.h"
#include "layers/isa.h"

namespace troupe::launcher {

namespace {

double ratio(double numerator, double denominator) {
  return denominator > 0 ? numerator / denominator : 0;
}

// By place in the row of drafts, as far as any was made.
std::vector<double> accept_rate_at(const actors::StepStatistics& s) {
  std::vector<double> rates;
  for (size_t i = 0; i < s.drafted_at.size() && s.drafted_at[i] > 0; ++i)
    rates.push_back(
        ratio(static_cast<double>(s.accepted_at[i]), static_cast<double>(s.drafted_at[i])));
  return rates;
}

// What `next_n: auto` measured last: tokens per sequence and second, by number of drafts; null for
// numbers that were not tried.
nlohmann::json draft_rates(const actors::DraftPolicy& drafts) {
  nlohmann::json rates = nlohmann::json::array();
  for (int number = 0; number <= actors::kMaxDrafts; ++number) {
    const auto rate = drafts.rate(number);
    rates.push_back(rate ? nlohmann::json(*rate) : nlohmann::json());
  }
  return rates;
}

// "; next_n auto: 0 drafts, since a sequence gets 4663 tokens/s with 0, 3970 with 1": "" where
// nothing has been compared.
std::string drafts_text(const actors::DraftPolicy& drafts) {
  std::string rates;
  for (int number = 0; number <= actors::kMaxDrafts; ++number)
    if (const auto rate = drafts.rate(number))
      rates += fmt::format("{}{:.0f} with {}", rates.empty() ? " tokens/s " : ", ", *rate, number);
  if (rates.empty()) return "";
  return fmt::format("; next_n auto: {} draft{}, since a sequence gets{}", drafts.steps(),
                     drafts.steps() == 1 ? "" : "s", rates);
}

}  // namespace

RunMetrics run_metrics(const LaunchResult& result) {
  double ttft = 0, tpot = 0;
  int64_t started = 0, decoded = 0, drafted = 0, accepted = 0, forwards = 0;
  for (const actors::Completion& c : result.completions) {
    const auto tokens = static_cast<double>(c.tokens.size());
    if (tokens >= 1) {
      ttft += c.first_token_s;
      ++started;
    }
    if (tokens >= 2) {
      tpot += (c.last_token_s - c.first_token_s) / (tokens - 1);
      ++decoded;
    }
    drafted += c.drafted;
    accepted += c.accepted;
    forwards += c.verify_steps;
  }
  const actors::StepStatistics& s = result.statistics;
  const auto as_double = [](int64_t n) { return static_cast<double>(n); };
  RunMetrics m;
  m.ttft_ms = 1000 * ratio(ttft, as_double(started));
  m.tpot_ms = 1000 * ratio(tpot, as_double(decoded));
  m.prefill_tokens_per_s = ratio(as_double(s.prefill_tokens), s.prefill_s);
  m.decode_tokens_per_s = ratio(as_double(s.decode_tokens), s.decode_s);
  m.drafts = drafted;
  m.avg_accept_rate = ratio(as_double(accepted), as_double(drafted));
  m.avg_accept_length = forwards > 0 ? ratio(as_double(accepted), as_double(forwards)) + 1 : 0;
  m.avg_equivalent_time_ms =
      1000 * ratio(ratio(s.decode_s, as_double(s.decode_steps)), m.avg_accept_length);
  m.prefix_hit_rate = ratio(as_double(s.reused_tokens), as_double(s.admitted_tokens));
  m.scheduler_share = ratio(s.scheduler_s, s.prefill_s + s.decode_s);
  return m;
}

nlohmann::json metrics_json(int world_size, const LaunchResult& result) {
  const RunMetrics m = run_metrics(result);
  nlohmann::json ranks = nlohmann::json::array();
  for (const RankFigures& r : result.ranks)
    ranks.push_back({{"rank", r.rank},
                     {"rss_mb", r.rss_mb},
                     {"pss_mb", r.pss_mb},
                     {"bytes_sent", r.bytes_sent},
                     {"wait_ms", r.wait_ms},
                     {"messages", r.messages},
                     {"graphs_recorded", r.graphs_recorded},
                     {"graphs_replayed", r.graphs_replayed}});
  return {{"world_size", world_size},
          {"isa", layers::isa_name(layers::active_isa())},
          {"ttft_ms", m.ttft_ms},
          {"tpot_ms", m.tpot_ms},
          {"prefill_tokens_per_s", m.prefill_tokens_per_s},
          {"decode_tokens_per_s", m.decode_tokens_per_s},
          {"avg_accept_rate", m.avg_accept_rate},
          {"avg_accept_length", m.avg_accept_length},
          {"avg_equivalent_time_ms", m.avg_equivalent_time_ms},
          {"accept_rate_at", accept_rate_at(result.statistics)},
          {"draft_steps", result.drafts.steps()},
          {"draft_rates", draft_rates(result.drafts)},
          {"prefix_hit_rate", m.prefix_hit_rate},
          {"preemptions", result.statistics.preemptions},
          {"peak_kv_blocks", result.statistics.peak_blocks},
          {"kv_blocks", result.kv_blocks},
          {"scheduler_share", m.scheduler_share},
          {"load_s", result.load_s},
          {"expert_load", expert_load_json(result.expert_load)},
          {"ranks", std::move(ranks)}};
}

std::string metrics_text(int world_size, const LaunchResult& result) {
  const RunMetrics m = run_metrics(result);
  size_t tokens = 0;
  for (const actors::Completion& c : result.completions) tokens += c.tokens.size();
  std::string text = fmt::format(
      "{} tokens on {} rank{} ({}): TTFT {:.1f} ms, TPOT {:.2f} ms, prefill {:.0f} tokens/s, "
      "decode {:.0f} tokens/s",
      tokens, world_size, world_size == 1 ? "" : "s", layers::isa_name(layers::active_isa()),
      m.ttft_ms, m.tpot_ms, m.prefill_tokens_per_s, m.decode_tokens_per_s);
  if (m.drafts > 0)
    text +=
        fmt::format("; MTP: accept rate {:.3f}, accept length {:.2f}, equivalent time {:.2f} ms",
                    m.avg_accept_rate, m.avg_accept_length, m.avg_equivalent_time_ms);
  return text + drafts_text(result.drafts);
}

void write_json_file(const std::filesystem::path& path, const nlohmann::json& json) {
  // Text that is no UTF-8 cannot be told from a broken file later: replace it.
  const std::string text =
      json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  replace_file(path, text);
}

}  // namespace troupe::launcher

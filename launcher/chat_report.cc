#include "launcher/chat_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace troupe::launcher {

namespace {

constexpr size_t kMapWidth = 64;  // characters
constexpr std::string_view kShades = " .:-=+*#%@";

double ratio(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

// Experts as characters: each the sum of as many neighbours as it takes to fit the width.
std::vector<int64_t> columns_of(const std::vector<int64_t>& counts) {
  const size_t group = (counts.size() + kMapWidth - 1) / kMapWidth;
  std::vector<int64_t> columns((counts.size() + group - 1) / group);
  for (size_t expert = 0; expert < counts.size(); ++expert)
    columns[expert / group] += counts[expert];
  return columns;
}

}  // namespace

std::string ending_note(const ChatModel::Answer& answer, const ChatSettings& settings,
                        int64_t context) {
  const auto tokens = std::ssize(answer.completion.tokens);
  switch (answer.completion.reason) {
    case actors::FinishReason::kCancelled:
      return "(stopped)\n";
    case actors::FinishReason::kLength:
      if (answer.prompt_tokens + tokens >= context)
        return fmt::format("(the context of {} tokens is full; /reset starts anew)\n", context);
      return fmt::format("(ended after {0:g} tokens; /set max_new_tokens {1:g} allows more)\n",
                         settings.max_new_tokens, 4 * settings.max_new_tokens);
    case actors::FinishReason::kStop:
    case actors::FinishReason::kNone:
      return "";
  }
  return "";
}

std::string answer_text(const ChatModel::Answer& answer) {
  const actors::Completion& c = answer.completion;
  const auto tokens = std::ssize(c.tokens);
  std::string text =
      fmt::format("last answer: {} tokens of prompt ({} from the prefix cache), {} new tokens\n",
                  answer.prompt_tokens, c.reused_tokens, tokens);
  if (tokens >= 1) text += fmt::format("TTFT {:.1f} ms", 1000 * c.first_token_s);
  if (tokens >= 2)
    text += fmt::format(", TPOT {:.2f} ms", 1000 * (c.last_token_s - c.first_token_s) /
                                                static_cast<double>(tokens - 1));
  if (c.drafted > 0)
    text += fmt::format("; MTP: {} of {} drafts accepted ({:.3f})", c.accepted, c.drafted,
                        ratio(c.accepted, c.drafted));
  return text + '\n';
}

std::string session_text(const Session& session, int answers) {
  const actors::StepStatistics& s = session.statistics();
  const actors::SchedulerState state = session.state();
  std::string text =
      fmt::format("session: {} answers; {} tokens of prompts, {:.1f} % from the prefix cache\n",
                  answers, s.admitted_tokens, 100 * ratio(s.reused_tokens, s.admitted_tokens));
  if (s.decode_s > 0)
    text += fmt::format(
        "prefill {:.0f} tokens/s, decode {:.0f} tokens/s; {} of {} KV blocks in use\n",
        static_cast<double>(s.prefill_tokens) / std::max(s.prefill_s, 1e-9),
        static_cast<double>(s.decode_tokens) / s.decode_s, state.blocks_in_use, state.blocks);
  return text;
}

std::string ranks_table(const std::vector<RankStatus>& ranks) {
  std::string text = fmt::format("{:>4} {:>8} {:<16} {:>9} {:>6} {:>8}  {}\n", "rank", "pid",
                                 "state", "step", "layer", "RSS MB", "waits for");
  for (const RankStatus& rank : ranks) {
    const comm::ActivitySnapshot& now = rank.activity;
    text += fmt::format("{:>4} {:>8} {:<16} {:>9} {:>6} {:>8.1f}  {}\n", rank.rank, rank.pid,
                        comm::stage_name(now.stage), now.step,
                        now.layer >= 0 ? std::to_string(now.layer) : "-", rank.rss_mb,
                        now.waiting_for >= 0 ? fmt::format("rank {}", now.waiting_for) : "-");
  }
  return text;
}

std::string expert_map(const std::vector<std::vector<int64_t>>& counts) {
  std::string text;
  for (size_t layer = 0; layer < counts.size(); ++layer) {
    const std::vector<int64_t>& load = counts[layer];
    const int64_t total = std::accumulate(load.begin(), load.end(), int64_t{0});
    if (total == 0) continue;
    const std::vector<int64_t> columns = columns_of(load);
    const int64_t most = std::ranges::max(columns);
    std::string shades;
    for (const int64_t column : columns)  // rounded up: a blank is an expert nobody asked
      shades +=
          kShades[static_cast<size_t>((column * (std::ssize(kShades) - 1) + most - 1) / most)];
    const auto busiest = std::ranges::max_element(load);
    text += fmt::format("layer {:>3} |{}| expert {} has {:.1f} times the mean\n", layer, shades,
                        busiest - load.begin(), ratio(*busiest * std::ssize(load), total));
  }
  return text.empty() ? "no layer has experts\n" : text;
}

}  // namespace troupe::launcher

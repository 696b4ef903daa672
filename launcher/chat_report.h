// launcher/chat_report.h: what a chat shows of itself, as text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/chat_model.h"
#include "launcher/chat_settings.h"
#include "launcher/session.h"

namespace troupe::launcher {

// Why an answer ended where that is no end of its own: it was stopped, or ran into a limit.
std::string ending_note(const ChatModel::Answer& answer, const ChatSettings& settings,
                        int64_t context);

// Of one answer: tokens, TTFT, TPOT, drafts.
std::string answer_text(const ChatModel::Answer& answer);
// Of all since the start.
std::string session_text(const Session& session, int answers);

std::string ranks_table(const std::vector<RankStatus>& ranks);

// A line for each layer with experts, a character for each expert (for several, where there are
// many) by how often it was chosen: from ' ' never to '@' most often in that layer. And how far the
// busiest expert is from the mean.
std::string expert_map(const std::vector<std::vector<int64_t>>& counts);

}  // namespace troupe::launcher

// actors/sequence.h: a request on its way: its tokens, its KV blocks, its share of the next step.
#pragma once

#include <chrono>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "actors/block_pool.h"
#include "actors/messages/message_generated.h"
#include "actors/request.h"

namespace troupe::actors {

struct Sequence {
  int id = 0;
  std::chrono::steady_clock::time_point submitted = std::chrono::steady_clock::now();
  Request request;
  Completion completion;
  std::vector<int32_t> tokens;  // prompt and what was made; all but the last few have KV rows
  std::vector<int32_t> drafts;  // guesses for what follows tokens
  // Distinct tokens and how often the answer has them; kept for penalties only.
  std::vector<msg::TokenCount> seen;
  std::unordered_map<int32_t, size_t> seen_index;

  // While it runs:
  std::vector<int32_t> block_table;
  // The same for sliding-window layers, if there are any; kGone before window_begin.
  std::vector<int32_t> window_table;
  int64_t window_begin = 0;
  int64_t computed = 0;                                // tokens whose KV rows are in the cache
  int64_t prefill_end = 0;                             // tokens known when it was admitted
  int64_t published_blocks = 0;                        // of the table, in the prefix cache
  BlockPool::Content content = BlockPool::kNoContent;  // of the last published one
  // Entries [foreign_begin, foreign_end) of the table are blocks of request.adopted.
  int64_t foreign_begin = 0, foreign_end = 0;
  int dp_rank = 0;
  bool running = false;
  bool held = false;      // it has ended, its blocks are in use
  bool released = false;  // to be forgotten once it no longer runs

  // This step's share: tokens [first, first + count), the last num_drafts of them drafts.
  int64_t first = 0;
  int count = 0;
  int num_drafts = 0;
  bool sample = false;
  std::vector<msg::BlockCopy> copies;  // from foreign blocks to own ones

  bool in_prefill() const { return computed < prefill_end; }
  bool ended() const { return completion.reason != FinishReason::kNone; }
  bool cancelled() const { return completion.reason == FinishReason::kCancelled; }
  double age_s() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - submitted).count();
  }
  // No step will read what it has adopted.
  void let_go_of_adopted() {
    if (!request.adopted) return;
    const auto tell = std::move(request.adopted->let_go);
    request.adopted.reset();
    if (tell) tell();
  }
  // `of_answer` 0 for a token of the prompt, 1 for one of the answer.
  void count_token(int32_t token, int of_answer) {
    const auto [place, is_new] = seen_index.try_emplace(token, seen.size());
    if (is_new) seen.emplace_back(token, 0);
    seen[place->second] = msg::TokenCount(token, seen[place->second].count() + of_answer);
  }
};

}  // namespace troupe::actors

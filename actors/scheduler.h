// actors/scheduler.h: which sequences run where, one step after the other.
//
// Lives in the launcher's process. Owns the requests, their tokens and their block tables; ranks
// keep nothing between steps but the KV rows that these tables name.
// Hears     StepDone from every rank.
// Says      StepPlan to every rank, once all of them have answered the one before.
//
// Each step every data-parallel rank gets its sequences' next tokens: a piece of a prompt (at most
// max_prefill_tokens of prompts per rank and step), or the last token and its drafts. What a
// sequence yields does not depend on the others, so this decides speed alone.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "actors/actor.h"
#include "actors/block_pool.h"
#include "model/parallel_layout.h"

namespace troupe::actors {

struct Request {
  std::vector<int32_t> prompt;  // at least one token
  int max_new_tokens = 0;       // 0: only score the prompt
  std::set<int32_t> stop_ids;   // generation ends after one of these
  float temperature = 0;
  float top_p = 1;
  int32_t top_k = 0;
  uint64_t seed = 0;
  uint8_t observe = 0;  // msg::Observe bits
};

// UserError when the prompt has more tokens than `max_positions`; `index` names it.
void require_fitting(const Request& request, int index, int64_t max_positions);

enum class FinishReason { kNone, kStop, kLength, kCancelled };

// What became of a request.
struct Completion {
  std::vector<int32_t> tokens;  // without the prompt, with the stop token
  FinishReason reason = FinishReason::kNone;
  std::vector<double> log_probs;      // of prompt tokens 1, 2, ... (observe LogProbs)
  int64_t drafted = 0, accepted = 0;  // over all verification steps
  int64_t verify_steps = 0;
  double first_token_s = 0;  // since the request was submitted, as last_token_s
  double last_token_s = 0;
};

// Sums over the run, for the report.
struct StepStatistics {
  int64_t prefill_steps = 0, decode_steps = 0;
  int64_t prefill_tokens = 0, decode_tokens = 0;  // prompt tokens read, tokens made in decode steps
  double prefill_s = 0, decode_s = 0;
};

struct SchedulerLimits {
  int world_size = 1;
  int attn_tp_size = 1;          // ranks that run the same sequences
  int batch_size = 1;            // sequences in flight over all data-parallel ranks
  int max_prefill_tokens = 512;  // per data-parallel rank and step
  int num_drafts = 0;            // next_n
  bool run_mtp = false;          // also without drafts: to observe the MTP logits
  int64_t max_positions = 0;     // max_position_embeddings
  int block_size = 128;
  int64_t blocks_per_dp_rank = 0;

  int dp_size() const { return world_size / attn_tp_size; }
  int sequences_per_dp_rank() const { return (batch_size + dp_size() - 1) / dp_size(); }
  int max_rows() const { return max_prefill_tokens + sequences_per_dp_rank() * (1 + num_drafts); }
};

class Scheduler final : public Actor {
 public:
  // New tokens of request `id`, as they come; reason is set with the last ones.
  using OnTokens = std::function<void(int id, std::span<const int32_t> tokens, FinishReason)>;
  // The rows [first_position, first_position + count) of request `id` have been observed: they
  // are rows [first_row, first_row + count) of rank `rank`'s observation section until this
  // returns. (The ranks of an attention group show a slice each.)
  using OnObserved =
      std::function<void(int id, int rank, int first_row, int first_position, int count)>;

  Scheduler(Mailbox& mailbox, const SchedulerLimits& limits, OnTokens on_tokens,
            OnObserved on_observed);
  ~Scheduler() override;

  // Requests come and go at any time, also within the callbacks. The id of a new one: 0, 1, 2, ...
  // UserError when its prompt does not fit max_positions.
  int submit(Request request);
  // Ends a request, unless it has ended: nothing of it is said after FinishReason::kCancelled.
  void cancel(int id);
  // Forgets a request that has ended.
  void release(int id);
  // Plans a step when none is under way and there is something to do.
  void advance();
  bool finished() const;  // every request has ended and no step is under way
  uint64_t step() const { return step_; }

  const Completion& completion(int id) const;
  const StepStatistics& statistics() const { return statistics_; }

 private:
  struct Sequence;
  struct DpRank;
  struct Answer;
  class AnswerReader;
  void on(const msg::StepDone& done, int from_rank) override;

  void admit();
  void plan_step();
  void plan_sequence(Sequence& sequence, int& prefill_budget);
  void send_plans();
  void finish_step();
  void show_observed(const DpRank& dp_rank, int rank);
  int candidates() const;
  void apply(DpRank& dp_rank, int rank, const msg::StepDone& done);
  void apply(Sequence& sequence, const Answer& answer);
  void accept_tokens(Sequence& sequence, std::span<const int32_t> tokens);
  void erase_ended();
  bool step_under_way() const;

  SchedulerLimits limits_;
  OnTokens on_tokens_;
  OnObserved on_observed_;
  std::unordered_map<int, std::unique_ptr<Sequence>> sequences_;  // until they are released
  std::deque<Sequence*> waiting_;
  std::vector<DpRank> dp_ranks_;
  int num_submitted_ = 0;
  int num_running_ = 0;
  uint64_t step_ = 0;
  bool decode_step_ = false;
  uint8_t observe_ = 0;         // what any sequence of this step wants to see
  std::vector<uint8_t> asked_;  // [world size]: 1 until the rank has answered this step
  std::chrono::steady_clock::time_point step_started_;
  StepStatistics statistics_;
};

}  // namespace troupe::actors

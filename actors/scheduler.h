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

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "actors/actor.h"
#include "actors/dp_rank.h"
#include "actors/draft_policy.h"
#include "actors/request.h"
#include "actors/scheduler_limits.h"
#include "actors/step_answer.h"
#include "model/parallel_layout.h"

namespace troupe::actors {

// UserError when the request's tokens do not fit max_positions, or the KV blocks of a rank; `index`
// names it.
void require_fitting(const Request& request, int index, const SchedulerLimits& limits);

// Sums over the run, for the report.
struct StepStatistics {
  int64_t prefill_steps = 0, decode_steps = 0;
  int64_t prefill_tokens = 0, decode_tokens = 0;  // prompt tokens read, tokens made in decode steps
  double prefill_s = 0, decode_s = 0;
  double scheduler_s = 0;  // of the steps' time, spent in the scheduler and its callbacks
  int64_t preemptions = 0;
  int64_t admitted_tokens = 0, reused_tokens = 0;  // reused: found in the prefix cache
  int64_t peak_blocks = 0;                         // in use on one data-parallel rank
  // By place in the row of drafts: how many were verified there, and accepted.
  std::array<int64_t, kMaxDrafts> drafted_at{}, accepted_at{};
};

// What is going on at this moment.
struct SchedulerState {
  int waiting = 0, running = 0;
  int64_t blocks_in_use = 0, blocks = 0;  // of all data-parallel ranks
  int held = 0;                           // requests that have ended, whose blocks are in use
};

// A request that has ended and is held (Request::hold).
struct HeldBlocks {
  int dp_rank = 0;
  int64_t positions = 0;  // whose rows lie in the blocks
  std::vector<int32_t> blocks;
  std::vector<uint64_t> generations;  // BlockPool::generation
  std::vector<int32_t> drafts;        // guesses for what follows the answer's one token
};

class Scheduler final : public Actor {
 public:
  // New tokens of request `id`, as they come; reason is set with the last ones.
  using OnTokens = std::function<void(int id, std::span<const int32_t> tokens, FinishReason)>;
  // The rows [first_position, first_position + count) of request `id` have been observed: they
  // are rows [first_row, first_row + count) of rank `rank`'s observation section until this
  // returns. (The ranks of an attention group show a slice each.) A request that was preempted
  // shows its rows again, the same.
  using OnObserved =
      std::function<void(int id, int rank, int first_row, int first_position, int count)>;

  Scheduler(Mailbox& mailbox, const SchedulerLimits& limits, OnTokens on_tokens,
            OnObserved on_observed);
  ~Scheduler() override;

  // Requests come and go at any time, also within the callbacks. The id of a new one: 0, 1, 2, ...
  // UserError when its prompt does not fit max_positions, or its tokens the KV blocks of a rank.
  int submit(Request request);
  // Ends a request, unless it has ended: nothing of it is said after FinishReason::kCancelled.
  void cancel(int id);
  // Forgets a request that has ended, and gives back the blocks that it holds.
  void release(int id);
  // Of a request that is held, once the step that ended it is over on every rank.
  std::optional<HeldBlocks> held(int id) const;
  // BlockPool::show_generations() of a data-parallel rank; before there are requests.
  void show_generations(int dp_rank, std::span<std::atomic<uint64_t>> shown);
  // Plans a step when none is under way and there is something to do.
  void advance();
  bool finished() const;  // every request has ended and no step is under way
  uint64_t step() const { return step_; }

  const Completion& completion(int id) const;
  const StepStatistics& statistics() const { return statistics_; }
  SchedulerState state() const;
  SchedulerState dp_rank_state(int dp_rank) const;  // none waits there
  const DraftPolicy& drafts() const { return drafts_; }

 private:
  class OwnTime;
  void on(const msg::StepDone& done, int from_rank) override;

  void take_first_token(Sequence& s, const Request& request) const;
  void admit();
  bool admit_first();
  void plan_next();
  void plan_step();
  void count_load();  // in the trace
  void send_plans();
  flatbuffers::Offset<msg::SequencePlan> sequence_plan(const Sequence& s);
  void finish_step(double elapsed);
  void remove_ended();
  void wait_again(Sequence* preempted);
  bool step_under_way() const;
  void show_observed(const DpRank& dp_rank, int rank);
  int candidates() const;
  void apply(DpRank& dp_rank, int rank, const msg::StepDone& done);
  void apply(Sequence& s, const SequenceAnswer& answer);
  void count_drafts(Sequence& s, int64_t accepted);
  void accept_tokens(Sequence& s, const SequenceAnswer& answer);
  void accept_token(Sequence& s, const SequenceAnswer& answer, size_t i);

  SchedulerLimits limits_;
  OnTokens on_tokens_;
  OnObserved on_observed_;
  std::unordered_map<int, std::unique_ptr<Sequence>> sequences_;  // until they are released
  std::deque<Sequence*> waiting_;                                 // by id
  std::vector<DpRank> dp_ranks_;
  DraftPolicy drafts_;
  int num_submitted_ = 0;
  int num_running_ = 0;
  uint64_t step_ = 0;
  bool decode_step_ = false;
  int planned_drafts_ = 0;   // draft steps of this step
  int64_t step_tokens_ = 0;  // made in this decode step
  int64_t step_drafted_ = 0, step_accepted_ = 0;
  uint8_t observe_ = 0;         // what any sequence of this step wants to see
  std::vector<uint8_t> asked_;  // [world size]: 1 until the rank has answered this step
  std::chrono::steady_clock::time_point step_started_;
  StepStatistics statistics_;
  // Scratch of a step.
  std::vector<flatbuffers::Offset<msg::SequencePlan>> plans_;
  std::vector<int32_t> plan_tokens_;
  std::vector<Sequence*> ended_;
};

}  // namespace troupe::actors

#include "actors/scheduler.h"

#include <algorithm>

#include "base/error.h"

namespace troupe::actors {

struct Scheduler::Sequence {
  int id = 0;
  std::chrono::steady_clock::time_point submitted = std::chrono::steady_clock::now();
  Request request;
  Completion completion;
  std::vector<int32_t> tokens;  // prompt and what was made; all but the last few have KV rows
  std::vector<int32_t> drafts;  // guesses for what follows tokens
  std::vector<int32_t> block_table;
  int64_t computed = 0;  // tokens whose KV rows are in the cache
  // This step's share.
  int64_t first = 0;
  int count = 0;
  int num_drafts = 0;
  bool sample = false;
  bool running = false;   // on a rank
  bool released = false;  // to be forgotten once it no longer runs

  bool in_prompt() const { return computed < static_cast<int64_t>(request.prompt.size()); }
  bool ended() const { return completion.reason != FinishReason::kNone; }
  bool cancelled() const { return completion.reason == FinishReason::kCancelled; }
  double age_s() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - submitted).count();
  }
};

struct Scheduler::DpRank {
  BlockPool pool;
  std::vector<Sequence*> running;
  std::vector<Sequence*> planned;  // in the order of this step's plan
  int rows = 0;
};

// What a rank says of one sequence.
struct Scheduler::Answer {
  std::span<const int32_t> tokens;  // empty without sampling
  std::span<const int32_t> drafts;
  std::span<const double> log_probs;
};

// Cuts the flat arrays of a StepDone into the answers of the planned sequences, in their order.
class Scheduler::AnswerReader {
 public:
  AnswerReader(int rank, const msg::StepDone& done)
      : rank_(rank),
        step_(done.step()),
        counts_(view(done.counts())),
        tokens_(view(done.tokens())),
        drafts_(view(done.drafts())),
        log_probs_(view(done.log_probs())) {}

  Answer next(const Sequence& s, int draft_steps, bool with_log_probs) {
    const int32_t count = take(counts_, 1)[0];
    if (s.sample ? count < 1 || count > s.num_drafts + 1 : count != 0) fail();
    const int log_probs = s.sample ? s.count - 1 : s.count;
    return {.tokens = take(tokens_, count),
            .drafts = take(drafts_, s.sample ? draft_steps : 0),
            .log_probs = take(log_probs_, with_log_probs ? log_probs : 0)};
  }
  void expect_end() const {
    if (!counts_.empty() || !tokens_.empty() || !drafts_.empty() || !log_probs_.empty()) fail();
  }

 private:
  template <class T>
  static std::span<const T> view(const flatbuffers::Vector<T>* values) {
    return values == nullptr ? std::span<const T>() : std::span(values->data(), values->size());
  }
  template <class T>
  std::span<const T> take(std::span<const T>& values, size_t count) const {
    if (count > values.size()) fail();
    const auto taken = values.first(count);
    values = values.subspan(count);
    return taken;
  }
  [[noreturn]] void fail() const {
    throw_rank_error("rank {}'s answer to step {} has the wrong shape", rank_, step_);
  }

  int rank_;
  uint64_t step_;
  std::span<const int32_t> counts_, tokens_, drafts_;
  std::span<const double> log_probs_;
};

Scheduler::Scheduler(Mailbox& mailbox, const SchedulerLimits& limits, OnTokens on_tokens,
                     OnObserved on_observed)
    : Actor(mailbox, msg::ActorKind::Scheduler),
      limits_(limits),
      on_tokens_(std::move(on_tokens)),
      on_observed_(std::move(on_observed)),
      asked_(limits.world_size, 0) {
  for (int d = 0; d < limits_.dp_size(); ++d)
    dp_ranks_.push_back({BlockPool(limits_.blocks_per_dp_rank), {}, {}, 0});
}

Scheduler::~Scheduler() = default;

void require_fitting(const Request& request, int index, int64_t max_positions) {
  const auto length = static_cast<int64_t>(request.prompt.size());
  if (length > max_positions)
    throw_user_error(
        "prompt {} has {} tokens, more than the model's max_position_embeddings {}; "
        "shorten it",
        index, length, max_positions);
}

int Scheduler::submit(Request request) {
  require_fitting(request, num_submitted_, limits_.max_positions);
  auto sequence = std::make_unique<Sequence>();
  sequence->id = num_submitted_++;
  sequence->tokens = request.prompt;
  sequence->request = std::move(request);
  waiting_.push_back(sequence.get());
  const int id = sequence->id;
  sequences_.emplace(id, std::move(sequence));
  return id;
}

void Scheduler::cancel(int id) {
  Sequence& s = *sequences_.at(id);
  if (s.ended()) return;
  s.completion.reason = FinishReason::kCancelled;
  std::erase(waiting_, &s);  // one that runs leaves at the end of its step
  on_tokens_(id, {}, FinishReason::kCancelled);
}

void Scheduler::release(int id) {
  Sequence& s = *sequences_.at(id);
  TROUPE_CHECK(s.ended(), "request {}", id);
  s.released = true;
  if (!s.running) sequences_.erase(id);
}

bool Scheduler::step_under_way() const {
  return std::ranges::find(asked_, uint8_t{1}) != asked_.end();
}

bool Scheduler::finished() const {
  return waiting_.empty() && num_running_ == 0 && !step_under_way();
}

const Completion& Scheduler::completion(int id) const { return sequences_.at(id)->completion; }

// A waiting request goes to the rank with the fewest sequences (the lowest of equals); it takes the
// blocks for its whole life at once, so a running one never lacks any.
void Scheduler::admit() {
  while (!waiting_.empty() && num_running_ < limits_.batch_size) {
    DpRank& least =
        *std::ranges::min_element(dp_ranks_, {}, [](const DpRank& d) { return d.running.size(); });
    Sequence& sequence = *waiting_.front();
    const int64_t wanted =
        static_cast<int64_t>(sequence.request.prompt.size()) + sequence.request.max_new_tokens;
    const int64_t positions = std::min(wanted, limits_.max_positions) + limits_.num_drafts + 1;
    const int64_t blocks = (positions + limits_.block_size - 1) / limits_.block_size;
    if (!least.pool.extend(sequence.block_table, blocks)) {
      TROUPE_CHECK(!least.running.empty(), "{} blocks for request {}, {} in the pool", blocks,
                   sequence.id, least.pool.free_blocks());
      return;
    }
    waiting_.pop_front();
    least.running.push_back(&sequence);
    sequence.running = true;
    ++num_running_;
  }
}

void Scheduler::plan_sequence(Sequence& s, int& prefill_budget) {
  s.first = s.computed;
  s.num_drafts = 0;
  if (s.in_prompt()) {
    const int64_t left = static_cast<int64_t>(s.request.prompt.size()) - s.computed;
    s.count = static_cast<int>(std::min<int64_t>(left, prefill_budget));
    s.sample = s.count == left;
    prefill_budget -= s.count;
    decode_step_ = false;
  } else {
    s.num_drafts = static_cast<int>(s.drafts.size());
    s.count = 1 + s.num_drafts;
    s.sample = true;
  }
}

void Scheduler::advance() {
  if (step_under_way()) return;
  admit();
  if (num_running_ > 0) plan_step();
}

void Scheduler::plan_step() {
  ++step_;
  decode_step_ = true;
  for (DpRank& dp_rank : dp_ranks_) {
    int prefill_budget = limits_.max_prefill_tokens;
    dp_rank.planned.clear();
    dp_rank.rows = 0;
    for (Sequence* sequence : dp_rank.running) {
      if (sequence->in_prompt() && prefill_budget == 0) continue;
      plan_sequence(*sequence, prefill_budget);
      dp_rank.planned.push_back(sequence);
      dp_rank.rows += sequence->count;
    }
  }
  send_plans();
}

void Scheduler::send_plans() {
  int max_rows = 0, max_sequences = 0;
  for (const DpRank& dp_rank : dp_ranks_) {
    max_rows = std::max(max_rows, dp_rank.rows);
    max_sequences = std::max(max_sequences, static_cast<int>(dp_rank.planned.size()));
  }
  observe_ = 0;
  for (const DpRank& dp_rank : dp_ranks_)
    for (const Sequence* s : dp_rank.planned) observe_ |= s->request.observe;

  step_started_ = std::chrono::steady_clock::now();
  asked_.assign(limits_.world_size, 1);
  for (int rank = 0; rank < limits_.world_size; ++rank) {
    auto& b = builder();
    std::vector<flatbuffers::Offset<msg::SequencePlan>> plans;
    for (const Sequence* s : dp_ranks_[rank / limits_.attn_tp_size].planned) {
      std::vector<int32_t> tokens(s->tokens.begin() + s->first,
                                  s->tokens.begin() + s->first + s->count - s->num_drafts);
      tokens.insert(tokens.end(), s->drafts.begin(), s->drafts.begin() + s->num_drafts);
      const int32_t next = s->sample ? -1 : s->tokens[s->first + s->count];
      const Request& r = s->request;
      const msg::Sampling sampling(r.temperature, r.top_p, r.top_k, 0, r.seed);
      const auto token_vector = b.CreateVector(tokens);
      const auto table = b.CreateVector(s->block_table);
      plans.push_back(msg::CreateSequencePlan(b, static_cast<uint32_t>(s->id),
                                              static_cast<int32_t>(s->first), token_vector,
                                              s->num_drafts, s->sample, next, table, &sampling));
    }
    const auto vector = b.CreateVector(plans);
    send({rank, msg::ActorKind::Rank},
         msg::CreateStepPlan(b, step_, decode_step_, max_rows, max_sequences, limits_.run_mtp,
                             limits_.num_drafts, observe_, candidates(), vector));
  }
}

void Scheduler::on(const msg::StepDone& done, int from_rank) {
  if (done.step() != step_ || from_rank < 0 || from_rank >= limits_.world_size)
    throw_rank_error("rank {} answered step {} during step {}", from_rank, done.step(), step_);
  if (asked_[from_rank] == 0)
    throw_rank_error("rank {} answered step {} without being asked", from_rank, step_);
  asked_[from_rank] = 0;
  apply(dp_ranks_[from_rank / limits_.attn_tp_size], from_rank, done);
  if (std::ranges::find(asked_, 1) == asked_.end()) finish_step();
}

void Scheduler::finish_step() {
  const double elapsed =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - step_started_).count();
  (decode_step_ ? statistics_.decode_s : statistics_.prefill_s) += elapsed;
  ++(decode_step_ ? statistics_.decode_steps : statistics_.prefill_steps);
  erase_ended();
  advance();
}

void Scheduler::erase_ended() {
  for (DpRank& dp_rank : dp_ranks_)
    std::erase_if(dp_rank.running, [&](Sequence* s) {
      if (!s->ended()) return false;
      dp_rank.pool.release(s->block_table);
      s->running = false;
      --num_running_;
      if (s->released) sequences_.erase(s->id);
      return true;
    });
}

// A rank's observation section holds its slice of the rows that its attention group computed.
void Scheduler::show_observed(const DpRank& dp_rank, int rank) {
  const model::Range own =
      model::piece(dp_rank.rows, rank % limits_.attn_tp_size, limits_.attn_tp_size);
  int64_t row = 0;
  for (const Sequence* s : dp_rank.planned) {
    const int64_t begin = std::max(own.begin, row), end = std::min(own.end, row + s->count);
    if (s->request.observe != 0 && !s->cancelled() && begin < end)
      on_observed_(s->id, rank, static_cast<int>(begin - own.begin),
                   static_cast<int>(s->first + begin - row), static_cast<int>(end - begin));
    row += s->count;
  }
}

// How many of the best logits of a row the planned sequences can need; 0: all.
int Scheduler::candidates() const {
  int most = 1;
  for (const DpRank& dp_rank : dp_ranks_)
    for (const Sequence* s : dp_rank.planned) {
      const Request& r = s->request;
      const bool all = r.observe != 0 || (r.temperature > 0 && r.top_k == 0);
      if (all) return 0;
      if (r.temperature > 0) most = std::max(most, static_cast<int>(r.top_k));
    }
  return most;
}

void Scheduler::apply(DpRank& dp_rank, int rank, const msg::StepDone& done) {
  show_observed(dp_rank, rank);
  if (rank % limits_.attn_tp_size != 0) return;  // its group's first rank has said the same
  const bool with_log_probs = (observe_ & static_cast<uint8_t>(msg::Observe::LogProbs)) != 0;
  AnswerReader reader(rank, done);
  for (Sequence* s : dp_rank.planned)
    apply(*s, reader.next(*s, limits_.num_drafts, with_log_probs));
  reader.expect_end();
}

void Scheduler::apply(Sequence& s, const Answer& answer) {
  if (s.ended()) return;  // cancelled during the step
  Completion& completion = s.completion;
  const size_t tokens_before = completion.tokens.size();
  const auto accepted = static_cast<int64_t>(answer.tokens.size()) - 1;
  const bool was_prompt = s.in_prompt();
  if (was_prompt) {
    statistics_.prefill_tokens += s.count;
    if ((s.request.observe & static_cast<uint8_t>(msg::Observe::LogProbs)) != 0)
      completion.log_probs.insert(completion.log_probs.end(), answer.log_probs.begin(),
                                  answer.log_probs.end());
  } else {
    ++completion.verify_steps;
    completion.drafted += s.num_drafts;
    completion.accepted += accepted;
  }
  s.computed = s.first + s.count - s.num_drafts + (s.sample ? accepted : 0);
  s.drafts.assign(answer.drafts.begin(), answer.drafts.end());
  accept_tokens(s, answer.tokens);
  if (!was_prompt && decode_step_)
    statistics_.decode_tokens += static_cast<int64_t>(completion.tokens.size() - tokens_before);
}

void Scheduler::accept_tokens(Sequence& s, std::span<const int32_t> tokens) {
  if (tokens.empty()) return;
  Completion& completion = s.completion;
  const size_t first_new = completion.tokens.size();
  if (first_new == 0) completion.first_token_s = s.age_s();
  const auto room = [&] {
    return static_cast<int64_t>(completion.tokens.size()) < s.request.max_new_tokens &&
           static_cast<int64_t>(s.tokens.size()) < limits_.max_positions;
  };
  for (const int32_t token : tokens) {
    if (!room()) break;
    completion.tokens.push_back(token);
    s.tokens.push_back(token);
    if (s.request.stop_ids.contains(token)) {
      completion.reason = FinishReason::kStop;
      break;
    }
  }
  if (completion.reason == FinishReason::kNone && !room())
    completion.reason = FinishReason::kLength;
  completion.last_token_s = s.age_s();
  on_tokens_(s.id, std::span(completion.tokens).subspan(first_new), completion.reason);
}

}  // namespace troupe::actors

#include "actors/scheduler.h"

#include <algorithm>

#include "base/error.h"

namespace troupe::actors {

namespace {

using std::chrono::steady_clock;

double seconds_since(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

bool has(uint8_t observe, msg::Observe bit) { return (observe & static_cast<uint8_t>(bit)) != 0; }

}  // namespace

void require_fitting(const Request& request, int index, const SchedulerLimits& limits) {
  const auto length = static_cast<int64_t>(request.prompt.size());
  if (length > limits.max_positions)
    throw_user_error(
        "prompt {} has {} tokens, more than the model's max_position_embeddings {}; "
        "shorten it",
        index, length, limits.max_positions);
  const int64_t blocks = limits.most_blocks(length, request.max_new_tokens);
  if (blocks > limits.blocks_per_dp_rank)
    throw_user_error(
        "prompt {} has {} tokens and may get {} more: {} KV blocks of {} positions, a rank has {}; "
        "shorten it, lower scheduler_config.max_new_tokens, or raise "
        "scheduler_config.mem_fraction_static or runtime_config.device_memory_gb",
        index, length, request.max_new_tokens, blocks, limits.block_size,
        limits.blocks_per_dp_rank);
}

// Adds the time of a handler to the statistics.
class Scheduler::OwnTime {
 public:
  explicit OwnTime(StepStatistics& statistics) : statistics_(statistics) {}
  ~OwnTime() { statistics_.scheduler_s += seconds_since(started_); }
  OwnTime(const OwnTime&) = delete;
  OwnTime& operator=(const OwnTime&) = delete;

 private:
  StepStatistics& statistics_;
  steady_clock::time_point started_ = steady_clock::now();
};

Scheduler::Scheduler(Mailbox& mailbox, const SchedulerLimits& limits, OnTokens on_tokens,
                     OnObserved on_observed)
    : Actor(mailbox, msg::ActorKind::Scheduler),
      limits_(limits),
      on_tokens_(std::move(on_tokens)),
      on_observed_(std::move(on_observed)),
      drafts_(limits.num_drafts, limits.auto_drafts),
      asked_(limits.world_size, 0) {
  dp_ranks_.reserve(limits_.dp_size());
  for (int d = 0; d < limits_.dp_size(); ++d) dp_ranks_.emplace_back(limits_);
}

Scheduler::~Scheduler() = default;

// ---- requests -----------------------------------------------------------------------------------

int Scheduler::submit(Request request) {
  require_fitting(request, num_submitted_, limits_);
  TROUPE_CHECK(!request.prompt.empty() && request.top_log_probs <= kMaxTopLogProbs);
  auto sequence = std::make_unique<Sequence>();
  sequence->id = num_submitted_++;
  sequence->tokens = request.prompt;
  // So that no step of a running sequence allocates for them.
  const auto most = limits_.most_positions(std::ssize(request.prompt), request.max_new_tokens);
  sequence->tokens.reserve(most);
  sequence->completion.tokens.reserve(
      std::min<int64_t>(request.max_new_tokens, limits_.max_positions));
  sequence->block_table.reserve(limits_.blocks_of(most));
  if (limits_.window > 0) sequence->window_table.reserve(limits_.blocks_of(most));
  sequence->drafts.reserve(limits_.num_drafts);
  if (request.penalises())
    for (const int32_t token : request.prompt) sequence->count_token(token, 0);
  if (request.adopted) take_first_token(*sequence, request);
  sequence->request = std::move(request);
  waiting_.push_back(sequence.get());
  const int id = sequence->id;
  sequences_.emplace(id, std::move(sequence));
  return id;
}

// Of what another launch has begun.
void Scheduler::take_first_token(Sequence& s, const Request& request) const {
  const AdoptedBlocks& adopted = *request.adopted;
  TROUPE_CHECK(
      adopted.positions == std::ssize(request.prompt) &&
          limits_.blocks_of(adopted.positions) == std::ssize(adopted.blocks) &&
          std::ranges::all_of(adopted.blocks,
                              [&](int32_t block) { return block >= limits_.blocks_per_dp_rank; }),
      "{} blocks for {} positions of {}", adopted.blocks.size(), adopted.positions,
      request.prompt.size());
  s.tokens.push_back(adopted.first_token);
  s.completion.tokens.push_back(adopted.first_token);
  s.copies.reserve(adopted.blocks.size());
  if (request.penalises()) s.count_token(adopted.first_token, 1);
}

void Scheduler::cancel(int id) {
  Sequence& s = *sequences_.at(id);
  if (s.ended()) return;
  s.completion.reason = FinishReason::kCancelled;
  if (!s.running) s.let_go_of_adopted();
  std::erase(waiting_, &s);  // one that runs leaves at the end of its step
  on_tokens_(id, {}, FinishReason::kCancelled);
}

void Scheduler::release(int id) {
  Sequence& s = *sequences_.at(id);
  TROUPE_CHECK(s.ended(), "request {}", id);
  if (s.held) dp_ranks_[s.dp_rank].release_held(s);
  s.released = true;
  if (!s.running) sequences_.erase(id);
}

std::optional<HeldBlocks> Scheduler::held(int id) const {
  const Sequence& s = *sequences_.at(id);
  if (!s.held) return std::nullopt;
  HeldBlocks held{.dp_rank = s.dp_rank,
                  .positions = s.computed,
                  .blocks = s.block_table,
                  .generations = {},
                  .drafts = s.drafts};
  for (const int32_t block : s.block_table)
    held.generations.push_back(dp_ranks_[s.dp_rank].pool().generation(block));
  return held;
}

void Scheduler::show_generations(int dp_rank, std::span<std::atomic<uint64_t>> shown) {
  dp_ranks_[dp_rank].pool().show_generations(shown);
}

bool Scheduler::step_under_way() const {
  return std::ranges::find(asked_, uint8_t{1}) != asked_.end();
}

bool Scheduler::finished() const {
  return waiting_.empty() && num_running_ == 0 && !step_under_way();
}

const Completion& Scheduler::completion(int id) const { return sequences_.at(id)->completion; }

SchedulerState Scheduler::state() const {
  SchedulerState state{.waiting = static_cast<int>(waiting_.size()), .running = num_running_};
  for (int d = 0; d < limits_.dp_size(); ++d) {
    state.blocks_in_use += dp_rank_state(d).blocks_in_use;
    state.blocks += dp_rank_state(d).blocks;
    state.held += dp_rank_state(d).held;
  }
  return state;
}

SchedulerState Scheduler::dp_rank_state(int dp_rank) const {
  const DpRank& d = dp_ranks_[dp_rank];
  return {.waiting = 0,
          .running = d.running(),
          .blocks_in_use = d.pool().in_use(),
          .blocks = d.pool().num_blocks(),
          .held = d.held()};
}

// ---- a step -------------------------------------------------------------------------------------

// The request that waits for longest goes to the rank whose blocks it leaves the least used (the
// lowest of equals); nobody overtakes it.
bool Scheduler::admit_first() {
  Sequence& s = *waiting_.front();
  DpRank* best = nullptr;
  int64_t least = 0;
  for (DpRank& dp_rank : dp_ranks_) {
    if (!dp_rank.has_seat()) continue;
    const int64_t load = dp_rank.load_with(s);
    if (best != nullptr && load >= least) continue;
    best = &dp_rank;
    least = load;
  }
  if (best == nullptr || !best->admit(s)) return false;
  s.dp_rank = static_cast<int>(best - dp_ranks_.data());
  waiting_.pop_front();
  ++num_running_;
  statistics_.admitted_tokens += std::ssize(s.tokens);
  statistics_.reused_tokens += s.computed;
  if (s.completion.preemptions == 0) {
    s.completion.admitted_s = s.age_s();
    s.completion.reused_tokens = s.computed;
  }
  return true;
}

void Scheduler::admit() {
  while (!waiting_.empty() && num_running_ < limits_.batch_size)
    if (!admit_first()) return;
}

void Scheduler::advance() {
  if (step_under_way()) return;
  const OwnTime time(statistics_);
  plan_next();
}

void Scheduler::plan_next() {
  admit();
  if (num_running_ > 0) plan_step();
}

void Scheduler::wait_again(Sequence* preempted) {
  const auto place = std::ranges::lower_bound(waiting_, preempted->id, {}, &Sequence::id);
  waiting_.insert(place, preempted);
  --num_running_;
  ++statistics_.preemptions;
}

void Scheduler::plan_step() {
  ++step_;
  if (trace() != nullptr) {
    trace()->set_track(comm::TraceTrack::kScheduler);
    trace()->set_step(step_);
  }
  const comm::TraceSpan span(trace(), comm::TraceOp::kPlanStep, num_running_);
  decode_step_ = true;
  planned_drafts_ = drafts_.steps();
  observe_ = 0;
  for (DpRank& dp_rank : dp_ranks_) {
    dp_rank.plan_step(planned_drafts_);
    for (Sequence* s : dp_rank.preempted()) wait_again(s);
    decode_step_ = decode_step_ && !dp_rank.has_prefill();
    for (const Sequence* s : dp_rank.planned()) observe_ |= s->request.observe;
    statistics_.peak_blocks = std::max(statistics_.peak_blocks, dp_rank.pool().in_use());
  }
  count_load();
  send_plans();
}

void Scheduler::count_load() {
  if (trace() == nullptr) return;
  using comm::TraceCounter;
  trace()->count(TraceCounter::kRunning, num_running_);
  trace()->count(TraceCounter::kWaiting, std::ssize(waiting_));
  for (int d = 0; d < limits_.dp_size(); ++d)
    trace()->count(TraceCounter::kKvBlocks, dp_ranks_[d].pool().in_use(), d);
}

flatbuffers::Offset<msg::SequencePlan> Scheduler::sequence_plan(const Sequence& s) {
  auto& b = builder();
  const Request& r = s.request;
  const auto first = s.tokens.begin() + s.first;
  plan_tokens_.assign(first, first + s.count - s.num_drafts);
  plan_tokens_.insert(plan_tokens_.end(), s.drafts.begin(), s.drafts.begin() + s.num_drafts);
  const msg::Sampling sampling(r.temperature, r.top_p, r.top_k, r.choice, r.seed, r.min_p,
                               r.repetition_penalty, r.presence_penalty, r.frequency_penalty,
                               r.top_log_probs);
  const auto tokens = b.CreateVector(plan_tokens_);
  const auto table = b.CreateVector(s.block_table);
  flatbuffers::Offset<flatbuffers::Vector<int32_t>> window_table;
  if (limits_.window > 0) window_table = b.CreateVector(s.window_table);
  flatbuffers::Offset<flatbuffers::Vector<const msg::BlockCopy*>> copies;
  if (!s.copies.empty()) copies = b.CreateVectorOfStructs(s.copies);
  flatbuffers::Offset<flatbuffers::Vector<const msg::TokenCount*>> seen;
  flatbuffers::Offset<flatbuffers::Vector<const msg::TokenBias*>> bias;
  if (s.sample && !s.seen.empty()) seen = b.CreateVectorOfStructs(s.seen);
  if (s.sample && !r.logit_bias.empty())
    bias = b.CreateVectorOfStructs<msg::TokenBias>(
        r.logit_bias.size(), [&](size_t i, msg::TokenBias* out) {
          *out = msg::TokenBias(r.logit_bias[i].first, r.logit_bias[i].second);
        });
  return msg::CreateSequencePlan(b, static_cast<uint32_t>(s.id), static_cast<int32_t>(s.first),
                                 tokens, s.num_drafts, s.sample,
                                 s.sample ? -1 : s.tokens[s.first + s.count], table, &sampling,
                                 seen, bias, window_table, copies);
}

void Scheduler::send_plans() {
  int max_rows = 0, max_sequences = 0, top_log_probs = -1;
  for (const DpRank& dp_rank : dp_ranks_) {
    max_rows = std::max(max_rows, dp_rank.rows());
    max_sequences = std::max(max_sequences, static_cast<int>(dp_rank.planned().size()));
    for (const Sequence* s : dp_rank.planned())
      top_log_probs = std::max(top_log_probs, s->request.top_log_probs);
  }
  // Without drafts MTP reads prompts all the same: there may be drafts again before they end.
  const bool observes_mtp = limits_.run_mtp && limits_.num_drafts == 0;
  const bool run_mtp =
      observes_mtp || planned_drafts_ > 0 || (limits_.num_drafts > 0 && !decode_step_);
  step_started_ = steady_clock::now();
  asked_.assign(limits_.world_size, 1);
  const uint32_t recording = trace() == nullptr ? 0 : trace()->recording();
  for (int rank = 0; rank < limits_.world_size; ++rank) {
    plans_.clear();
    for (const Sequence* s : dp_ranks_[rank / limits_.attn_tp_size].planned())
      plans_.push_back(sequence_plan(*s));
    const auto sequences = builder().CreateVector(plans_);
    send({rank, msg::ActorKind::Rank},
         msg::CreateStepPlan(builder(), step_, decode_step_, max_rows, max_sequences, run_mtp,
                             planned_drafts_, observe_, candidates(), sequences, top_log_probs,
                             recording));
  }
}

void Scheduler::on(const msg::StepDone& done, int from_rank) {
  if (done.step() != step_ || from_rank < 0 || from_rank >= limits_.world_size)
    throw_rank_error("rank {} answered step {} during step {}", from_rank, done.step(), step_);
  if (asked_[from_rank] == 0)
    throw_rank_error("rank {} answered step {} without being asked", from_rank, step_);
  const OwnTime time(statistics_);
  comm::TraceSpan span(trace(), comm::TraceOp::kAnswer, 0, 0, from_rank);
  asked_[from_rank] = 0;
  const double elapsed = seconds_since(step_started_);
  const int64_t tokens_before = statistics_.decode_tokens;
  apply(dp_ranks_[from_rank / limits_.attn_tp_size], from_rank, done);
  step_tokens_ += statistics_.decode_tokens - tokens_before;
  span.end();
  if (step_under_way()) return;
  (decode_step_ ? statistics_.decode_s : statistics_.prefill_s) += elapsed;
  ++(decode_step_ ? statistics_.decode_steps : statistics_.prefill_steps);
  finish_step(elapsed);
}

void Scheduler::finish_step(double elapsed) {
  int64_t sequences = 0;
  for (const DpRank& dp_rank : dp_ranks_) sequences += std::ssize(dp_rank.planned());
  if (decode_step_) drafts_.on_decode_step(step_tokens_, sequences, elapsed);
  step_tokens_ = 0;
  if (trace() != nullptr && decode_step_) {
    trace()->count(comm::TraceCounter::kDrafted, step_drafted_);
    trace()->count(comm::TraceCounter::kAccepted, step_accepted_);
  }
  step_drafted_ = step_accepted_ = 0;
  remove_ended();
  plan_next();
}

void Scheduler::remove_ended() {
  ended_.clear();
  for (DpRank& dp_rank : dp_ranks_) dp_rank.remove_ended(ended_);
  num_running_ -= static_cast<int>(ended_.size());
  for (const Sequence* s : ended_)
    if (s->released) sequences_.erase(s->id);
}

// ---- answers ------------------------------------------------------------------------------------

// A rank's observation section holds its slice of the rows that its attention group computed.
void Scheduler::show_observed(const DpRank& dp_rank, int rank) {
  const model::Range own =
      model::piece(dp_rank.rows(), rank % limits_.attn_tp_size, limits_.attn_tp_size);
  int64_t row = 0;
  for (const Sequence* s : dp_rank.planned()) {
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
    for (const Sequence* s : dp_rank.planned()) {
      const Request& r = s->request;
      const bool all = r.observe != 0 || r.top_log_probs >= 0 || r.penalises() ||
                       !r.logit_bias.empty() || (r.temperature > 0 && r.top_k == 0);
      if (all) return 0;
      if (r.temperature > 0) most = std::max(most, static_cast<int>(r.top_k));
    }
  return most;
}

void Scheduler::apply(DpRank& dp_rank, int rank, const msg::StepDone& done) {
  show_observed(dp_rank, rank);
  if (rank % limits_.attn_tp_size != 0) return;  // its group's first rank has said the same
  const bool with_log_probs = has(observe_, msg::Observe::LogProbs);
  AnswerReader reader(rank, done);
  for (Sequence* s : dp_rank.planned()) {
    const SequenceAnswer answer = reader.next(*s, planned_drafts_, with_log_probs);
    if (s->ended()) continue;  // cancelled during the step
    apply(*s, answer);
    dp_rank.publish(*s);
  }
  reader.expect_end();
}

void Scheduler::apply(Sequence& s, const SequenceAnswer& answer) {
  Completion& completion = s.completion;
  const size_t tokens_before = completion.tokens.size();
  const int64_t accepted = std::ssize(answer.tokens) - 1;
  const bool was_prefill = s.in_prefill();
  if (was_prefill) {
    statistics_.prefill_tokens += s.count;
    const int64_t last = std::ssize(s.request.prompt) - 1;
    if (has(s.request.observe, msg::Observe::LogProbs))  // once, also of one that was preempted
      for (int64_t i = std::ssize(completion.log_probs) - s.first;
           i < std::ssize(answer.log_probs) && s.first + i < last; ++i)
        completion.log_probs.push_back(answer.log_probs[i]);
  } else {
    count_drafts(s, accepted);
  }
  s.computed = s.first + s.count - s.num_drafts + (s.sample ? accepted : 0);
  s.drafts.assign(answer.drafts.begin(), answer.drafts.end());
  accept_tokens(s, answer);
  if (!was_prefill && decode_step_)
    statistics_.decode_tokens += static_cast<int64_t>(completion.tokens.size() - tokens_before);
}

void Scheduler::count_drafts(Sequence& s, int64_t accepted) {
  ++s.completion.verify_steps;
  s.completion.drafted += s.num_drafts;
  s.completion.accepted += accepted;
  step_drafted_ += s.num_drafts;
  step_accepted_ += accepted;
  for (int place = 0; place < s.num_drafts; ++place) {
    ++statistics_.drafted_at[place];
    statistics_.accepted_at[place] += place < accepted;
  }
}

void Scheduler::accept_tokens(Sequence& s, const SequenceAnswer& answer) {
  if (answer.tokens.empty()) return;
  Completion& completion = s.completion;
  const size_t first_new = completion.tokens.size();
  if (first_new == 0) completion.first_token_s = s.age_s();
  const auto room = [&] {
    return std::ssize(completion.tokens) < s.request.max_new_tokens &&
           std::ssize(s.tokens) < limits_.max_positions;
  };
  for (size_t i = 0; i < answer.tokens.size() && room() && !s.ended(); ++i)
    accept_token(s, answer, i);
  if (!s.ended() && !room()) completion.reason = FinishReason::kLength;
  completion.last_token_s = s.age_s();
  on_tokens_(s.id, std::span(completion.tokens).subspan(first_new), completion.reason);
}

void Scheduler::accept_token(Sequence& s, const SequenceAnswer& answer, size_t i) {
  const Request& r = s.request;
  const int32_t token = answer.tokens[i];
  s.completion.tokens.push_back(token);
  s.tokens.push_back(token);
  if (r.penalises()) s.count_token(token, 1);
  if (r.top_log_probs >= 0) {
    const float* log_probs = answer.sampled_log_probs.data() + i * (1 + r.top_log_probs);
    const int32_t* top = answer.top_tokens.data() + i * r.top_log_probs;
    TokenLogProbs& out = s.completion.token_log_probs.emplace_back();
    out.chosen = log_probs[0];
    for (int k = 0; k < r.top_log_probs; ++k) out.top.emplace_back(top[k], log_probs[1 + k]);
  }
  const bool stops = r.stops_after && r.stops_after(token);
  if (stops || r.stop_ids.contains(token)) s.completion.reason = FinishReason::kStop;
}

}  // namespace troupe::actors

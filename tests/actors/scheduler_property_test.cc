// Random requests over random worlds, whose ranks accept drafts at random: every plan is checked
// against what is known of its sequences and of the rows in its blocks, and the end against what
// each request yields alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "fake_ranks.h"

namespace troupe::actors {
namespace {

using Ints = std::vector<int32_t>;

constexpr int32_t kVocab = 40;
constexpr int32_t kNoToken = kVocab;  // a draft that is never right

// The token of a request at a position, whoever computes it; what the row before says of it.
int32_t true_token(int request, int64_t position) {
  uint64_t x = static_cast<uint64_t>(request) * 1'000'003 + static_cast<uint64_t>(position);
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15;
  return static_cast<int32_t>((x >> 40) % kVocab);
}

enum class Kind { kFull, kWindow };  // of layers

// A row of the cache: what it was computed from.
uint64_t true_row(Kind kind, int request, int64_t position) {
  uint64_t x = kind == Kind::kFull ? 1 : 2;
  for (int64_t p = 0; p <= position; ++p)
    x = (x + static_cast<uint64_t>(true_token(request, p))) * 0x9e3779b97f4a7c15;
  return x;
}
double log_prob(int request, int64_t position) {
  return -1 - static_cast<double>(position) - 1000.0 * request;
}

// What a request yields by itself.
Completion alone(const Request& r, int request, int64_t max_positions) {
  Completion c;
  const auto prompt = static_cast<int64_t>(r.prompt.size());
  for (int64_t position = prompt; c.reason == FinishReason::kNone; ++position) {
    if (position - prompt == r.max_new_tokens || position == max_positions) {
      c.reason = FinishReason::kLength;
    } else {
      c.tokens.push_back(true_token(request, position));
      if (r.stop_ids.contains(c.tokens.back())) c.reason = FinishReason::kStop;
    }
  }
  for (int64_t position = 0; position + 1 < prompt && r.observe != 0; ++position)
    c.log_probs.push_back(log_prob(request, position));
  return c;
}

class RandomWorld {
 public:
  explicit RandomWorld(uint32_t seed)
      : random_(seed),
        limits_(random_limits()),
        requests_(random_requests()),
        followed_(requests_.size()),
        world_(limits_ = with_pools(limits_, requests_, below(4)), requests_) {
    for (size_t i = 0; i < requests_.size(); ++i)
      followed_[i].known = std::ssize(requests_[i].prompt);
  }

  int64_t preemptions() const { return preemptions_; }
  int64_t reused_tokens() const { return reused_tokens_; }

  // Returns the number of steps.
  int run() {
    int steps = 0;
    while (!world_.finished() && !testing::Test::HasFatalFailure()) {
      ++steps;
      check_plans();
      std::vector<int> order(limits_.world_size);
      for (int rank = 0; rank < limits_.world_size; ++rank) order[rank] = rank;
      std::ranges::shuffle(order, random_);
      std::vector<msg::StepDoneT> answers;
      for (int rank = 0; rank < limits_.world_size; ++rank) answers.push_back(play(rank));
      for (const int rank : order) world_.answer(rank, answers[rank]);
      EXPECT_EQ(world_.plans_sent(), (steps + (world_.finished() ? 0 : 1)) * limits_.world_size);
    }
    check_end();
    return steps;
  }

 private:
  // What the plans and answers so far say of a request.
  struct Followed {
    int dp_rank = -1;  // not yet seen
    bool finished = false;
    int64_t computed = 0;
    int64_t known = 0, prefill_end = 0;  // tokens; those known when it began, or began again
    Ints block_table, window_table, drafts;
    int restarts = 0;
    int64_t num_drafted = 0, num_accepted = 0, verify_steps = 0;
  };

  int below(int bound) { return static_cast<int>(random_() % static_cast<uint32_t>(bound)); }

  SchedulerLimits random_limits() {
    SchedulerLimits limits;
    limits.attn_tp_size = 1 << below(2);
    limits.world_size = limits.attn_tp_size * (1 + below(4));
    limits.batch_size = 1 + below(8);
    limits.max_prefill_tokens = 1 + below(20);
    limits.num_drafts = below(5);
    limits.run_mtp = limits.num_drafts > 0;
    limits.max_positions = 20 + below(40);
    limits.block_size = 1 + below(9);
    limits.reserved_decode_tokens = below(20);
    if (below(2) == 0) limits.window = 1 + below(20);
    return limits;
  }

  std::vector<Request> random_requests() {
    std::vector<Request> requests(1 + below(25));
    for (size_t i = 0; i < requests.size(); ++i) {
      Request& r = requests[i];
      const int length = 1 + below(static_cast<int>(below(4) == 0 ? limits_.max_positions : 12));
      for (int p = 0; p < length; ++p) r.prompt.push_back(true_token(static_cast<int>(i), p));
      r.max_new_tokens = below(5) == 0 ? 0 : below(40);
      if (below(2) == 0) r.stop_ids = {below(kVocab), below(kVocab)};
      if (below(3) == 0) r.observe = static_cast<uint8_t>(msg::Observe::LogProbs);
    }
    return requests;
  }

  // Hardly more blocks than one sequence needs: most are stopped now and then.
  static SchedulerLimits with_pools(SchedulerLimits limits, const std::vector<Request>& requests,
                                    int64_t more) {
    for (const Request& r : requests)
      limits.blocks_per_dp_rank =
          std::max(limits.blocks_per_dp_rank,
                   limits.most_blocks(std::ssize(r.prompt), r.max_new_tokens) + more);
    return limits;
  }

  // ---- plans ----

  void check_plans() {
    int64_t max_rows = 0, max_sequences = 0;
    bool decode = true;
    std::set<int> planned;
    for (int rank = 0; rank < limits_.world_size; ++rank) {
      const msg::StepPlanT& plan = world_.plan(rank);
      max_rows = std::max(max_rows, check_rank(rank));
      max_sequences = std::max(max_sequences, static_cast<int64_t>(plan.sequences.size()));
      for (const auto& s : plan.sequences) {
        planned.insert(static_cast<int>(s->sequence));
        decode &= s->first_position >= followed_[s->sequence].prefill_end;
      }
    }
    check_headers(max_rows, max_sequences, decode);
    check_running(planned);
  }

  void check_headers(int64_t max_rows, int64_t max_sequences, bool decode) {
    for (int rank = 0; rank < limits_.world_size; ++rank) {
      const msg::StepPlanT& plan = world_.plan(rank);
      EXPECT_EQ(plan.step, world_.scheduler().step());
      EXPECT_EQ(plan.max_rows, max_rows);
      EXPECT_EQ(plan.max_sequences, max_sequences);
      EXPECT_EQ(plan.decode, decode);
      EXPECT_EQ(plan.draft_steps, limits_.num_drafts);
      EXPECT_EQ(plan.run_mtp, limits_.run_mtp);
      EXPECT_EQ(plan.observe, world_.plan(0).observe);
    }
    EXPECT_GT(max_rows, 0) << "a step without work";
  }

  void check_running(const std::set<int>& planned) {
    int running = 0;
    for (size_t i = 0; i < followed_.size(); ++i) {
      const Followed& f = followed_[i];
      const bool waits = f.restarts < world_.completion(static_cast<int>(i)).preemptions;
      if (f.dp_rank < 0 || f.finished || waits) continue;
      ++running;
      if (f.computed >= f.prefill_end) {
        EXPECT_TRUE(planned.contains(static_cast<int>(i))) << "request " << i << " was left out";
      }
    }
    EXPECT_LE(running, limits_.batch_size);
  }

  // Where a block is used.
  struct Place {
    Kind kind;
    uint32_t sequence;
    size_t entry;
  };

  // Returns the number of rows.
  int64_t check_rank(int rank) {
    const msg::StepPlanT& plan = world_.plan(rank);
    EXPECT_LE(std::ssize(plan.sequences), limits_.sequences_per_dp_rank());
    int64_t rows = 0, prompt_rows = 0;
    std::map<int32_t, Place> blocks;
    for (const auto& s : plan.sequences) {
      check_sequence(*s, rank / limits_.attn_tp_size);
      EXPECT_EQ(plan.observe & requests_[s->sequence].observe, requests_[s->sequence].observe);
      const auto take = [&](Kind kind, const Ints& table) {
        for (size_t i = 0; i < table.size(); ++i) {
          if (kind == Kind::kWindow && table[i] == BlockPool::kGone) continue;
          const auto [other, is_new] = blocks.try_emplace(table[i], Place{kind, s->sequence, i});
          if (!is_new) check_shared(*s, {kind, s->sequence, i}, other->second);
        }
      };
      take(Kind::kFull, s->block_table);
      take(Kind::kWindow, s->window_table);
      rows += std::ssize(s->tokens);
      if (s->first_position < followed_[s->sequence].prefill_end)
        prompt_rows += std::ssize(s->tokens);
    }
    EXPECT_TRUE(blocks.empty() || (blocks.begin()->first >= 0 &&
                                   blocks.rbegin()->first < limits_.blocks_per_dp_rank));
    EXPECT_LE(prompt_rows, limits_.max_prefill_tokens);
    EXPECT_LE(rows, limits_.max_rows());
    return rows;
  }

  void check_sequence(const msg::SequencePlanT& s, int dp_rank) {
    Followed& f = followed_[s.sequence];
    const auto request = static_cast<int>(s.sequence);
    const int preemptions = world_.completion(request).preemptions;
    if (f.dp_rank < 0 || f.restarts < preemptions) begin(f, s, dp_rank, preemptions);
    EXPECT_FALSE(f.finished);
    EXPECT_EQ(f.dp_rank, dp_rank) << "moved to another rank";
    ASSERT_GE(s.block_table.size(), f.block_table.size());
    EXPECT_TRUE(
        std::ranges::equal(f.block_table, std::span(s.block_table).first(f.block_table.size())))
        << "moved to other blocks";
    f.block_table = s.block_table;
    EXPECT_EQ(s.first_position, f.computed);
    check_windows(s, f);
    check_rows(s, dp_rank);

    const auto known = std::ssize(s.tokens) - s.num_drafts;
    ASSERT_GE(known, 1);
    for (int64_t i = 0; i < known; ++i)
      EXPECT_EQ(s.tokens[i], true_token(request, s.first_position + i));
    EXPECT_EQ(Ints(s.tokens.begin() + known, s.tokens.end()), f.drafts);
    const int64_t end = s.first_position + known;
    EXPECT_EQ(s.sample, end >= f.known);
    EXPECT_TRUE(s.sample || s.next_token == true_token(request, end));
    EXPECT_TRUE(s.first_position < f.prefill_end || known == 1);

    // The step writes rows for its tokens, and MTP rows up to the last draft it makes.
    const int64_t last_slot = s.first_position + std::ssize(s.tokens) - 1 +
                              (s.sample ? std::max(0, limits_.num_drafts - 1) : 0);
    EXPECT_LT(last_slot / limits_.block_size, std::ssize(s.block_table));
  }

  // Blocks of sliding layers stay where they are until they lie behind the window.
  void check_windows(const msg::SequencePlanT& s, Followed& f) {
    ASSERT_EQ(s.window_table.size(), limits_.window > 0 ? s.block_table.size() : 0u);
    if (limits_.window == 0) return;
    const int64_t size = limits_.block_size, seen = s.first_position + 1 - limits_.window;
    int64_t held = 0;
    for (int64_t i = 0; i < std::ssize(s.window_table); ++i) {
      const bool gone = s.window_table[i] == BlockPool::kGone;
      EXPECT_EQ(gone, (i + 1) * size <= seen) << "block " << i;
      if (i < std::ssize(f.window_table) && !gone) {
        EXPECT_EQ(s.window_table[i], f.window_table[i]) << "moved to another block";
      }
      held += gone ? 0 : 1;
    }
    const int64_t rows = limits_.window + limits_.max_prefill_tokens + 3 * limits_.num_drafts;
    EXPECT_LE(held, rows / size + 2);
    f.window_table = s.window_table;
  }

  // Whatever the step will read is what the sequence, or one with the same beginning, has written.
  void check_rows(const msg::SequencePlanT& s, int dp_rank) {
    const auto request = static_cast<int>(s.sequence);
    for (int64_t p = 0; p < s.first_position; ++p) {
      EXPECT_EQ(row(dp_rank, s.block_table, p), true_row(Kind::kFull, request, p));
      if (limits_.window > 0 && p > s.first_position - limits_.window) {
        EXPECT_EQ(row(dp_rank, s.window_table, p), true_row(Kind::kWindow, request, p));
      }
    }
  }
  uint64_t& row(int dp_rank, const Ints& table, int64_t position) {
    std::vector<uint64_t>& rows = rows_[{dp_rank, table[position / limits_.block_size]}];
    rows.resize(limits_.block_size);
    return rows[position % limits_.block_size];
  }

  // It starts, or starts again, perhaps with whole blocks that hold its first tokens.
  void begin(Followed& f, const msg::SequencePlanT& s, int dp_rank, int preemptions) {
    EXPECT_EQ(s.first_position % limits_.block_size, 0);
    EXPECT_LT(s.first_position, f.known);
    EXPECT_TRUE(s.first_position == 0 || requests_[s.sequence].observe == 0);
    f.dp_rank = dp_rank;
    f.restarts = preemptions;
    f.computed = s.first_position;
    f.prefill_end = f.known;
    f.block_table = s.block_table;
    f.window_table = s.window_table;
    f.drafts.clear();
  }

  // A block in two tables holds the same tokens (with MTP, the same token after them), and nobody
  // writes to it.
  void check_shared(const msg::SequencePlanT& s, const Place& place, const Place& other) {
    EXPECT_EQ(place.kind, other.kind);
    EXPECT_EQ(place.entry, other.entry);
    const int64_t end = static_cast<int64_t>(place.entry + 1) * limits_.block_size;
    const int a = static_cast<int>(s.sequence), b = static_cast<int>(other.sequence);
    for (int64_t p = 0; p < end + (limits_.run_mtp ? 1 : 0); ++p)
      EXPECT_EQ(true_token(a, p), true_token(b, p)) << "position " << p;
    EXPECT_GE(followed_[a].computed, end);
    EXPECT_GE(followed_[b].computed, end);
  }

  // ---- answers ----

  // Answers as a rank does; only the first rank of an attention group moves what is followed.
  msg::StepDoneT play(int rank) {
    const msg::StepPlanT& plan = world_.plan(rank);
    msg::StepDoneT done;
    done.step = plan.step;
    if (rank % limits_.attn_tp_size != 0) return done;
    for (const auto& s : plan.sequences) {
      const auto rows = std::ssize(s->tokens) - (s->sample ? 1 : 0);
      if ((plan.observe & static_cast<uint8_t>(msg::Observe::LogProbs)) != 0)
        for (int64_t i = 0; i < rows; ++i)
          done.log_probs.push_back(log_prob(static_cast<int>(s->sequence), s->first_position + i));
      play_sequence(*s, rank / limits_.attn_tp_size, done);
    }
    return done;
  }

  // Drafts write the rows of what they take for the tokens.
  void write_rows(const msg::SequencePlanT& s, int dp_rank) {
    const auto request = static_cast<int>(s.sequence);
    bool right = true;
    for (int64_t i = 0; i < std::ssize(s.tokens); ++i) {
      const int64_t p = s.first_position + i;
      right = right && s.tokens[i] == true_token(request, p);
      row(dp_rank, s.block_table, p) = right ? true_row(Kind::kFull, request, p) : 0;
      if (limits_.window > 0)
        row(dp_rank, s.window_table, p) = right ? true_row(Kind::kWindow, request, p) : 0;
    }
  }

  void play_sequence(const msg::SequencePlanT& s, int dp_rank, msg::StepDoneT& done) {
    write_rows(s, dp_rank);
    Followed& f = followed_[s.sequence];
    const auto request = static_cast<int>(s.sequence);
    const int64_t first_new = s.first_position + std::ssize(s.tokens) - s.num_drafts;
    f.computed = first_new;
    done.counts.push_back(0);
    if (!s.sample) return;

    int accepted = 0;
    while (accepted < s.num_drafts && s.tokens[first_new - s.first_position + accepted] ==
                                          true_token(request, first_new + accepted))
      ++accepted;
    for (int i = 0; i <= accepted; ++i) done.tokens.push_back(true_token(request, first_new + i));
    done.counts.back() = accepted + 1;
    f.computed = first_new + accepted;
    f.known = f.computed + 1;
    if (s.first_position >= f.prefill_end) ++f.verify_steps;
    f.num_drafted += s.num_drafts;
    f.num_accepted += accepted;

    f.drafts.clear();
    for (int i = 1; i <= limits_.num_drafts; ++i)
      f.drafts.push_back(below(3) == 0 ? kNoToken : true_token(request, f.computed + i));
    done.drafts.insert(done.drafts.end(), f.drafts.begin(), f.drafts.end());
    // Finished once all of what it yields alone has been said.
    const Completion whole = alone(requests_[request], request, limits_.max_positions);
    f.finished = f.computed + 1 >= std::ssize(requests_[request].prompt) + std::ssize(whole.tokens);
  }

  // ---- the end ----

  void check_end() {
    for (size_t i = 0; i < requests_.size(); ++i) {
      const Completion whole = alone(requests_[i], static_cast<int>(i), limits_.max_positions);
      const Completion& c = world_.completion(static_cast<int>(i));
      EXPECT_EQ(c.tokens, whole.tokens) << "request " << i;
      EXPECT_EQ(c.reason, whole.reason) << "request " << i;
      EXPECT_EQ(c.log_probs, whole.log_probs) << "request " << i;
      EXPECT_EQ(c.drafted, followed_[i].num_drafted) << "request " << i;
      EXPECT_EQ(c.accepted, followed_[i].num_accepted) << "request " << i;
      EXPECT_EQ(c.verify_steps, followed_[i].verify_steps) << "request " << i;
      preemptions_ += c.preemptions;
    }
    EXPECT_EQ(world_.scheduler().state().blocks_in_use, 0);
    reused_tokens_ += world_.scheduler().statistics().reused_tokens;
  }

  std::mt19937 random_;
  SchedulerLimits limits_;
  std::vector<Request> requests_;
  std::vector<Followed> followed_;
  FakeRanks world_;
  std::map<std::pair<int, int32_t>, std::vector<uint64_t>>
      rows_;  // by data-parallel rank and block
  int64_t preemptions_ = 0, reused_tokens_ = 0;
};

TEST(SchedulerProperty, EveryRequestYieldsWhatItYieldsAloneWhateverTheWorld) {
  int steps = 0;
  int64_t preemptions = 0, reused_tokens = 0;
  for (uint32_t seed = 0; seed < 300 && !HasFailure(); ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    RandomWorld world(seed);
    steps += world.run();
    preemptions += world.preemptions();
    reused_tokens += world.reused_tokens();
  }
  EXPECT_GT(steps, 10'000);
  EXPECT_GT(preemptions, 100);
  EXPECT_GT(reused_tokens, 100);
}

}  // namespace
}  // namespace troupe::actors

#include "actors/dp_rank.h"

#include <algorithm>

#include "base/error.h"

namespace troupe::actors {

namespace {

// Of one sequence that pulls what it has adopted: so much of a step is left for its tokens.
constexpr int64_t kPulledPerStep = 4;

}  // namespace

DpRank::DpRank(const SchedulerLimits& limits)
    : limits_(limits), pool_(limits.blocks_per_dp_rank, key_tokens()) {}

bool DpRank::has_seat() const {
  return static_cast<int>(running_.size()) < limits_.sequences_per_dp_rank();
}

std::span<const int32_t> DpRank::key(const Sequence& s, int64_t block) const {
  return std::span(s.tokens).subspan(block * limits_.block_size, key_tokens());
}

int64_t DpRank::shareable_blocks(const Sequence& s) const {
  // What is observed has to be computed.
  if (s.request.observe != 0) return 0;
  return (static_cast<int64_t>(s.tokens.size()) - 1) / limits_.block_size;
}

// What a block of sliding layers comes after: the content of the other layers' block that has the
// same positions, told apart from that block's own successor.
static BlockPool::Content beside(BlockPool::Content content) {
  return content | BlockPool::Content{1} << 63;
}

DpRank::Prefix DpRank::find_prefix(const Sequence& s) {
  Prefix prefix;
  if (s.request.adopted) return prefix;  // begins with what another launch has
  BlockPool::Content content = BlockPool::kNoContent;
  int64_t windows = 0;  // blocks of sliding layers found in a row
  for (int64_t b = 0; b < shareable_blocks(s); ++b) {
    const auto found = pool_.find(content, key(s, b));
    if (!found) break;
    content = found->content;
    const int64_t end = b + 1;
    if (limits_.window > 0) {
      windows = pool_.find(beside(content), key(s, b)) ? windows + 1 : 0;
      const int64_t begin = limits_.first_window_block(end * limits_.block_size);
      if (windows >= end - begin) prefix = {.blocks = end, .window_begin = begin};
    } else {
      prefix.blocks = end;
    }
  }
  return prefix;
}

void DpRank::take_prefix(Sequence& s) {
  const Prefix prefix = find_prefix(s);
  for (int64_t b = 0; b < prefix.blocks; ++b) {
    const auto found = pool_.take(s.content, key(s, b));
    s.block_table.push_back(found->block);
    s.content = found->content;
    if (limits_.window == 0) continue;
    const bool seen = b >= prefix.window_begin;
    s.window_table.push_back(seen ? pool_.take(beside(s.content), key(s, b))->block
                                  : BlockPool::kGone);
  }
  s.window_begin = prefix.window_begin;
}

// With room for the next reserved_decode_tokens, but no more than it can ever use.
int64_t DpRank::blocks_soon(const Sequence& s) const {
  const auto known = static_cast<int64_t>(s.tokens.size());
  const auto prompt = static_cast<int64_t>(s.request.prompt.size());
  return limits_.blocks_for(
      std::min(known + limits_.reserved_decode_tokens + 2 * limits_.num_drafts,
               limits_.most_positions(prompt, s.request.max_new_tokens)));
}

int64_t DpRank::blocks_held(const Sequence& s) {
  return std::ssize(s.block_table) + std::ssize(s.window_table) - s.window_begin;
}

int64_t DpRank::load_with(const Sequence& s) {
  const Prefix prefix = find_prefix(s);
  const int64_t windows = limits_.window > 0 ? prefix.blocks - prefix.window_begin : 0;
  int64_t blocks = blocks_soon(s) - prefix.blocks - windows;
  for (const Sequence* r : running_) blocks += std::max(blocks_soon(*r), blocks_held(*r));
  return blocks;
}

// Begins with what the prefix cache has.
void DpRank::reuse(Sequence& s) {
  take_prefix(s);
  s.published_blocks = static_cast<int64_t>(s.block_table.size());
  s.computed = s.published_blocks * limits_.block_size;
  s.prefill_end = static_cast<int64_t>(s.tokens.size());
}

// Begins with the blocks of another launch. What was made after them before a preemption is read
// again like a prompt.
void DpRank::adopt(Sequence& s) {
  const AdoptedBlocks& adopted = *s.request.adopted;
  s.block_table.assign(adopted.blocks.begin(), adopted.blocks.end());
  s.foreign_begin = 0;
  s.foreign_end = static_cast<int64_t>(adopted.blocks.size());
  s.computed = adopted.positions;
  s.prefill_end = static_cast<int64_t>(s.tokens.size());
  if (s.prefill_end > s.computed + 1) return;
  s.prefill_end = s.computed;
  const auto usable = std::min<int64_t>(std::ssize(adopted.drafts), limits_.num_drafts);
  s.drafts.assign(adopted.drafts.begin(), adopted.drafts.begin() + usable);
}

// Of its foreign blocks, those that it is to have copies of: all, or the partly filled one.
int64_t DpRank::copies_left(const Sequence& s) const {
  if (!s.request.adopted) return 0;
  if (s.request.adopted->pull) return s.foreign_end - s.foreign_begin;
  return s.foreign_end - std::min(s.foreign_end, s.request.adopted->positions / limits_.block_size);
}

int64_t DpRank::copies_due(const Sequence& s) const {
  return std::min(copies_left(s), kPulledPerStep);
}

// The partly filled block first: this step writes there.
void DpRank::copy_foreign(Sequence& s) {
  s.copies.clear();
  for (int64_t left = copies_due(s); left > 0; --left) {
    const bool partly_filled = s.foreign_end * limits_.block_size > s.request.adopted->positions;
    int32_t& entry = s.block_table[partly_filled ? --s.foreign_end : s.foreign_begin++];
    copy_.clear();
    TROUPE_CHECK(pool_.extend(copy_, 1));
    s.copies.emplace_back(entry, copy_[0]);
    entry = copy_[0];
  }
}

bool DpRank::admit(Sequence& s) {
  s.request.adopted ? adopt(s) : reuse(s);
  int64_t wanted = 0;
  const auto add_wanted = [&](const Sequence& r) {
    wanted += std::max<int64_t>(0, blocks_soon(r) - blocks_held(r)) + copies_left(r);
  };
  add_wanted(s);
  for (const Sequence* r : running_) add_wanted(*r);
  if (wanted > pool_.available() && !(running_.empty() && held_ == 0)) {
    stop(s);
    return false;
  }
  s.running = true;
  running_.push_back(&s);
  return true;
}

void DpRank::stop(Sequence& s) {
  std::erase_if(s.block_table, [&](int32_t block) { return block >= pool_.num_blocks(); });
  pool_.release(s.window_table);
  pool_.release(s.block_table);
  s.window_begin = 0;
  s.foreign_begin = s.foreign_end = 0;
  s.copies.clear();
  s.drafts.clear();
  s.computed = 0;
  s.published_blocks = 0;
  s.content = BlockPool::kNoContent;
  s.running = false;
}

void DpRank::share_out() {
  int prefill_budget = limits_.max_prefill_tokens;
  planned_.clear();
  rows_ = 0;
  has_prefill_ = false;
  for (Sequence* s : running_) {
    s->first = s->computed;
    s->num_drafts = 0;
    if (s->in_prefill()) {
      const int64_t left = s->prefill_end - s->computed;
      s->count = static_cast<int>(std::min<int64_t>(left, prefill_budget));
      if (s->count == 0) continue;
      s->sample = s->count == left;
      prefill_budget -= s->count;
      has_prefill_ = true;
    } else {
      s->num_drafts = static_cast<int>(s->drafts.size());
      s->count = 1 + s->num_drafts;
      s->sample = true;
    }
    planned_.push_back(s);
    rows_ += s->count;
  }
}

// Slots are written for a step's tokens, and by MTP up to the last draft but one after them.
int64_t DpRank::slots(const Sequence& s) const {
  return s.first + s.count + (s.sample ? std::max(0, draft_steps_ - 1) : 0);
}

int64_t DpRank::blocks_missing() const {
  int64_t missing = 0;
  for (const Sequence* s : planned_) {
    const int64_t blocks = limits_.blocks_of(slots(*s));
    missing += std::max<int64_t>(0, blocks - std::ssize(s->block_table));
    if (limits_.window > 0) missing += std::max<int64_t>(0, blocks - std::ssize(s->window_table));
    missing += copies_due(*s);
  }
  return missing;
}

// Gives back what no query of this step or a later one can see.
void DpRank::leave_windows() {
  if (limits_.window == 0) return;
  for (Sequence* s : running_) {
    const int64_t begin =
        std::min(limits_.first_window_block(s->computed), std::ssize(s->window_table));
    pool_.give_back(std::span(s->window_table).subspan(s->window_begin, begin - s->window_begin));
    s->window_begin = begin;
  }
}

void DpRank::preempt_cheapest() {
  TROUPE_CHECK(running_.size() > 1 || held_ > 0, "{} blocks do not suffice for one sequence",
               pool_.num_blocks());
  const auto dearer = [](const Sequence* a, const Sequence* b) {
    return a->computed != b->computed ? a->computed < b->computed : a->id > b->id;
  };
  const auto cheapest = std::ranges::min_element(running_, dearer);
  Sequence& s = **cheapest;
  running_.erase(cheapest);
  stop(s);
  ++s.completion.preemptions;
  preempted_.push_back(&s);
}

void DpRank::plan_step(int draft_steps) {
  draft_steps_ = draft_steps;
  preempted_.clear();
  leave_windows();
  for (share_out(); blocks_missing() > pool_.available(); share_out()) preempt_cheapest();
  for (Sequence* s : planned_) {
    const int64_t blocks = limits_.blocks_of(slots(*s));
    TROUPE_CHECK(pool_.extend(s->block_table, blocks));
    if (limits_.window > 0) TROUPE_CHECK(pool_.extend(s->window_table, blocks));
    copy_foreign(*s);
  }
}

void DpRank::publish(Sequence& s) {
  if (s.foreign_begin < s.foreign_end) return;  // others look for it where it lies
  s.let_go_of_adopted();
  const int64_t known = std::min(s.computed, static_cast<int64_t>(s.tokens.size()));
  for (int64_t b = s.published_blocks; (b + 1) * limits_.block_size <= known; ++b) {
    if (b * limits_.block_size + key_tokens() > static_cast<int64_t>(s.tokens.size())) return;
    s.content = pool_.publish(s.block_table[b], s.content, key(s, b));
    if (limits_.window > 0 && b >= s.window_begin)
      pool_.publish(s.window_table[b], beside(s.content), key(s, b));
    s.published_blocks = b + 1;
  }
}

void DpRank::remove_ended(std::vector<Sequence*>& ended) {
  std::erase_if(running_, [&](Sequence* s) {
    if (!s->ended()) return false;
    if (s->request.hold && !s->released && s->completion.reason == FinishReason::kLength)
      hold(*s);
    else
      stop(*s);
    s->let_go_of_adopted();
    ended.push_back(s);
    return true;
  });
}

// Only the blocks of its rows: MTP may have written past them.
void DpRank::hold(Sequence& s) {
  const auto used = static_cast<size_t>(limits_.blocks_of(s.computed));
  std::vector<int32_t> rest(s.block_table.begin() + static_cast<int64_t>(used),
                            s.block_table.end());
  pool_.release(rest);
  s.block_table.resize(used);
  s.running = false;
  s.held = true;
  ++held_;
}

void DpRank::release_held(Sequence& s) {
  TROUPE_CHECK(s.held, "request {}", s.id);
  stop(s);
  s.held = false;
  --held_;
}

}  // namespace troupe::actors

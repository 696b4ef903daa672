#include "actors/dp_rank.h"

#include <algorithm>

#include "base/error.h"

namespace troupe::actors {

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

bool DpRank::admit(Sequence& s) {
  take_prefix(s);
  int64_t wanted = 0;
  const auto add_wanted = [&](const Sequence& r) {
    wanted += std::max<int64_t>(0, blocks_soon(r) - blocks_held(r));
  };
  add_wanted(s);
  for (const Sequence* r : running_) add_wanted(*r);
  if (wanted > pool_.available() && !running_.empty()) {
    stop(s);
    return false;
  }
  s.published_blocks = static_cast<int64_t>(s.block_table.size());
  s.computed = s.published_blocks * limits_.block_size;
  s.prefill_end = static_cast<int64_t>(s.tokens.size());
  s.running = true;
  running_.push_back(&s);
  return true;
}

void DpRank::stop(Sequence& s) {
  pool_.release(s.window_table);
  pool_.release(s.block_table);
  s.window_begin = 0;
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
  TROUPE_CHECK(running_.size() > 1, "{} blocks do not suffice for one sequence",
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
  }
}

void DpRank::publish(Sequence& s) {
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
    stop(*s);
    ended.push_back(s);
    return true;
  });
}

}  // namespace troupe::actors

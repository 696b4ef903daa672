// actors/dp_rank.h: one data-parallel rank as the scheduler sees it: which sequences run there,
// which KV blocks they have, and what each does in the next step.
//
// Sequences take blocks as they grow. When the pool has none left, the sequence that is cheapest to
// compute again (fewest tokens so far) loses its own and waits once more: the one furthest on is
// never stopped, so that each gets to its end.
//
// Full blocks are published for reuse. With MTP a block's last slot depends on the token after the
// block, which is therefore part of its key.
//
// Sliding-window layers have a table of their own beside that of the others, out of the same pool:
// a block is block_size positions of either kind of layers. What lies behind the window is given
// back before each step. A prefix can be reused if the blocks of the other layers are there from
// its beginning, and those of the sliding layers over its last window.
//
// A sequence may begin with blocks of another launch (AdoptedBlocks): ids past those of the pool,
// read but never written, taken or given back here. One that is to be held when it ends keeps its
// blocks until release_held(): then they are used by nobody else, and fewer sequences find room.
#pragma once

#include <vector>

#include "actors/block_pool.h"
#include "actors/scheduler_limits.h"
#include "actors/sequence.h"

namespace troupe::actors {

class DpRank {
 public:
  explicit DpRank(const SchedulerLimits& limits);

  bool has_seat() const;
  // Blocks that the running sequences may need soon, were `s` among them.
  int64_t load_with(const Sequence& s);
  // Starts `s` with what the prefix cache has of it; false when the blocks do not suffice now.
  bool admit(Sequence& s);

  // Shares out a step: planned(), rows(). Sequences that lost their blocks are in preempted().
  void plan_step(int draft_steps);
  const std::vector<Sequence*>& planned() const { return planned_; }
  const std::vector<Sequence*>& preempted() const { return preempted_; }
  int rows() const { return rows_; }
  bool has_prefill() const { return has_prefill_; }  // in this step

  // Offers the full blocks of `s` to others; after its rows have been computed.
  void publish(Sequence& s);
  // Takes the sequences that have ended out and appends them to `ended`.
  void remove_ended(std::vector<Sequence*>& ended);

  // Gives back the blocks of a sequence that was held.
  void release_held(Sequence& s);
  int held() const { return held_; }  // sequences

  const BlockPool& pool() const { return pool_; }
  BlockPool& pool() { return pool_; }
  int running() const { return static_cast<int>(running_.size()); }

 private:
  int key_tokens() const { return limits_.block_size + (limits_.run_mtp ? 1 : 0); }
  std::span<const int32_t> key(const Sequence& s, int64_t block) const;
  // How many full blocks of its tokens can be found: the last token's row is always computed.
  int64_t shareable_blocks(const Sequence& s) const;
  // What the prefix cache has of `s`: blocks [0, blocks), of sliding layers [window_begin, blocks).
  struct Prefix {
    int64_t blocks = 0, window_begin = 0;
  };
  Prefix find_prefix(const Sequence& s);
  void take_prefix(Sequence& s);
  int64_t blocks_soon(const Sequence& s) const;
  static int64_t blocks_held(const Sequence& s);
  int64_t slots(const Sequence& s) const;
  void leave_windows();
  void reuse(Sequence& s);
  void adopt(Sequence& s);
  int64_t copies_left(const Sequence& s) const;
  int64_t copies_due(const Sequence& s) const;
  void copy_foreign(Sequence& s);
  void stop(Sequence& s);
  void hold(Sequence& s);
  void share_out();
  int64_t blocks_missing() const;
  void preempt_cheapest();

  const SchedulerLimits& limits_;
  BlockPool pool_;
  std::vector<Sequence*> running_, planned_, preempted_;
  int rows_ = 0;
  int draft_steps_ = 0;
  bool has_prefill_ = false;
  int held_ = 0;
  std::vector<int32_t> copy_;  // the block that a copy goes to
};

}  // namespace troupe::actors

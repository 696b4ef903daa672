// actors/scheduler_limits.h: what a step may hold.
#pragma once

#include <algorithm>
#include <cstdint>

namespace troupe::actors {

inline constexpr int kMaxDrafts = 4;  // next_n, at most

struct SchedulerLimits {
  int world_size = 1;
  int attn_tp_size = 1;          // ranks that run the same sequences
  int batch_size = 1;            // sequences in flight over all data-parallel ranks
  int max_prefill_tokens = 512;  // per data-parallel rank and step
  int num_drafts = 0;            // next_n, at most kMaxDrafts
  bool auto_drafts = false;      // fewer where they do not pay
  bool run_mtp = false;          // also without drafts: to observe the MTP logits
  int64_t max_positions = 0;     // max_position_embeddings
  int block_size = 128;
  int64_t blocks_per_dp_rank = 0;
  int reserved_decode_tokens = 0;  // that each running sequence must have room for when one joins
  // Positions that sliding-window layers see; their rows lie in blocks of their own, which are
  // given back once no query can see them. 0: no such layers.
  int64_t window = 0;

  int dp_size() const { return world_size / attn_tp_size; }
  int sequences_per_dp_rank() const { return (batch_size + dp_size() - 1) / dp_size(); }
  int max_rows() const { return max_prefill_tokens + sequences_per_dp_rank() * (1 + num_drafts); }
  int64_t blocks_of(int64_t positions) const { return (positions + block_size - 1) / block_size; }
  // Of a request's whole life: its tokens, and the drafts that are verified and made past them.
  int64_t most_positions(int64_t prompt_tokens, int64_t max_new_tokens) const {
    return std::min(prompt_tokens + max_new_tokens, max_positions) + 2 * num_drafts;
  }
  // Those that a query at `position` sees begin in this block of a sliding-window layer.
  int64_t first_window_block(int64_t position) const {
    return std::max<int64_t>(0, position + 1 - window) / block_size;
  }
  // For that many positions of a sequence, in layers of both kinds: those with a window hold what a
  // step's first query sees, and the step's rows.
  int64_t blocks_for(int64_t positions) const {
    const int64_t blocks = blocks_of(positions);
    if (window == 0) return blocks;
    const int64_t step_rows = std::max(max_prefill_tokens, 1 + num_drafts) + num_drafts;
    return blocks + std::min(blocks, blocks_of(window - 1 + step_rows) + 1);
  }
  int64_t most_blocks(int64_t prompt_tokens, int64_t max_new_tokens) const {
    return blocks_for(most_positions(prompt_tokens, max_new_tokens));
  }
};

}  // namespace troupe::actors

// actors/draft_policy.h: how many tokens MTP drafts for the next step (`next_n: auto`).
//
// Drafts cost time and pay by what is accepted. What a number of drafts brings is measured, tokens
// per sequence and second over some decode steps. Each further draft is accepted less often and
// costs as much as the one before, so that the rate has one peak: the best number and its two
// neighbours are tried, and from there on uphill. It starts with 1 against 0, so that drafts that
// do not pay are off after a few steps. Which tokens come does not depend on it.
#pragma once

#include <array>
#include <optional>

#include "actors/scheduler_limits.h"

namespace troupe::actors {

class DraftPolicy {
 public:
  // Always `num_drafts`, or with `automatic` at most that many.
  DraftPolicy(int num_drafts, bool automatic);

  int steps() const { return steps_; }
  // A step without prompts has made `tokens` for so many sequences in `seconds`.
  void on_decode_step(int64_t tokens, int64_t sequences, double seconds);

  // Tokens per sequence and second with so many drafts, if the last comparison has tried them.
  std::optional<double> rate(int drafts) const;

  static constexpr int kTrialSteps = 12;       // of one number, when it is tried
  static constexpr int kHoldSteps = 1024;      // of the best one, until it is compared once more
  static constexpr int kMaxHoldSteps = 16384;  // it doubles as long as the best one stays

 private:
  // What is known of steps with about so many sequences: from 2^i on, less than twice as many. A
  // step costs otherwise with more of them, so numbers are compared for each such range.
  struct Load {
    std::array<double, kMaxDrafts + 1> rates{};  // by number of drafts; 0: not tried
    int best = 1;
    int best_before = -1;  // of the comparison before
    int tried = 1;
    bool seen = false, holding = false;
    int hold_steps = kHoldSteps, held = 0;
  };

  void try_number(int drafts);
  void end_trial();
  void hold();
  void change_load(int load);

  int most_;
  bool automatic_;
  int steps_;
  std::array<Load, 32> loads_;
  int load_ = -1;                                  // in loads_, of the last step
  std::array<double, kMaxDrafts + 1> compared_{};  // rates of the last comparison that has ended
  int seen_ = -1;      // steps with this number; the first verifies drafts of another
  double tokens_ = 0;  // per sequence, in the steps of this trial
  std::array<double, kTrialSteps> seconds_{};  // of each of them
};

}  // namespace troupe::actors

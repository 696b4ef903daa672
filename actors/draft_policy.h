// actors/draft_policy.h: how many tokens MTP drafts for the next step (`next_n: auto`).
//
// Drafts cost time and pay by what is accepted. What a number of drafts brings is measured, tokens
// per sequence and second over some decode steps: first of all numbers, then again and again of the
// best one's neighbours. Which tokens come does not depend on it.
#pragma once

#include <array>

#include "actors/scheduler_limits.h"

namespace troupe::actors {

class DraftPolicy {
 public:
  // Always `num_drafts`, or with `automatic` at most that many.
  DraftPolicy(int num_drafts, bool automatic);

  int steps() const { return steps_; }
  // A step without prompts has made `tokens_per_sequence` in `seconds`.
  void on_decode_step(double tokens_per_sequence, double seconds);

  static constexpr int kTrialSteps = 16;   // of one number, when it is tried
  static constexpr int kHoldSteps = 1024;  // of the best one, until its neighbours are tried again

 private:
  void next();
  void try_number(int drafts);

  int most_;
  bool automatic_;
  int steps_;
  std::array<double, kMaxDrafts + 1> rates_{};  // tokens per second, by number of drafts
  std::array<int, kMaxDrafts + 1> trials_{};    // numbers still to be tried
  int num_trials_ = 0;
  bool holding_ = false;
  int seen_ = -1;  // steps with this number; the first verifies drafts of the number before
  double tokens_ = 0, seconds_ = 0;
};

}  // namespace troupe::actors

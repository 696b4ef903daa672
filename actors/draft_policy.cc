#include "actors/draft_policy.h"

#include <algorithm>

namespace troupe::actors {

DraftPolicy::DraftPolicy(int num_drafts, bool automatic)
    : most_(num_drafts),
      automatic_(automatic && num_drafts > 0),
      best_(automatic_ ? 1 : num_drafts),
      steps_(best_) {}

std::optional<double> DraftPolicy::rate(int drafts) const {
  if (drafts < 0 || drafts > most_ || rates_[drafts] == 0) return std::nullopt;
  return rates_[drafts];
}

void DraftPolicy::try_number(int drafts) {
  steps_ = drafts;
  seen_ = -1;
  tokens_ = 0;
}

// Of the best number and its neighbours.
void DraftPolicy::compare() {
  rates_ = {};
  holding_ = false;
  best_before_ = best_;
  try_number(best_);
}

// The median step stands for all: one that something else held up does not count.
void DraftPolicy::end_trial() {
  std::ranges::nth_element(seconds_, seconds_.begin() + kTrialSteps / 2);
  rates_[steps_] = tokens_ / kTrialSteps / seconds_[kTrialSteps / 2];
  if (rates_[steps_] > rates_[best_]) best_ = steps_;
  for (const int drafts : {best_ - 1, best_ + 1})
    if (drafts >= 0 && drafts <= most_ && rates_[drafts] == 0) return try_number(drafts);
  hold();
}

void DraftPolicy::hold() {
  hold_steps_ = best_ == best_before_ ? std::min(2 * hold_steps_, kMaxHoldSteps) : kHoldSteps;
  holding_ = true;
  try_number(best_);
}

// Steps with another number of sequences have other costs: what was measured is void then.
void DraftPolicy::on_decode_step(int64_t tokens, int64_t sequences, double seconds) {
  if (!automatic_) return;
  if (sequences > 2 * sequences_ || 2 * sequences < sequences_) {
    sequences_ = sequences;
    return compare();
  }
  if (++seen_ == 0) return;
  if (holding_) {
    if (seen_ == hold_steps_) compare();
    return;
  }
  tokens_ += static_cast<double>(tokens) / static_cast<double>(sequences);
  seconds_[seen_ - 1] = seconds;
  if (seen_ == kTrialSteps) end_trial();
}

}  // namespace troupe::actors

#include "actors/draft_policy.h"

namespace troupe::actors {

DraftPolicy::DraftPolicy(int num_drafts, bool automatic)
    : most_(num_drafts), automatic_(automatic && num_drafts > 0), steps_(num_drafts) {
  for (int drafts = 0; drafts < most_; ++drafts) trials_[num_trials_++] = drafts;
}

void DraftPolicy::try_number(int drafts) {
  steps_ = drafts;
  seen_ = -1;
  tokens_ = seconds_ = 0;
}

void DraftPolicy::next() {
  rates_[steps_] = tokens_ / seconds_;
  if (holding_)
    for (const int drafts : {steps_ - 1, steps_ + 1})
      if (drafts >= 0 && drafts <= most_) trials_[num_trials_++] = drafts;
  holding_ = num_trials_ == 0;
  if (!holding_) return try_number(trials_[--num_trials_]);
  int best = 0;
  for (int drafts = 1; drafts <= most_; ++drafts)
    if (rates_[drafts] > rates_[best]) best = drafts;
  try_number(best);
}

void DraftPolicy::on_decode_step(double tokens_per_sequence, double seconds) {
  if (!automatic_ || ++seen_ == 0) return;
  tokens_ += tokens_per_sequence;
  seconds_ += seconds;
  if (seen_ == (holding_ ? kHoldSteps : kTrialSteps)) next();
}

}  // namespace troupe::actors

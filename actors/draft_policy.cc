#include "actors/draft_policy.h"

#include <algorithm>
#include <bit>

namespace troupe::actors {

DraftPolicy::DraftPolicy(int num_drafts, bool automatic)
    : most_(num_drafts),
      automatic_(automatic && num_drafts > 0),
      steps_(automatic_ ? Load().best : num_drafts) {}

std::optional<double> DraftPolicy::rate(int drafts) const {
  if (drafts < 0 || drafts > most_ || compared_[drafts] == 0) return std::nullopt;
  return compared_[drafts];
}

void DraftPolicy::try_number(int drafts) {
  loads_[load_].tried = steps_ = drafts;
  seen_ = -1;
  tokens_ = 0;
}

// The median step stands for all: one that something else held up does not count.
void DraftPolicy::end_trial() {
  Load& load = loads_[load_];
  std::ranges::nth_element(seconds_, seconds_.begin() + kTrialSteps / 2);
  load.rates[steps_] = tokens_ / kTrialSteps / seconds_[kTrialSteps / 2];
  if (load.rates[steps_] > load.rates[load.best]) load.best = steps_;
  for (const int drafts : {load.best - 1, load.best + 1})
    if (drafts >= 0 && drafts <= most_ && load.rates[drafts] == 0) return try_number(drafts);
  hold();
}

void DraftPolicy::hold() {
  Load& load = loads_[load_];
  load.hold_steps =
      load.best == load.best_before ? std::min(2 * load.hold_steps, kMaxHoldSteps) : kHoldSteps;
  load.best_before = load.best;
  load.holding = true;
  load.held = 0;
  compared_ = load.rates;
  load.rates = {};
  try_number(load.best);
}

// A new load begins with what was best at the one before; a trial that was cut short begins again.
void DraftPolicy::change_load(int load) {
  if (!loads_[load].seen && load_ >= 0) loads_[load].best = loads_[load].tried = loads_[load_].best;
  load_ = load;
  loads_[load].seen = true;
  try_number(loads_[load].tried);
}

void DraftPolicy::on_decode_step(int64_t tokens, int64_t sequences, double seconds) {
  if (!automatic_) return;
  const int now = std::bit_width(static_cast<uint32_t>(sequences)) - 1;
  if (load_ != now) return change_load(now);
  Load& load = loads_[now];
  if (load.holding) {
    load.holding = ++load.held < load.hold_steps;
    if (!load.holding) try_number(load.best);
    return;
  }
  if (++seen_ == 0) return;
  tokens_ += static_cast<double>(tokens) / static_cast<double>(sequences);
  seconds_[seen_ - 1] = seconds;
  if (seen_ == kTrialSteps) end_trial();
}

}  // namespace troupe::actors

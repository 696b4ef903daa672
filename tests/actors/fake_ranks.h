// tests/actors/fake_ranks.h: a scheduler whose ranks are played by the test, one message at a time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "actors/scheduler.h"

namespace troupe::actors {

class FakeRanks {
 public:
  // Submits the requests and starts.
  FakeRanks(const SchedulerLimits& limits, std::vector<Request> requests);

  Scheduler& scheduler() { return scheduler_; }
  bool finished() const { return scheduler_.finished(); }
  const Completion& completion(int request) const { return scheduler_.completion(request); }

  // What `rank` was told last.
  const msg::StepPlanT& plan(int rank) const { return plans_[rank]; }
  // Its sequences, by request: {0, 3}.
  std::vector<int> requests_on(int rank) const;
  const msg::SequencePlanT& sequence(int rank, int i) const { return *plan(rank).sequences[i]; }
  int plans_sent() const { return plans_sent_; }

  // What a rank answers when nothing else is said: every sequence that samples yields its
  // default_token, no draft is right, and the new drafts are default_drafts.
  static int32_t default_token(int position) { return 1000 + position; }
  static constexpr int32_t kDefaultDraft = 7;
  msg::StepDoneT default_answer(int rank) const;
  void answer(int rank, const msg::StepDoneT& done);
  // All ranks answer by default.
  void step();

  // A rank's answer for all of its sequences in turn; every sequence samples.
  struct Sampled {
    std::vector<int32_t> tokens, drafts;
  };
  msg::StepDoneT answer_of(int rank, const std::vector<Sampled>& sequences) const;

  // What the scheduler has said to the launcher: "2: 5 6 stop", "0@3: rows 2+4 at 8".
  std::vector<std::string> tokens_said, rows_shown;

 private:
  std::vector<msg::StepPlanT> plans_;
  int plans_sent_ = 0;
  Mailbox mailbox_;
  Scheduler scheduler_;
};

}  // namespace troupe::actors

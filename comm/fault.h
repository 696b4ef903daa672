// comm/fault.h: faults that a rank brings upon itself where it is told to, so that what Troupe does
// about them can be shown at will: `troupe run --inject kill:rank=3,stage=dispatch,step=12`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/arena.h"

namespace troupe::comm {

struct Fault {
  enum class Kind {
    kKill,     // SIGKILL
    kStop,     // SIGSTOP
    kSegv,     // a write to address 0
    kSlow,     // from there on, computes `factor` times as long
    kDelay,    // sleeps `ms`
    kDrop,     // takes no part in a collective: sends nothing, and goes on
    kCorrupt,  // of a collective: the next header it publishes; else its next message
  };

  Kind kind{};
  int rank = 0;
  // Where: the first time that the rank comes to this stage or collective, to this layer, in this
  // step or a later one. What is not given is anywhere.
  std::optional<Stage> stage;
  std::optional<Operation> operation;
  uint64_t step = 0;
  std::optional<int32_t> layer;
  int64_t ms = 1000;
  double factor = 10;
};

// "KIND:rank=R[,stage=S][,step=N][,layer=L][,ms=M][,factor=F]": KIND kill, stop, segv, slow, delay,
// drop or corrupt; S as reports name stages (starting, loading, idle, prefill, decode, draft,
// stopping) and collectives (barrier, all_gather, dispatch, ...). UserError in one line.
Fault parse_fault(const std::string& text, int world_size);

// What an injected fault makes its rank do wrong at the next opportunity.
enum class Misdeed { kSkipCollective, kSpoilHeader, kSpoilMessage };

// The faults of one rank, waiting for their places.
class FaultInjector {
 public:
  explicit FaultInjector(std::vector<Fault> faults) : faults_(std::move(faults)) {}

  // The rank has come to a new place: what is due there happens now, or is left for take().
  // Returns how many faults that were.
  size_t arrive(const ActivitySnapshot& here);
  // True once for each misdeed that is due.
  bool take(Misdeed misdeed);

 private:
  void strike(const Fault& fault);
  void slow_down();

  std::vector<Fault> faults_;  // that have not struck
  std::vector<Misdeed> due_;
  double slow_factor_ = 1;
  int64_t computed_ns_ = 0;  // of this thread, when it was last looked at
  double owed_ns_ = 0;       // sleep for what was computed since
};

}  // namespace troupe::comm

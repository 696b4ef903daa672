// comm/handoff_board.h: who owns the KV blocks that one launch (the owner) offers to others (the
// readers): shared memory that the owner's launcher makes and the readers' launchers map. The ranks
// know nothing of it.
//
//   Slot[num_slots]             one for each hand-off under way
//   generation[num_blocks]      how often each block has been taken to be written
//
// A slot's word is a ticket and a state; a ticket is never given twice on a board, so whoever comes
// late finds another word than the one he remembers and does nothing:
//
//   free --owner--> offered --reader--> taken --reader--> done --owner--> free
//                      |                  |
//                      +-------owner------+--> free     aborted before it was taken; the lease
//                      ended
//
// Every step out of `offered` and `taken` is a compare-and-swap on the word, so that of the owner
// who takes back and the reader who takes exactly one succeeds. A reader shows that it lives in
// `beat`; the owner takes back what shows no life for the lease (10 s) and only then uses the
// blocks again. A reader that was only slow finds out: it asks holds() after it has read, and
// believes what it read only if it still holds. (A sequence lock of two parties: the owner changes
// the word before it writes a block, the reader looks at the word after it has read.)
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/memory.h"

namespace troupe::comm {

struct HandoffTicket {
  uint32_t slot = 0;
  uint64_t ticket = 0;
  bool operator==(const HandoffTicket&) const = default;
};

class HandoffBoard {
 public:
  static constexpr std::chrono::seconds kLease{10};

  // The owner makes it.
  static HandoffBoard create(uint32_t num_slots, int64_t num_blocks);
  // A reader maps it; RankError when the file is not of that size.
  static HandoffBoard open(Fd file, uint32_t num_slots, int64_t num_blocks);

  int fd() const { return file_.get(); }
  std::span<std::atomic<uint64_t>> generations() const;  // [num_blocks]

  // Owner. A slot for blocks that have been written; nothing when all are in use.
  std::optional<HandoffTicket> offer();
  // Takes back what nobody has taken; false when it has been.
  bool withdraw(const HandoffTicket& ticket);
  // Whether the blocks have come back: done, or without a sign of life for the lease.
  enum class Owned { kAway, kDone, kLeaseEnded };
  Owned look(const HandoffTicket& ticket);

  // Reader. False when it has been taken back.
  bool take(const HandoffTicket& ticket) const;
  void beat(const HandoffTicket& ticket) const;
  bool holds(const HandoffTicket& ticket) const;
  void finish(const HandoffTicket& ticket) const;  // nothing of it is read any more

 private:
  enum State : uint64_t { kFree, kOffered, kTaken, kDone };
  struct Slot;
  HandoffBoard(Fd file, uint32_t num_slots, int64_t num_blocks);
  Slot& slot(const HandoffTicket& ticket) const;
  bool change(const HandoffTicket& ticket, State from, State to) const;
  void free(const HandoffTicket& ticket);

  Fd file_;
  Mapping memory_;
  uint32_t num_slots_;
  int64_t num_blocks_;
  uint64_t last_ticket_ = 0;          // the owner's
  std::vector<uint32_t> free_slots_;  // the owner's
};

}  // namespace troupe::comm

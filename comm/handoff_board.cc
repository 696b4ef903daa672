#include "comm/handoff_board.h"

#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

namespace troupe::comm {

namespace {

constexpr int kStateBits = 2;

// Of the machine, not of the process: both sides read the same clock.
int64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

}  // namespace

//  0  word   ticket << 2 | state
//  8  beat   CLOCK_MONOTONIC, ns; written by the owner when it offers, then by the reader
// 16
struct HandoffBoard::Slot {
  std::atomic<uint64_t> word;
  std::atomic<int64_t> beat;
};

HandoffBoard::HandoffBoard(Fd file, uint32_t num_slots, int64_t num_blocks)
    : file_(std::move(file)), num_slots_(num_slots), num_blocks_(num_blocks) {
  static_assert(sizeof(Slot) == 16);
  memory_ = Mapping(file_.get(), num_slots * sizeof(Slot) + num_blocks * sizeof(uint64_t),
                    Mapping::Access::kReadWrite);
}

HandoffBoard HandoffBoard::create(uint32_t num_slots, int64_t num_blocks) {
  const size_t bytes = num_slots * sizeof(Slot) + num_blocks * sizeof(uint64_t);
  HandoffBoard board(create_shared_memory("troupe-handoff", bytes), num_slots, num_blocks);
  for (uint32_t slot = num_slots; slot-- > 0;) board.free_slots_.push_back(slot);
  return board;
}

HandoffBoard HandoffBoard::open(Fd file, uint32_t num_slots, int64_t num_blocks) {
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) throw_rank_error("{}", errno_text("fstat of a board"));
  if (num_blocks < 0 || static_cast<size_t>(status.st_size) !=
                            num_slots * sizeof(Slot) + num_blocks * sizeof(uint64_t))
    throw_rank_error("a board of {} bytes is not one of {} slots and {} blocks", status.st_size,
                     num_slots, num_blocks);
  return {std::move(file), num_slots, num_blocks};
}

std::span<std::atomic<uint64_t>> HandoffBoard::generations() const {
  auto* first =
      reinterpret_cast<std::atomic<uint64_t>*>(memory_.data() + num_slots_ * sizeof(Slot));
  return {first, static_cast<size_t>(num_blocks_)};
}

HandoffBoard::Slot& HandoffBoard::slot(const HandoffTicket& ticket) const {
  TROUPE_CHECK(ticket.slot < num_slots_, "slot {} of {}", ticket.slot, num_slots_);
  return reinterpret_cast<Slot*>(memory_.data())[ticket.slot];
}

bool HandoffBoard::change(const HandoffTicket& ticket, State from, State to) const {
  uint64_t expected = ticket.ticket << kStateBits | from;
  return slot(ticket).word.compare_exchange_strong(expected, ticket.ticket << kStateBits | to);
}

void HandoffBoard::free(const HandoffTicket& ticket) { free_slots_.push_back(ticket.slot); }

std::optional<HandoffTicket> HandoffBoard::offer() {
  if (free_slots_.empty()) return std::nullopt;
  const HandoffTicket ticket{free_slots_.back(), ++last_ticket_};
  free_slots_.pop_back();
  slot(ticket).beat.store(now_ns());
  slot(ticket).word.store(ticket.ticket << kStateBits | kOffered);
  return ticket;
}

bool HandoffBoard::withdraw(const HandoffTicket& ticket) {
  if (!change(ticket, kOffered, kFree)) return false;
  free(ticket);
  return true;
}

HandoffBoard::Owned HandoffBoard::look(const HandoffTicket& ticket) {
  if (change(ticket, kDone, kFree)) {
    free(ticket);
    return Owned::kDone;
  }
  const int64_t silent_ns = now_ns() - slot(ticket).beat.load();
  if (silent_ns < std::chrono::nanoseconds(kLease).count()) return Owned::kAway;
  if (!change(ticket, kOffered, kFree) && !change(ticket, kTaken, kFree)) return look(ticket);
  free(ticket);
  return Owned::kLeaseEnded;
}

bool HandoffBoard::take(const HandoffTicket& ticket) const {
  beat(ticket);  // before the owner counts from it
  return change(ticket, kOffered, kTaken);
}

// Of a slot that is another's by now this gives that one more time, once, and no more.
void HandoffBoard::beat(const HandoffTicket& ticket) const { slot(ticket).beat.store(now_ns()); }

bool HandoffBoard::holds(const HandoffTicket& ticket) const {
  return slot(ticket).word.load() == (ticket.ticket << kStateBits | kTaken);
}

void HandoffBoard::finish(const HandoffTicket& ticket) const { change(ticket, kTaken, kDone); }

}  // namespace troupe::comm

#include "comm/channel.h"

#include "base/error.h"
#include "comm/process_group.h"

namespace troupe::comm {
namespace {

constexpr uint64_t kSpoiledBits = 0x5bad;  // what an injected fault does to a header

const char* element_name(uint32_t element) {
  switch (static_cast<DataType>(element)) {
    case DataType::kBytes:
      return "";
    case DataType::kF32:
      return " of f32";
    case DataType::kBf16:
      return " of bf16";
    case DataType::kInt8:
      return " of int8";
  }
  return " of an unknown type";
}

// "all_reduce of group 0 (#7), 64 bytes of f32".
std::string describe(const Arena::Slot& slot) {
  const bool started = slot.operation == Operation::kBarrier && slot.counts[0] == kStartedBarrier;
  std::string text = started ? "started " : "";
  text += describe_call(slot.operation, slot.group, slot.sequence);
  text += fmt::format(", {} bytes{}", slot.total_bytes, element_name(slot.element));
  if (started) return text;
  if (slot.chunk_bytes != slot.total_bytes || slot.phase != 0)
    text += fmt::format(" (phase {}, {} bytes at {})", slot.phase, slot.chunk_bytes, slot.offset);
  if (slot.counts[0] != 0 || slot.counts[1] != 0)
    text += fmt::format(", counts {} and {}", slot.counts[0], slot.counts[1]);
  return text;
}

}  // namespace

SendChannel::SendChannel(Communicator& communicator, int receiver)
    : communicator_(&communicator),
      receiver_(receiver),
      window_(&communicator.arena().window(receiver, communicator.world_rank())),
      published_(window_->published.load()),
      consumed_(window_->consumed.load()),
      barriers_(window_->barriers.load()) {
  for (int i = 0; i < static_cast<int>(kSlotsPerWindow); ++i)
    payloads_[i] = communicator.arena().payload(receiver, communicator.world_rank(), i);
}

bool SendChannel::has_room() const {
  if (published_ - consumed_ < kSlotsPerWindow) return true;
  look_at_consumed();
  return published_ - consumed_ < kSlotsPerWindow;
}

bool SendChannel::has_given_back(uint64_t count) const {
  if (consumed_ < count) look_at_consumed();
  return consumed_ >= count;
}

void SendChannel::look_at_consumed() const {
  consumed_ = window_->consumed.load();
  if (published_ - consumed_ > kSlotsPerWindow)
    communicator_->fail(
        fmt::format("the window to rank {} is corrupt: it gave back more than it "
                    "was given",
                    receiver_));
}

void SendChannel::put(Arena::Slot header) {
  if (communicator_->must(Misdeed::kSpoilHeader)) header.total_bytes ^= kSpoiledBits;
  window_->slots[published_ % kSlotsPerWindow] = header;
  window_->published.store(++published_, std::memory_order_release);
}

void SendChannel::publish(const Arena::Slot& header) {
  put(header);
  Communicator::publication_fence();
  communicator_->ring(receiver_);
}

void SendChannel::come_to_barrier(const Arena::Slot& call, bool owes) {
  auto& barrier = window_->barrier[++barriers_ % 2];
  const uint64_t spoiled = communicator_->must(Misdeed::kSpoilHeader) ? kSpoiledBits : 0;
  barrier.sequence.store(call.sequence ^ spoiled, std::memory_order_relaxed);
  barrier.group.store(call.group, std::memory_order_relaxed);
  barrier.owes.store(owes, std::memory_order_relaxed);
  window_->barriers.store(barriers_, std::memory_order_release);
}

ReceiveChannel::ReceiveChannel(Communicator& communicator, int sender)
    : communicator_(&communicator),
      sender_(sender),
      window_(&communicator.arena().window(communicator.world_rank(), sender)),
      consumed_(window_->consumed.load()),
      barriers_(window_->passed.load()) {
  for (int i = 0; i < static_cast<int>(kSlotsPerWindow); ++i) {
    payloads_[i] = communicator.arena().payload(communicator.world_rank(), sender, i);
    outbox_[i] = communicator.arena().payload(sender, sender, i);
  }
}

uint64_t ReceiveChannel::unread() const {
  const uint64_t unread = window_->published.load() - consumed_;
  if (unread > kSlotsPerWindow)
    communicator_->fail(fmt::format("the window from rank {} is corrupt: {} chunks in {} slots",
                                    sender_, unread, kSlotsPerWindow));
  return unread;
}

void ReceiveChannel::check(const Arena::Slot& got, const Arena::Slot& expected) const {
  if (got == expected) return;
  communicator_->fail(
      fmt::format("expected {} from rank {}, which brings {}. All ranks of a group must make the "
                  "same calls in the same order.",
                  describe(expected), sender_, describe(got)));
}

Arena::Slot ReceiveChannel::barrier() const {
  const auto& barrier = window_->barrier[(barriers_ + 1) % 2];
  return {.operation = Operation::kBarrier,
          .group = barrier.group.load(std::memory_order_relaxed),
          .sequence = barrier.sequence.load(std::memory_order_relaxed)};
}

void ReceiveChannel::pass_barrier() {
  window_->passed.store(++barriers_, std::memory_order_relaxed);
}

bool ReceiveChannel::owes_chunks() const {
  return window_->barrier[(barriers_ + 1) % 2].owes.load(std::memory_order_relaxed) != 0;
}

void ReceiveChannel::consume(uint64_t count) {
  give_back(count);
  Communicator::publication_fence();
  ring_for_room(count);
}

void ReceiveChannel::give_back(uint64_t count) {
  consumed_ += count;
  window_->consumed.store(consumed_, std::memory_order_release);
}

// A sender that found the window full may wait for this rank alone. Looked up after the store: one
// that fills it later sees the new count. One that waits for its outbox sleeps for any rank.
void ReceiveChannel::ring_for_room(uint64_t count) const {
  if (window_->published.load() - (consumed_ - count) >= kSlotsPerWindow)
    communicator_->ring(sender_);
  else
    communicator_->ring_if_for_any(sender_);
}

}  // namespace troupe::comm

#include "comm/channel.h"

#include "base/error.h"
#include "comm/process_group.h"

namespace troupe::comm {
namespace {

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
  std::string text = describe_call(slot.operation, slot.group, slot.sequence);
  text += fmt::format(", {} bytes{}", slot.total_bytes, element_name(slot.element));
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
      published_(window_->published.load()) {
  for (int i = 0; i < static_cast<int>(kSlotsPerWindow); ++i)
    payloads_[i] = communicator.arena().payload(receiver, communicator.world_rank(), i);
}

bool SendChannel::has_room() const {
  const uint64_t unread = published_ - window_->consumed.load();
  if (unread > kSlotsPerWindow)
    communicator_->fail(
        fmt::format("the window to rank {} is corrupt: it gave back more than it "
                    "was given",
                    receiver_));
  return unread < kSlotsPerWindow;
}

void SendChannel::publish(const Arena::Slot& header) {
  window_->slots[published_ % kSlotsPerWindow] = header;
  window_->published.store(++published_);
  communicator_->ring(receiver_);
}

ReceiveChannel::ReceiveChannel(Communicator& communicator, int sender)
    : communicator_(&communicator),
      sender_(sender),
      window_(&communicator.arena().window(communicator.world_rank(), sender)),
      consumed_(window_->consumed.load()) {
  for (int i = 0; i < static_cast<int>(kSlotsPerWindow); ++i)
    payloads_[i] = communicator.arena().payload(communicator.world_rank(), sender, i);
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

void ReceiveChannel::consume(uint64_t count) {
  const uint64_t before = consumed_;
  consumed_ += count;
  window_->consumed.store(consumed_);
  // Only a sender that found the window full can wait for room. Looked up after the store: a sender
  // that fills it later sees the new count.
  if (window_->published.load() - before >= kSlotsPerWindow) communicator_->ring(sender_);
}

}  // namespace troupe::comm

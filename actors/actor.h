// actors/actor.h: actors, their addresses, and the queue of one thread.
//
// An actor shares nothing: what it needs arrives in a message, tensors as places in the rank's
// workspace. All actors of a process run on one thread from one Mailbox, each handler to its end.
// Where the other side lives decides the transport: the same thread (a slot of the queue, neither
// verified nor sent) or another process (bytes over ZeroMQ); an actor's code does not see it.
#pragma once

#include <flatbuffers/flatbuffers.h>

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "actors/messages/message_generated.h"
#include "comm/trace.h"

namespace troupe::actors {

inline constexpr int kLauncherRank = -1;

std::string actor_name(const msg::Address& address);  // "attention@3", "scheduler"

// Checks bytes from another process: a FlatBuffers Envelope with a known body, else RankError
// naming `sender`.
const msg::Envelope& verified(std::span<const std::byte> bytes, const std::string& sender);

class Mailbox;
class StepGraphs;

class Actor {
 public:
  Actor(Mailbox& mailbox, msg::ActorKind kind);
  virtual ~Actor() = default;
  Actor(const Actor&) = delete;
  Actor& operator=(const Actor&) = delete;

  const msg::Address& address() const { return address_; }
  void receive(const msg::Envelope& envelope);

 protected:
  // One handler per message; the message is valid until the handler returns. A message that an
  // actor does not hear ends the rank with an error that names both.
  virtual void on(const msg::StepPlan&) { not_heard(); }
  virtual void on(const msg::StepDone&, int /*from_rank*/) { not_heard(); }
  virtual void on(const msg::ForwardLayers&, const msg::Address& /*from*/) { not_heard(); }
  virtual void on(const msg::LayersDone&) { not_heard(); }
  virtual void on(const msg::FeedForward&) { not_heard(); }
  virtual void on(const msg::FeedForwardDone&) { not_heard(); }
  virtual void on(const msg::Verified&) { not_heard(); }
  virtual void on(const msg::DraftRows&) { not_heard(); }
  virtual void on(const msg::DraftTokens&) { not_heard(); }
  virtual void on(const msg::Drafted&) { not_heard(); }

  // The message under construction; send() it before the handler goes on.
  flatbuffers::FlatBufferBuilder& builder();
  template <class Message>
  void send(const msg::Address& to, flatbuffers::Offset<Message> body) {
    post(to, msg::BodyTraits<Message>::enum_value, body.Union());
  }
  // The same to an actor of this rank, but create(builder) is called only where a recorded step
  // (actors/step_graph.h) does not know the message.
  template <class Create>
  void tell(const msg::Address& to, const Create& create) {
    using Message = typename MessageOf<decltype(create(builder()))>::Type;
    if (!knows(to, msg::BodyTraits<Message>::enum_value)) send(to, create(builder()));
  }
  msg::Address neighbour(msg::ActorKind kind) const { return {address_.rank(), kind}; }
  comm::Trace* trace() const;  // of this process, null if the launch is not traced

 private:
  template <class Offset>
  struct MessageOf;
  template <class Message>
  struct MessageOf<flatbuffers::Offset<Message>> {
    using Type = Message;
  };
  bool knows(const msg::Address& to, msg::Body type) const;
  void post(const msg::Address& to, msg::Body type, flatbuffers::Offset<void> body);
  [[noreturn]] void not_heard() const;

  Mailbox& mailbox_;
  msg::Address address_;
  const msg::Envelope* current_ = nullptr;
};

// The queue of one process' actors. Sending to an actor of this process copies the message into a
// preallocated slot; nothing is allocated after the first steps.
class Mailbox {
 public:
  using SendRemote = std::function<void(int rank, std::span<const std::byte>)>;
  Mailbox(int rank, SendRemote send_remote);
  ~Mailbox();

  int rank() const { return rank_; }
  // Shows which actor handles a message. Null: nothing does.
  void trace_to(comm::Trace* trace) { trace_ = trace; }
  comm::Trace* trace() const { return trace_; }
  flatbuffers::FlatBufferBuilder& builder() { return builder_; }
  void add(Actor& actor);
  // From now on the messages of decode steps are recorded, and replayed.
  void use_graphs();
  StepGraphs* graphs() const { return graphs_.get(); }  // null: every message is sent
  uint64_t messages() const { return head_; }  // sent so far between actors of this process

  // Queues the finished envelope for an actor of this process, or sends it to another.
  void post(const msg::Address& to);
  // Hands an envelope to its addressee, or to every actor in order of add() when `to.kind` is Rank;
  // then runs what they queued until nothing is left. `envelope` stays valid all that time.
  void deliver(const msg::Envelope& envelope);

 private:
  static constexpr size_t kSlotBytes = 512;
  static constexpr size_t kSlots = 8;
  struct alignas(16) Slot {
    std::array<std::byte, kSlotBytes> bytes;
    size_t size;
  };
  void deliver_queued(const Slot& slot);
  Actor& addressee(const msg::Envelope& envelope) const;

  int rank_;
  SendRemote send_remote_;
  comm::Trace* trace_ = nullptr;
  flatbuffers::FlatBufferBuilder builder_;
  std::vector<Actor*> actors_;
  std::array<Slot, kSlots> slots_;
  size_t head_ = 0, tail_ = 0;  // slots [tail, head) are queued
  std::unique_ptr<StepGraphs> graphs_;
};

}  // namespace troupe::actors

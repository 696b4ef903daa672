#include "actors/actor.h"

#include <algorithm>
#include <cctype>
#include <cstring>

#include "actors/step_graph.h"
#include "base/error.h"

namespace troupe::actors {

std::string actor_name(const msg::Address& address) {
  static constexpr std::array kNames = {"scheduler", "rank", "attention", "moe", "lm_head", "mtp"};
  const auto kind = static_cast<size_t>(address.kind());
  const char* name = kind < kNames.size() ? kNames[kind] : "unknown";
  return address.rank() == kLauncherRank ? name : fmt::format("{}@{}", name, address.rank());
}

namespace {

// FlatBuffers verifies the bounds of a vector and the alignment of its length, not that of its
// elements; these are the only ones wider than the length. An empty vector is not aligned.
bool log_probs_are_aligned(const msg::Envelope& envelope) {
  const auto* done = envelope.body_as_StepDone();
  return done == nullptr || done->log_probs() == nullptr || done->log_probs()->size() == 0 ||
         reinterpret_cast<uintptr_t>(done->log_probs()->data()) % alignof(double) == 0;
}

}  // namespace

const msg::Envelope& verified(std::span<const std::byte> bytes, const std::string& sender) {
  flatbuffers::Verifier verifier(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  const auto* envelope = verifier.VerifyBuffer<msg::Envelope>(nullptr)
                             ? flatbuffers::GetRoot<msg::Envelope>(bytes.data())
                             : nullptr;
  if (envelope == nullptr || !log_probs_are_aligned(*envelope))
    throw_rank_error("a message of {} bytes from {} is not a valid Envelope", bytes.size(), sender);
  if (envelope->body_type() == msg::Body::NONE || envelope->body_type() > msg::Body::MAX)
    throw_rank_error("a message from {} has the unknown type {}", sender,
                     static_cast<int>(envelope->body_type()));
  return *envelope;
}

Actor::Actor(Mailbox& mailbox, msg::ActorKind kind)
    : mailbox_(mailbox), address_(mailbox.rank(), kind) {
  mailbox.add(*this);
}

flatbuffers::FlatBufferBuilder& Actor::builder() { return mailbox_.builder(); }

comm::Trace* Actor::trace() const { return mailbox_.trace(); }

static_assert(static_cast<int>(msg::ActorKind::MAX) + 1 == comm::kTraceTracks &&
              static_cast<int>(msg::ActorKind::Mtp) == static_cast<int>(comm::TraceTrack::kMtp));

void Actor::post(const msg::Address& to, msg::Body type, flatbuffers::Offset<void> body) {
  builder().Finish(msg::CreateEnvelope(builder(), &address_, &to, type, body));
  mailbox_.post(to);
}

bool Actor::knows(const msg::Address& to, msg::Body type) const {
  StepGraphs* graphs = mailbox_.graphs();
  return graphs != nullptr && graphs->knows(to, type);
}

void Actor::not_heard() const {
  throw std::logic_error(fmt::format("{} does not hear {} (from {})", actor_name(address_),
                                     msg::EnumNameBody(current_->body_type()),
                                     actor_name(*current_->from())));
}

void Actor::receive(const msg::Envelope& envelope) {
  current_ = &envelope;
  if (comm::Trace* trace = mailbox_.trace())
    trace->set_track(static_cast<comm::TraceTrack>(address_.kind()));
  switch (envelope.body_type()) {  // no default: the compiler names a message nobody handles
    case msg::Body::StepPlan:
      return on(*envelope.body_as_StepPlan());
    case msg::Body::StepDone:
      return on(*envelope.body_as_StepDone(), envelope.from()->rank());
    case msg::Body::ForwardLayers:
      return on(*envelope.body_as_ForwardLayers(), *envelope.from());
    case msg::Body::LayersDone:
      return on(*envelope.body_as_LayersDone());
    case msg::Body::FeedForward:
      return on(*envelope.body_as_FeedForward());
    case msg::Body::FeedForwardDone:
      return on(*envelope.body_as_FeedForwardDone());
    case msg::Body::Verified:
      return on(*envelope.body_as_Verified());
    case msg::Body::DraftRows:
      return on(*envelope.body_as_DraftRows());
    case msg::Body::DraftTokens:
      return on(*envelope.body_as_DraftTokens());
    case msg::Body::Drafted:
      return on(*envelope.body_as_Drafted());
    case msg::Body::Hello:  // of the processes, not of actors: rank.h and launcher/launch.h hear
                            // them
    case msg::Body::Launch:
    case msg::Body::LoadProgress:
    case msg::Body::Ready:
    case msg::Body::Failed:
    case msg::Body::Shutdown:
    case msg::Body::Goodbye:
    case msg::Body::NONE:
      return not_heard();
  }
}

Mailbox::Mailbox(int rank, SendRemote send_remote)
    : rank_(rank), send_remote_(std::move(send_remote)), builder_(size_t{1} << 16) {}

Mailbox::~Mailbox() = default;

void Mailbox::add(Actor& actor) { actors_.push_back(&actor); }

void Mailbox::use_graphs() { graphs_ = std::make_unique<StepGraphs>(); }

void Mailbox::post(const msg::Address& to) {
  const std::span bytes(reinterpret_cast<const std::byte*>(builder_.GetBufferPointer()),
                        builder_.GetSize());
  if (to.rank() != rank_) {
    send_remote_(to.rank(), bytes);
  } else {
    TROUPE_CHECK(bytes.size() <= kSlotBytes && head_ - tail_ < kSlots, "{} bytes, {} queued",
                 bytes.size(), head_ - tail_);
    Slot& slot = slots_[head_++ % kSlots];
    std::memcpy(slot.bytes.data(), bytes.data(), bytes.size());
    slot.size = bytes.size();
  }
  builder_.Clear();
}

Actor& Mailbox::addressee(const msg::Envelope& envelope) const {
  const auto to = std::ranges::find_if(
      actors_, [&](Actor* a) { return a->address().kind() == envelope.to()->kind(); });
  if (to == actors_.end())
    throw_rank_error("{} sent {} to {}, who is not here", actor_name(*envelope.from()),
                     msg::EnumNameBody(envelope.body_type()), actor_name(*envelope.to()));
  return **to;
}

void Mailbox::deliver(const msg::Envelope& envelope) {
  if (graphs_) graphs_->begin(envelope);
  if (envelope.to()->kind() == msg::ActorKind::Rank)
    for (Actor* actor : actors_) actor->receive(envelope);
  else
    addressee(envelope).receive(envelope);
  if (graphs_) graphs_->replay();
  // A slot is given back only after its handler: its message must stay whole until then.
  for (; tail_ != head_; ++tail_) deliver_queued(slots_[tail_ % kSlots]);
}

void Mailbox::deliver_queued(const Slot& slot) {
  const auto& envelope = *flatbuffers::GetRoot<msg::Envelope>(slot.bytes.data());
  Actor& actor = addressee(envelope);
  if (graphs_ && !graphs_->begin(envelope)) graphs_->keep(actor, {slot.bytes.data(), slot.size});
  actor.receive(envelope);
  if (graphs_) graphs_->replay();
}

}  // namespace troupe::actors

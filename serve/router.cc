#include "serve/router.h"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <random>

#include "base/error.h"
#include "comm/local_socket.h"
#include "launcher/signal_reader.h"
#include "launcher/world.h"
#include "serve/instance.h"
#include "serve/pd_messages.h"
#include "serve/router_view.h"

namespace troupe::serve {

namespace {

using actors::FinishReason;
using std::chrono::milliseconds;

constexpr milliseconds kTick{100};

Fd listen_as(const std::string& name) {
  Fd listener = comm::listen_local(router_socket(name), SOCK_STREAM | SOCK_NONBLOCK);
  if (!listener)
    throw_user_error("a router '{}' of this user runs already; give this one another --router",
                     name);
  return listener;
}

}  // namespace

struct Router::Signals {
  launcher::SignalReader reader;
};

Router::Router(const std::string& name, int max_queued)
    : listener_(listen_as(name)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      max_queued_(max_queued) {
  if (!wake_) throw std::runtime_error(errno_text("eventfd"));
  // Instances that worked for a router before this one may still know its rooms.
  std::random_device random;
  next_room_ = (uint64_t{random()} << 31 ^ random()) & (~uint64_t{0} >> 1);
}

Router::~Router() = default;

// ---- from any thread ----------------------------------------------------------------------------

std::shared_ptr<Generation> Router::submit(std::vector<actors::Request> requests,
                                           std::function<void()> wake, Refusal& refusal) {
  const std::lock_guard lock(mutex_);
  refusal = state_ == EngineState::kReady      ? Refusal::kNone
            : state_ == EngineState::kDraining ? Refusal::kDraining
                                               : Refusal::kLoading;
  if (refusal != Refusal::kNone) return nullptr;
  if (open_ + std::ssize(requests) > seats_ + max_queued_) {
    refusal = Refusal::kQueueFull;
    metrics_.on_refused();
    return nullptr;
  }
  open_ += static_cast<int>(requests.size());
  auto generation = std::make_shared<Generation>(std::move(wake));
  arrivals_.emplace_back(generation, std::move(requests));
  ring();
  return generation;
}

void Router::cancel(const std::shared_ptr<Generation>& generation) {
  const std::lock_guard lock(mutex_);
  leaving_.push_back(generation);
  ring();
}

void Router::ring() const {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof(one));
}

std::vector<RankView> Router::ranks() const {
  const std::lock_guard lock(mutex_);
  return ranks_;
}

nlohmann::ordered_json Router::pools() const {
  const std::lock_guard lock(mutex_);
  return pools_;
}

std::string Router::pool_metrics() const { return pool_metrics_text(pools()); }

// ---- the router's thread ------------------------------------------------------------------------

void Router::run(const Hooks& hooks) {
  try {
    work(hooks);
  } catch (const std::exception& failure) {
    fail_all(failure.what());
    throw;
  }
}

void Router::work(const Hooks& hooks) {
  const Signals signals;
  bool was_ready = false;
  for (;;) {
    wait(signals);
    if (const int signal = signals.reader.take()) on_signal(signal);
    accept_instances();
    take_orders();
    for (const auto& [number, instance] : instances_.all()) read_from(instance->link, number);
    for (size_t i = 0; i < newcomers_.size(); ++i) read_from(newcomers_[i], std::nullopt);
    remove_broken();
    update_state();
    if (!was_ready && state_ == EngineState::kReady) {
      was_ready = true;
      hooks.on_ready();
    }
    if (Clock::now() - viewed_ >= kTick) {
      viewed_ = Clock::now();
      publish_view();
      hooks.on_tick();
    }
    const std::lock_guard lock(mutex_);
    if (draining_ && open_ == 0) break;
  }
  listener_ = Fd();
  instances_.clear();  // they look for another router, or leave
  newcomers_.clear();
}

void Router::on_signal(int signal) {
  const std::lock_guard lock(mutex_);
  if (draining_ || signal == SIGHUP) throw launcher::Interrupted("interrupted");
  draining_ = true;
  spdlog::info("draining: {} open request{}; a second signal ends at once", open_,
               open_ == 1 ? "" : "s");
}

void Router::wait(const Signals& signals) const {
  std::vector<pollfd> fds;
  const auto add = [&](int fd, bool writes) {
    const int events = POLLIN | (writes ? POLLOUT : 0);
    fds.push_back({.fd = fd, .events = static_cast<short>(events), .revents = 0});
  };
  add(wake_.get(), false);
  add(signals.reader.fd(), false);
  add(listener_.get(), false);
  for (const auto& [number, instance] : instances_.all())
    add(instance->link.fd(), instance->link.wants_to_write());
  for (const PeerLink& link : newcomers_) add(link.fd(), link.wants_to_write());
  ::poll(fds.data(), fds.size(), static_cast<int>(kTick.count()));
  uint64_t rings = 0;
  [[maybe_unused]] const ssize_t read = ::read(wake_.get(), &rings, sizeof(rings));
}

void Router::accept_instances() {
  for (;;) {
    Fd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket) return;
    const auto uid = comm::peer_uid(socket.get());
    if (uid == ::geteuid() || uid == 0) newcomers_.emplace_back(std::move(socket));
  }
}

void Router::take_orders() {
  std::vector<Arrival> arrivals;
  std::vector<std::shared_ptr<Generation>> leaving;
  {
    const std::lock_guard lock(mutex_);
    arrivals.swap(arrivals_);
    leaving.swap(leaving_);
  }
  for (const Arrival& arrival : arrivals) enter(arrival);
  for (const auto& generation : leaving) {
    std::vector<uint64_t> rooms;
    for (const auto& [number, room] : rooms_)
      if (room.generation == generation) rooms.push_back(number);
    for (const uint64_t number : rooms) {
      abort(number);
      close(number, FinishReason::kCancelled);
    }
  }
}

void Router::enter(const Arrival& arrival) {
  const auto& [generation, requests] = arrival;
  for (size_t i = 0; i < requests.size(); ++i) {
    const uint64_t number = next_room_++;
    Room& room = rooms_[number];
    room.generation = generation;
    room.number = static_cast<int>(i);
    room.request = requests[i];
    JoinedInstance* prefill = instances_.choose_prefill(room.request.prompt);
    if (prefill == nullptr) {
      fail(number, "no prefill instance is there");
      continue;
    }
    room.prefill = prefill->number;
    room.prefilling = true;
    ++prefill->open;
    prefill->open_tokens += std::ssize(room.request.prompt);
    prefill->prefixes.add(room.request.prompt, prefill->about.block_size);
    pd::PrefillT message;
    message.room = number;
    message.request = std::make_unique<pd::RequestT>(to_message(room.request));
    say(prefill->link, body_of(std::move(message)));
  }
}

// ---- instances ----------------------------------------------------------------------------------

void Router::read_from(PeerLink& link, std::optional<uint32_t> instance) {
  link.write_more();
  link.read_more([&](std::span<const uint8_t> bytes, std::vector<Fd> files) {
    const pd::Envelope* message = verified_message(bytes);
    if (message == nullptr) return link.close();
    if (instance) return hear(*instance, *message);
    if (const auto* join_message = message->body_as_Join())
      join(link, *join_message, std::move(files));
    else
      link.close();
  });
}

void Router::join(PeerLink& link, const pd::Join& message, std::vector<Fd> files) {
  pd::InstanceT about;
  message.instance()->UnPackTo(&about);
  std::string why = instances_.objection(about);
  const bool prefill = about.role == pd::Role::Prefill;
  if (about.block_size < 1 || about.batch_size < 1 || files.size() != (prefill ? 2 : 0))
    why = "it does not say what it is";
  if (!why.empty()) {
    spdlog::warn("process {} is refused: {}", about.pid, why);
    pd::RefusedT refused;
    refused.why = why;
    return say(link, body_of(std::move(refused)));
  }
  joining_.push_back({&link, std::move(about), std::move(files)});
}

// Newcomers that have said who they are; after all links have been read.
void Router::welcome() {
  for (Joining& one : joining_) {
    JoinedInstance& instance =
        instances_.add(std::move(*one.link), std::move(one.about), std::move(one.files));
    one.link->close();
    pd::WelcomeT message;
    message.instance = instance.number;
    say(instance.link, body_of(std::move(message)));
    introduce(instance);
    spdlog::info("{} has joined: process {}, {} ranks", instance.name(), instance.about.pid,
                 instance.about.world_size);
  }
  joining_.clear();
  std::erase_if(newcomers_, [](const PeerLink& link) { return link.broken(); });
}

// Each decode instance knows all prefill instances.
void Router::introduce(JoinedInstance& instance) {
  const bool is_prefill = instance.about.role == pd::Role::Prefill;
  for (const auto& [number, other] : instances_.all()) {
    if (other->about.role == instance.about.role) continue;
    const JoinedInstance& prefill = is_prefill ? instance : *other;
    JoinedInstance& decode = is_prefill ? *other : instance;
    pd::AttachT message;
    message.pool = prefill.number;
    message.instance = std::make_unique<pd::InstanceT>(prefill.about);
    const std::vector<int> files{prefill.files[0].get(), prefill.files[1].get()};
    say(decode.link, body_of(std::move(message)), files);
  }
}

void Router::remove_broken() {
  welcome();
  std::vector<uint32_t> gone;
  for (const auto& [number, instance] : instances_.all())
    if (instance->link.broken()) gone.push_back(number);
  for (const uint32_t number : gone) {
    const std::string why = fmt::format("{} has gone", instances_.find(number)->name());
    const bool prefill = instances_.find(number)->about.role == pd::Role::Prefill;
    spdlog::warn("{}", why);
    instances_.remove(number);
    std::vector<uint64_t> lost;
    for (const auto& [room_number, room] : rooms_)
      if ((room.prefilling && room.prefill == number) || room.decode == number)
        lost.push_back(room_number);
    for (const uint64_t room : lost) fail(room, why);
    if (!prefill) continue;
    for (const auto& [other, instance] : instances_.all()) {
      if (instance->about.role != pd::Role::Decode) continue;
      pd::DetachT message;
      message.pool = number;
      say(instance->link, body_of(std::move(message)));
    }
  }
}

void Router::update_state() {
  bool prefill = false, decode = false;
  int64_t positions = 0;
  int ranks = 0, seats = 0;
  for (const auto& [number, instance] : instances_.all()) {
    const bool works = !instance->state.leaving;
    const bool decodes = instance->about.role == pd::Role::Decode;
    (decodes ? decode : prefill) |= works;
    if (decodes && works) seats += instance->about.batch_size;
    ranks += instance->about.world_size;
    positions = positions == 0 ? instance->about.most_positions
                               : std::min(positions, instance->about.most_positions);
  }
  const std::lock_guard lock(mutex_);
  seats_ = seats;
  world_size_ = ranks;
  if (positions > 0) most_positions_ = positions;
  state_ = draining_           ? EngineState::kDraining
           : prefill && decode ? EngineState::kReady
                               : EngineState::kLoading;
}

void Router::hear(uint32_t number, const pd::Envelope& message) {
  JoinedInstance& instance = *instances_.find(number);
  if (const auto* first = message.body_as_FirstToken()) {
    pd::FirstTokenT unpacked;
    first->UnPackTo(&unpacked);
    return on_first_token(number, unpacked);
  }
  if (const auto* tokens = message.body_as_Tokens()) {
    pd::TokensT unpacked;
    tokens->UnPackTo(&unpacked);
    for (const auto& one : unpacked.rooms) on_tokens(number, *one);
    return;
  }
  if (const auto* lost = message.body_as_Lost()) {
    const auto found = rooms_.find(lost->room());
    if (found != rooms_.end() && is_with(found->second, number))
      fail(lost->room(), fmt::format("{}: {}", instance.name(), lost->why()->str()));
    return;
  }
  if (const auto* state = message.body_as_State()) {
    state->UnPackTo(&instance.state);
    if (!instance.state.leaving || instance.farewell_said) return;
    instance.farewell_said = true;
    return say(instance.link, body_of(pd::FarewellT{}));
  }
  spdlog::warn("{} sent an unexpected {}", instance.name(), pd::EnumNameBody(message.body_type()));
  instance.link.close();
}

// ---- rooms --------------------------------------------------------------------------------------

bool Router::is_with(const Room& room, uint32_t instance) {
  return room.prefilling ? room.prefill == instance : room.decode == instance;
}

void Router::on_first_token(uint32_t from, const pd::FirstTokenT& message) {
  const uint64_t number = message.tokens->room;
  const auto found = rooms_.find(number);
  if (found == rooms_.end() || !found->second.prefilling || found->second.prefill != from) return;
  Room& room = found->second;
  leave_prefill(room);
  room.completion.reused_tokens = message.tokens->cached_tokens;
  room.completion.admitted_s = static_cast<double>(message.tokens->queued_us) / 1e6;
  if (!pass_on(number, *message.tokens)) return hand_over(number, message);
  if (message.offer) abort_at(from, number);
}

void Router::hand_over(uint64_t number, const pd::FirstTokenT& message) {
  Room& room = rooms_.at(number);
  JoinedInstance* decode = instances_.choose_decode();
  if (!message.offer || message.tokens->tokens.size() != 1)
    return fail(number, "its prefill instance said nothing that could be gone on from");
  if (decode == nullptr) return fail(number, "no decode instance is there");
  room.decode = decode->number;
  ++decode->open;
  pd::DecodeT order;
  order.room = number;
  order.request = std::make_unique<pd::RequestT>(to_message(room.request));
  order.pool = *room.prefill;
  order.first_token = message.tokens->tokens[0];
  order.offer = std::make_unique<pd::OfferT>(*message.offer);
  say(decode->link, body_of(std::move(order)));
}

void Router::on_tokens(uint32_t from, const pd::NewTokensT& tokens) {
  const auto found = rooms_.find(tokens.room);
  if (found == rooms_.end() || found->second.decode != from) return;
  const bool its_end = tokens.reason != pd::Reason::None;
  if (pass_on(tokens.room, tokens) && !its_end) abort_at(from, tokens.room);
}

// To the client; true when the room has ended with it, also for a text that ends the answer.
bool Router::pass_on(uint64_t number, const pd::NewTokensT& tokens) {
  Room& room = rooms_.at(number);
  GenerationEvent event{.answer = room.number,
                        .tokens = tokens.tokens,
                        .log_probs = log_probs_of(tokens, room.request.top_log_probs),
                        .reason = reason_of(tokens),
                        .cached_tokens = room.completion.reused_tokens};
  for (size_t i = 0; room.request.stops_after && i < event.tokens.size(); ++i) {
    if (!room.request.stops_after(event.tokens[i])) continue;
    event.tokens.resize(i + 1);
    if (event.log_probs.size() > i + 1) event.log_probs.resize(i + 1);
    event.reason = FinishReason::kStop;
  }
  count(room, std::ssize(event.tokens));
  const FinishReason reason = event.reason;
  room.completion.tokens.insert(room.completion.tokens.end(), event.tokens.begin(),
                                event.tokens.end());
  if (!event.tokens.empty() || reason != FinishReason::kNone)
    room.generation->push(std::move(event));
  if (reason == FinishReason::kNone) return false;
  close(number, reason);
  return true;
}

void Router::count(Room& room, int64_t new_tokens) {
  if (new_tokens == 0) return;
  actors::Completion& c = room.completion;
  const double now = std::chrono::duration<double>(Clock::now() - room.submitted).count();
  const bool first = c.tokens.empty();
  if (first) {
    c.first_token_s = now;
    metrics_.on_first_token(now);
  }
  metrics_.on_more_tokens(first ? 0 : now - c.last_token_s, new_tokens);
  c.last_token_s = now;
}

void Router::leave_prefill(Room& room) {
  if (!std::exchange(room.prefilling, false)) return;
  JoinedInstance* prefill = instances_.find(*room.prefill);
  if (prefill == nullptr) return;
  --prefill->open;
  prefill->open_tokens -= std::ssize(room.request.prompt);
}

void Router::abort_at(uint32_t number, uint64_t room) {
  JoinedInstance* instance = instances_.find(number);
  if (instance == nullptr) return;
  pd::AbortT message;
  message.room = room;
  say(instance->link, body_of(std::move(message)));
}

void Router::abort(uint64_t number) {
  const Room& room = rooms_.at(number);
  if (room.prefill) abort_at(*room.prefill, number);
  if (room.decode) abort_at(*room.decode, number);
}

void Router::fail(uint64_t number, const std::string& why) {
  const auto generation = rooms_.at(number).generation;
  abort(number);
  forget(number);
  generation->fail(why);
}

void Router::fail_all(const std::string& why) {
  take_orders();
  std::vector<uint64_t> all;
  for (const auto& [number, room] : rooms_) all.push_back(number);
  for (const uint64_t number : all) fail(number, why);
}

void Router::close(uint64_t number, FinishReason reason) {
  Room& room = rooms_.at(number);
  room.completion.reason = reason;
  metrics_.on_end(room.completion, std::ssize(room.request.prompt));
  forget(number);
}

void Router::forget(uint64_t number) {
  const auto found = rooms_.find(number);
  leave_prefill(found->second);
  if (found->second.decode)
    if (JoinedInstance* decode = instances_.find(*found->second.decode)) --decode->open;
  rooms_.erase(found);
  const std::lock_guard lock(mutex_);
  --open_;
}

void Router::publish_view() {
  std::vector<RankView> ranks;
  auto pools = nlohmann::ordered_json::array();
  actors::StepStatistics steps;
  actors::SchedulerState now;
  for (const auto& [number, instance] : instances_.all()) {
    add_to_view(*instance, ranks, steps, now);
    pools.push_back(pool_json(*instance));
  }
  metrics_.on_step(steps, now);
  const std::lock_guard lock(mutex_);
  ranks_.swap(ranks);
  pools_ = std::move(pools);
}

}  // namespace troupe::serve

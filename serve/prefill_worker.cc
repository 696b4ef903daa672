#include "serve/prefill_worker.h"

#include <spdlog/spdlog.h>

#include "base/error.h"
#include "serve/pd_messages.h"

namespace troupe::serve {

namespace {

using actors::FinishReason;

}  // namespace

PrefillWorker::PrefillWorker(launcher::Session& session, std::unique_ptr<KvSource> source,
                             int64_t vocab_size, Say say)
    : session_(session),
      source_(std::move(source)),
      vocab_size_(vocab_size),
      say_(std::move(say)) {}

std::vector<int> PrefillWorker::describe(pd::InstanceT& about) const {
  return source_->describe(about);
}

bool PrefillWorker::hear(const pd::Envelope& message, std::vector<Fd>) {
  if (const auto* prefill = message.body_as_Prefill()) {
    pd::PrefillT unpacked;
    prefill->UnPackTo(&unpacked);
    start(unpacked);
    return true;
  }
  if (const auto* one = message.body_as_Abort()) {
    abort(one->room());
    return true;
  }
  return false;
}

void PrefillWorker::start(const pd::PrefillT& message) {
  if (rooms_.contains(message.room)) return say_(lost_message(message.room, "its room is in use"));
  auto request = from_message(*message.request, vocab_size_);
  if (!request) return say_(lost_message(message.room, "the router sent no such request"));
  const bool goes_on = request->max_new_tokens > 1;
  request->max_new_tokens = 1;
  request->hold = goes_on;
  try {
    const int id = session_.submit(std::move(*request));
    rooms_[message.room] = {.id = id, .goes_on = goes_on};
    room_of_[id] = message.room;
  } catch (const UserError& error) {
    say_(lost_message(message.room, error.what()));
  }
}

void PrefillWorker::abort(uint64_t room) {
  const auto found = rooms_.find(room);
  if (found == rooms_.end()) return;
  if (found->second.offered) return source_->withdraw(room);
  session_.cancel(found->second.id);
  // One that had just ended, and is held or about to be, goes too: see after_poll().
  found->second.goes_on = false;
}

void PrefillWorker::on_tokens(int id, std::span<const int32_t> tokens, FinishReason reason) {
  if (reason == FinishReason::kNone) return;
  ended_.push_back({room_of_.at(id), {tokens.begin(), tokens.end()}, reason});
}

void PrefillWorker::after_poll() {
  std::vector<Ended> ended;
  ended.swap(ended_);
  for (Ended& one : ended)
    if (!tell(one)) ended_.push_back(std::move(one));
  source_->reclaim([this](uint64_t room, bool lease) {
    if (lease) {
      ++revoked_;
      spdlog::warn("room {}: its reader has shown no life for the lease; its KV blocks are back",
                   room);
    }
    forget(room);
  });
}

// False when the step that ended it still runs on some rank.
bool PrefillWorker::tell(const Ended& ended) {
  Room& room = rooms_.at(ended.room);
  const bool held = room.goes_on && ended.reason == FinishReason::kLength;
  const auto blocks = held ? session_.held(room.id) : std::nullopt;
  if (held && !blocks) return false;
  if (ended.reason != FinishReason::kCancelled) {
    const actors::Completion& completion = session_.completion(room.id);
    pd::FirstTokenT message;
    message.tokens = std::make_unique<pd::NewTokensT>(
        to_message(ended.room, ended.tokens, completion.token_log_probs,
                   held ? FinishReason::kNone : ended.reason));
    message.tokens->cached_tokens = completion.reused_tokens;
    message.tokens->queued_us = static_cast<int64_t>(completion.admitted_s * 1e6);
    if (held) message.offer = std::make_unique<pd::OfferT>(source_->offer(ended.room, *blocks));
    say_(body_of(std::move(message)));
  }
  room.offered = held;
  if (!held) forget(ended.room);
  return true;
}

void PrefillWorker::forget(uint64_t room) {
  const auto found = rooms_.find(room);
  session_.release(found->second.id);
  room_of_.erase(found->second.id);
  rooms_.erase(found);
}

void PrefillWorker::forget_router() {
  std::vector<uint64_t> open;
  for (const auto& [number, room] : rooms_) open.push_back(number);
  for (const uint64_t number : open) abort(number);
}

void PrefillWorker::fail_all(const std::string& why) {
  for (const auto& [number, room] : rooms_)
    if (!room.offered) say_(lost_message(number, why));
}

void PrefillWorker::add_figures(pd::StateT& state) const { state.revoked = revoked_; }

}  // namespace troupe::serve

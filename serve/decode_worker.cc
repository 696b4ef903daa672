#include "serve/decode_worker.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "serve/pd_messages.h"

namespace troupe::serve {

namespace {

using actors::FinishReason;
using std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLifeInterval{500};

}  // namespace

DecodeWorker::DecodeWorker(launcher::Session& session, std::unique_ptr<KvReader> reader, bool pull,
                           int64_t vocab_size, Say say)
    : session_(session),
      reader_(std::move(reader)),
      pull_(pull),
      vocab_size_(vocab_size),
      say_(std::move(say)) {}

bool DecodeWorker::hear(const pd::Envelope& message, std::vector<Fd> files) {
  if (const auto* pool = message.body_as_Attach()) {
    attach(*pool, std::move(files));
    return true;
  }
  if (const auto* pool = message.body_as_Detach()) {
    reader_->detach(pool->pool());
    return true;
  }
  if (const auto* decode = message.body_as_Decode()) {
    pd::DecodeT unpacked;
    decode->UnPackTo(&unpacked);
    start(unpacked);
    return true;
  }
  if (const auto* abort = message.body_as_Abort()) {
    if (const auto found = rooms_.find(abort->room()); found != rooms_.end())
      session_.cancel(found->second.id);
    return true;
  }
  return false;
}

void DecodeWorker::attach(const pd::Attach& message, std::vector<Fd> files) {
  pd::InstanceT about;
  message.instance()->UnPackTo(&about);
  try {
    reader_->attach(message.pool(), about, std::move(files));
  } catch (const std::exception& error) {
    spdlog::warn("prefill instance {} cannot be read: {}", message.pool(), error.what());
  }
}

void DecodeWorker::start(const pd::DecodeT& message) {
  const auto started = steady_clock::now();
  const uint64_t room = message.room;
  if (rooms_.contains(room)) return lose(room, "its room is in use");
  try {
    auto request = from_message(*message.request, vocab_size_);
    const auto is_token = [&](int32_t token) { return token >= 0 && token < vocab_size_; };
    if (!request || !is_token(message.first_token) ||
        !std::ranges::all_of(message.offer->drafts, is_token) ||
        message.offer->positions != std::ssize(request->prompt))
      throw_user_error("the router sent no such request");
    request->adopted =
        actors::AdoptedBlocks{.blocks = reader_->take(room, message.pool, *message.offer),
                              .positions = message.offer->positions,
                              .first_token = message.first_token,
                              .drafts = message.offer->drafts,
                              .pull = pull_,
                              .let_go = [this, room] { reader_->finish(room); }};
    const int id = session_.submit(std::move(*request));
    rooms_[room] = {.id = id};
    room_of_[id] = room;
    count(*message.offer, std::chrono::duration<double>(steady_clock::now() - started).count());
  } catch (const UserError& error) {
    reader_->finish(room);
    lose(room, error.what());
  }
}

// What a hand-off costs: the partly filled block is copied, or with `pull` all are, by each rank
// of the attention group.
void DecodeWorker::count(const pd::OfferT& offer, double seconds) {
  const layers::KvCacheShape& shape = session_.kv_shape();
  const auto blocks = std::ssize(offer.blocks);
  const int64_t copies = pull_ ? blocks : blocks - offer.positions / shape.block_size;
  ++handoffs_;
  handoff_us_ += static_cast<int64_t>(seconds * 1e6);
  copied_bytes_ +=
      copies * static_cast<int64_t>(shape.stride_bytes()) * session_.limits().attn_tp_size;
  mapped_blocks_ += blocks - copies;
}

// Tokens are believed only if the blocks that they were made from are still this instance's.
void DecodeWorker::on_tokens(int id, std::span<const int32_t> tokens, FinishReason reason) {
  const uint64_t room = room_of_.at(id);
  const std::string why = reason == FinishReason::kCancelled ? "" : reader_->trouble(room);
  if (why.empty()) {
    said_.push_back({room, id, {tokens.begin(), tokens.end()}, reason});
    return;
  }
  lose(room, why);
  said_.push_back({room, id, {}, FinishReason::kCancelled});
}

void DecodeWorker::lose(uint64_t room, const std::string& why) {
  spdlog::warn("room {}: {}", room, why);
  say_(lost_message(room, why));
}

void DecodeWorker::after_poll() {
  pd::TokensT message;
  std::vector<Said> said;
  said.swap(said_);
  for (const Said& one : said) {
    if (room_of_.find(one.id) == room_of_.end()) continue;  // lost, and cancelled below
    if (one.reason == FinishReason::kCancelled) {
      session_.cancel(one.id);
      forget(one.room);
      continue;
    }
    message.rooms.push_back(std::make_unique<pd::NewTokensT>(
        to_message(one.room, one.tokens, new_log_probs(one), one.reason)));
    if (one.reason != FinishReason::kNone) forget(one.room);
  }
  if (!message.rooms.empty()) say_(body_of(std::move(message)));
  if (steady_clock::now() - looked_ < kLifeInterval) return;
  looked_ = steady_clock::now();
  look_for_trouble();
  reader_->show_life();
}

// Those of the tokens that are told now; the session keeps those of all tokens made here.
std::span<const actors::TokenLogProbs> DecodeWorker::new_log_probs(const Said& said) {
  const auto& all = session_.completion(said.id).token_log_probs;
  if (all.empty()) return {};
  size_t& told = rooms_.at(said.room).told;
  return std::span(all).subspan(std::exchange(told, told + said.tokens.size()), said.tokens.size());
}

// Of those that wait too.
void DecodeWorker::look_for_trouble() {
  std::vector<uint64_t> rooms;
  for (const auto& [number, room] : rooms_) rooms.push_back(number);
  for (const uint64_t room : rooms) {
    const std::string why = reader_->trouble(room);
    if (why.empty()) continue;
    lose(room, why);
    session_.cancel(rooms_.at(room).id);
  }
}

void DecodeWorker::forget(uint64_t room) {
  const auto found = rooms_.find(room);
  session_.release(found->second.id);
  room_of_.erase(found->second.id);
  rooms_.erase(found);
}

void DecodeWorker::forget_router() {
  for (const auto& [number, room] : rooms_) session_.cancel(room.id);
  reader_->detach_all();
}

void DecodeWorker::fail_all(const std::string& why) {
  for (const auto& [number, room] : rooms_) lose(number, why);
}

void DecodeWorker::add_figures(pd::StateT& state) const {
  state.handoffs = handoffs_;
  state.handoff_us = handoff_us_;
  state.copied_bytes = copied_bytes_;
  state.mapped_blocks = mapped_blocks_;
}

}  // namespace troupe::serve

// serve/pd_messages.h: the messages between a router and its instances (serve/messages/pd.fbs), as
// bytes and as what the rest of the program knows.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <utility>

#include "actors/request.h"
#include "launcher/config.h"
#include "launcher/session.h"
#include "model/model_config.h"
#include "serve/generation.h"
#include "serve/messages/pd_generated.h"
#include "serve/peer_link.h"

namespace troupe::serve {

// The message, or null where the bytes are none.
const pd::Envelope* verified_message(std::span<const uint8_t> bytes);

void say(PeerLink& link, pd::BodyUnion body, std::span<const int> files = {});

pd::RequestT to_message(const actors::Request& request);
// Nothing where a field says what no request can.
std::optional<actors::Request> from_message(const pd::RequestT& message, int64_t vocab_size);

// New tokens; `log_probs` of each, or none.
pd::NewTokensT to_message(uint64_t room, std::span<const int32_t> tokens,
                          std::span<const actors::TokenLogProbs> log_probs,
                          actors::FinishReason reason);
std::vector<actors::TokenLogProbs> log_probs_of(const pd::NewTokensT& tokens, int top_log_probs);
actors::FinishReason reason_of(const pd::NewTokensT& tokens);

// What an instance says of itself.
pd::InstanceT describe_instance(pd::Role role, const launcher::Config& config,
                                const model::ModelConfig& model, const launcher::Session& session);
// Why the one cannot read the other's blocks: what differs, and how; "" if nothing does.
std::string difference(const pd::InstanceT& instance, const pd::InstanceT& other);

template <class Message>
pd::BodyUnion body_of(Message message) {
  pd::BodyUnion body;
  body.Set(std::move(message));
  return body;
}
pd::BodyUnion lost_message(uint64_t room, const std::string& why);

const char* role_name(pd::Role role);  // "prefill", "decode"

}  // namespace troupe::serve

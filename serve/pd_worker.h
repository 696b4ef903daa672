// serve/pd_worker.h: what an instance does for the requests that a router sends it: of its role the
// one half (serve/prefill_worker.h, serve/decode_worker.h). The instance's thread calls everything.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "actors/request.h"
#include "base/memory.h"
#include "serve/messages/pd_generated.h"

namespace troupe::serve {

class PdWorker {
 public:
  // Sends a message to the router; to nobody while there is none.
  using Say = std::function<void(pd::BodyUnion body)>;

  virtual ~PdWorker() = default;

  // What goes with Join, beside what the session says of itself.
  virtual std::vector<int> describe(pd::InstanceT& about) const = 0;
  // A message of the router; false for one that is not for this role.
  virtual bool hear(const pd::Envelope& message, std::vector<Fd> files) = 0;
  // As the session calls it.
  virtual void on_tokens(int id, std::span<const int32_t> tokens, actors::FinishReason reason) = 0;
  // Tells the router what has come; after each poll of the session.
  virtual void after_poll() = 0;
  // The router has gone: nobody waits for what is being made.
  virtual void forget_router() = 0;
  // The session has failed: what the router's open requests are told.
  virtual void fail_all(const std::string& why) = 0;
  virtual bool idle() const = 0;  // nothing is open, and no block is with another owner
  virtual void add_figures(pd::StateT& state) const = 0;
};

}  // namespace troupe::serve

// serve/prefill_worker.h: prompts to their first tokens; then their KV blocks wait for a reader.
//
//   room:  computing --first token--> offered --board: done, withdrawn, lease over--> gone
//              |                                                                       ^
//              +--- abort; the answer is its first token; not taken -------------------+
#pragma once

#include <memory>
#include <unordered_map>

#include "launcher/session.h"
#include "serve/kv_transport.h"
#include "serve/pd_worker.h"

namespace troupe::serve {

class PrefillWorker final : public PdWorker {
 public:
  PrefillWorker(launcher::Session& session, std::unique_ptr<KvSource> source, int64_t vocab_size,
                Say say);

  std::vector<int> describe(pd::InstanceT& about) const override;
  bool hear(const pd::Envelope& message, std::vector<Fd> files) override;
  void on_tokens(int id, std::span<const int32_t> tokens, actors::FinishReason reason) override;
  void after_poll() override;
  void forget_router() override;
  void fail_all(const std::string& why) override;
  bool idle() const override { return rooms_.empty(); }
  void add_figures(pd::StateT& state) const override;

 private:
  struct Room {
    int id = 0;            // of the session's request
    bool goes_on = false;  // there is more to answer than the first token
    bool offered = false;
  };
  struct Ended {
    uint64_t room;
    std::vector<int32_t> tokens;
    actors::FinishReason reason;
  };
  void start(const pd::PrefillT& message);
  void abort(uint64_t room);
  bool tell(const Ended& ended);
  void forget(uint64_t room);

  launcher::Session& session_;
  std::unique_ptr<KvSource> source_;
  const int64_t vocab_size_;
  Say say_;
  std::unordered_map<uint64_t, Room> rooms_;
  std::unordered_map<int, uint64_t> room_of_;  // by request id
  std::vector<Ended> ended_;                   // not told yet
  int64_t revoked_ = 0;
};

}  // namespace troupe::serve

// serve/decode_worker.h: from a prompt's KV blocks, taken over from a prefill instance, to the end
// of its answer.
//
//   room:  taken --(waits for blocks and a seat)--> running --ends, abort, trouble--> gone
//
// The blocks are let go of when no step reads them any more: at the end of the room, or when all of
// them have been pulled.
#pragma once

#include <chrono>
#include <memory>
#include <unordered_map>

#include "launcher/session.h"
#include "serve/kv_transport.h"
#include "serve/pd_worker.h"

namespace troupe::serve {

class DecodeWorker final : public PdWorker {
 public:
  // `pull`: blocks are copied, some each step; else read where they lie.
  DecodeWorker(launcher::Session& session, std::unique_ptr<KvReader> reader, bool pull,
               int64_t vocab_size, Say say);

  std::vector<int> describe(pd::InstanceT&) const override { return {}; }
  bool hear(const pd::Envelope& message, std::vector<Fd> files) override;
  void on_tokens(int id, std::span<const int32_t> tokens, actors::FinishReason reason) override;
  void after_poll() override;
  void forget_router() override;
  void fail_all(const std::string& why) override;
  bool idle() const override { return rooms_.empty(); }
  void add_figures(pd::StateT& state) const override;

 private:
  struct Room {
    int id = 0;       // of the session's request
    size_t told = 0;  // tokens, of those made here
  };
  struct Said {
    uint64_t room;
    int id;
    std::vector<int32_t> tokens;
    actors::FinishReason reason;
  };
  void attach(const pd::Attach& message, std::vector<Fd> files);
  void start(const pd::DecodeT& message);
  void count(const pd::OfferT& offer, double seconds);
  void lose(uint64_t room, const std::string& why);
  std::span<const actors::TokenLogProbs> new_log_probs(const Said& said);
  void look_for_trouble();
  void forget(uint64_t room);

  launcher::Session& session_;
  std::unique_ptr<KvReader> reader_;
  const bool pull_;
  const int64_t vocab_size_;
  Say say_;
  std::unordered_map<uint64_t, Room> rooms_;
  std::unordered_map<int, uint64_t> room_of_;  // by request id
  std::vector<Said> said_;                     // not told yet
  std::chrono::steady_clock::time_point looked_{};
  int64_t handoffs_ = 0, handoff_us_ = 0, copied_bytes_ = 0, mapped_blocks_ = 0;
};

}  // namespace troupe::serve

// serve/shared_kv.h: KV blocks handed over where they lie: the reader's ranks map the memory in
// which the prefill ranks wrote them. Nothing is copied; who owns a block says a board in shared
// memory beside it (comm/handoff_board.h).
//
// With the environment variable TROUPE_KV_CHECKSUM=1 (on both sides) an offer has a checksum of
// each block's rows, and a reader compares before it believes what its ranks have read: what slips
// through the board's rules would be found, at the price of reading every block each step.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <unordered_map>

#include "comm/handoff_board.h"
#include "launcher/session.h"
#include "serve/kv_transport.h"

namespace troupe::serve {

class SharedKvSource final : public KvSource {
 public:
  explicit SharedKvSource(launcher::Session& session);

  std::vector<int> describe(pd::InstanceT& about) const override;
  pd::OfferT offer(uint64_t room, const actors::HeldBlocks& held) override;
  void withdraw(uint64_t room) override;
  void withdraw_all() override;
  void reclaim(const std::function<void(uint64_t room, bool lease)>& on_back) override;
  bool empty() const override { return offered_.empty() && back_.empty(); }

 private:
  const actors::SchedulerLimits& limits_;
  layers::KvCacheShape shape_;
  Fd readable_;   // the KV file, for reading alone
  Mapping rows_;  // for checksums
  comm::HandoffBoard board_;
  std::unordered_map<uint64_t, comm::HandoffTicket> offered_;  // by room
  std::vector<uint64_t> back_;
};

class SharedKvReader final : public KvReader {
 public:
  explicit SharedKvReader(launcher::Session& session);

  void attach(uint32_t pool, const pd::InstanceT& about, std::vector<Fd> files) override;
  void detach(uint32_t pool) override;
  void detach_all() override;
  std::vector<int32_t> take(uint64_t room, uint32_t pool, const pd::OfferT& offer) override;
  std::string trouble(uint64_t room) const override;
  void finish(uint64_t room) override;
  void show_life() override;

 private:
  struct Pool;
  struct Taken {
    std::shared_ptr<Pool> pool;
    comm::HandoffTicket ticket;
    pd::OfferT offer;
  };
  int64_t find_place(int64_t blocks) const;
  void let_go(std::shared_ptr<Pool> pool);
  std::string changed_block(const Pool& pool, const pd::OfferT& offer) const;

  launcher::Session& session_;
  layers::KvCacheShape shape_;
  std::map<uint32_t, std::shared_ptr<Pool>> pools_;  // by number; those that were detached are not
  std::map<int64_t, int64_t> places_;                // ids in use: first, how many
  std::unordered_map<uint64_t, Taken> taken_;        // by room
};

}  // namespace troupe::serve

// serve/kv_transport.h: how the KV blocks of a prompt get from the instance that computed them to
// the one that goes on: the two ends of a transport. The one there is maps shared memory
// (serve/shared_kv.h); one over a network would stand beside it: its source registers the blocks,
// its reader fetches them into blocks that its ranks can read, and calls the same of both.
//
// Between offer() and its end every block has two owners, the request that computed it and the
// reader; it is used again when both have let go. Rooms number the requests of a router.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "actors/scheduler.h"
#include "base/memory.h"
#include "serve/messages/pd_generated.h"

namespace troupe::serve {

// Of a prefill instance.
class KvSource {
 public:
  virtual ~KvSource() = default;

  // Completes what the instance says of itself when it joins, and the descriptors that go with it.
  virtual std::vector<int> describe(pd::InstanceT& about) const = 0;
  // Blocks that are held, and stay so until reclaim() names the room.
  virtual pd::OfferT offer(uint64_t room, const actors::HeldBlocks& held) = 0;
  // The room's request is over: its blocks come back unless a reader has taken them.
  virtual void withdraw(uint64_t room) = 0;
  virtual void withdraw_all() = 0;
  // The rooms whose blocks have come back, each once; `lease`: since their reader showed no life.
  virtual void reclaim(const std::function<void(uint64_t room, bool lease)>& on_back) = 0;
  virtual bool empty() const = 0;
};

// Of a decode instance.
class KvReader {
 public:
  virtual ~KvReader() = default;

  // A prefill instance that has joined, with its descriptors. UserError where it cannot be read.
  virtual void attach(uint32_t pool, const pd::InstanceT& about, std::vector<Fd> files) = 0;
  // It has gone; what has been taken of it stays readable until it is finished with.
  virtual void detach(uint32_t pool) = 0;
  virtual void detach_all() = 0;

  // Becomes an owner of the offered blocks: the ids under which the ranks read them. UserError
  // where the offer no longer stands, or is none.
  virtual std::vector<int32_t> take(uint64_t room, uint32_t pool, const pd::OfferT& offer) = 0;
  // What has been read of the room's blocks may not be believed, and why; "" if it may.
  virtual std::string trouble(uint64_t room) const = 0;
  // Nothing of them is read any more.
  virtual void finish(uint64_t room) = 0;
  // To be called at least once a second: the owners see that this reader lives.
  virtual void show_life() = 0;
};

}  // namespace troupe::serve

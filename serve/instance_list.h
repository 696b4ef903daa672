// serve/instance_list.h: the instances that have joined a router, and which of them takes a
// request.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/memory.h"
#include "serve/messages/pd_generated.h"
#include "serve/peer_link.h"

namespace troupe::serve {

// The beginnings of prompts that an instance has read of late, in whole blocks: what its prefix
// cache may have. A guess, which costs nothing when it is wrong.
class RecentPrefixes {
 public:
  void add(std::span<const int32_t> prompt, int block_size);
  int64_t known_tokens(std::span<const int32_t> prompt, int block_size) const;

 private:
  static constexpr size_t kMost = 16384;
  std::unordered_set<uint64_t> hashes_;
  std::deque<uint64_t> order_;
};

struct JoinedInstance {
  uint32_t number = 0;
  PeerLink link;
  pd::InstanceT about;
  std::vector<Fd> files;  // of a prefill instance: for those who read its blocks
  pd::StateT state;       // as it said last
  bool farewell_said = false;
  // Of the router's requests that are with it: how many, and tokens of prompts still to be read.
  int open = 0;
  int64_t open_tokens = 0;
  RecentPrefixes prefixes;

  std::string name() const;  // "prefill 0"
};

class InstanceList {
 public:
  // Why an instance cannot work with those that are there; "" if it can.
  std::string objection(const pd::InstanceT& about) const;
  JoinedInstance& add(PeerLink link, pd::InstanceT about, std::vector<Fd> files);
  void remove(uint32_t number) { instances_.erase(number); }
  void clear() { instances_.clear(); }
  JoinedInstance* find(uint32_t number);
  const std::map<uint32_t, std::unique_ptr<JoinedInstance>>& all() const { return instances_; }

  // Who reads a prompt: of those that have least to read, give or take this prompt, the one that
  // has read most of its beginning before. Null: there is none.
  JoinedInstance* choose_prefill(std::span<const int32_t> prompt) const;
  // Who makes the answer: the one with the most free seats, then the most free KV blocks.
  JoinedInstance* choose_decode() const;

 private:
  std::vector<JoinedInstance*> of_role(pd::Role role) const;  // that are not leaving

  std::map<uint32_t, std::unique_ptr<JoinedInstance>> instances_;
  uint32_t next_ = 0;
};

}  // namespace troupe::serve

#include "serve/instance_list.h"

#include <algorithm>

#include "base/error.h"
#include "serve/pd_messages.h"

namespace troupe::serve {

namespace {

// Of each whole block of the prompt with all before it, in order.
std::vector<uint64_t> block_hashes(std::span<const int32_t> prompt, int block_size) {
  std::vector<uint64_t> hashes;
  uint64_t hash = 0;
  for (size_t i = 0; i < prompt.size(); ++i) {
    hash = (hash ^ static_cast<uint32_t>(prompt[i])) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 32;
    if ((i + 1) % block_size == 0) hashes.push_back(hash);
  }
  return hashes;
}

}  // namespace

void RecentPrefixes::add(std::span<const int32_t> prompt, int block_size) {
  for (const uint64_t hash : block_hashes(prompt, block_size))
    if (hashes_.insert(hash).second) order_.push_back(hash);
  for (; order_.size() > kMost; order_.pop_front()) hashes_.erase(order_.front());
}

int64_t RecentPrefixes::known_tokens(std::span<const int32_t> prompt, int block_size) const {
  int64_t known = 0;
  for (const uint64_t hash : block_hashes(prompt, block_size)) {
    if (!hashes_.contains(hash)) break;
    known += block_size;
  }
  return known;
}

std::string JoinedInstance::name() const {
  return fmt::format("{} {}", role_name(about.role), number);
}

std::string InstanceList::objection(const pd::InstanceT& about) const {
  if (instances_.empty()) return "";
  const JoinedInstance& other = *instances_.begin()->second;
  const std::string why = difference(about, other.about);
  return why.empty() ? "" : fmt::format("{} ({})", why, other.name());
}

JoinedInstance& InstanceList::add(PeerLink link, pd::InstanceT about, std::vector<Fd> files) {
  const uint32_t number = next_++;
  auto& instance = instances_[number];
  instance = std::make_unique<JoinedInstance>(JoinedInstance{.number = number,
                                                             .link = std::move(link),
                                                             .about = std::move(about),
                                                             .files = std::move(files),
                                                             .state = {},
                                                             .prefixes = {}});
  return *instance;
}

JoinedInstance* InstanceList::find(uint32_t number) {
  const auto found = instances_.find(number);
  return found == instances_.end() ? nullptr : found->second.get();
}

std::vector<JoinedInstance*> InstanceList::of_role(pd::Role role) const {
  std::vector<JoinedInstance*> found;
  for (const auto& [number, instance] : instances_)
    if (instance->about.role == role && !instance->state.leaving && !instance->link.broken())
      found.push_back(instance.get());
  return found;
}

JoinedInstance* InstanceList::choose_prefill(std::span<const int32_t> prompt) const {
  const std::vector<JoinedInstance*> all = of_role(pd::Role::Prefill);
  if (all.empty()) return nullptr;
  const int64_t least = std::ranges::min(all, {}, &JoinedInstance::open_tokens)->open_tokens;
  JoinedInstance* best = nullptr;
  int64_t best_known = -1;
  for (JoinedInstance* one : all) {
    if (one->open_tokens > least + std::ssize(prompt)) continue;
    const int64_t known = one->prefixes.known_tokens(prompt, one->about.block_size);
    if (known < best_known || (known == best_known && one->open_tokens >= best->open_tokens))
      continue;
    best = one;
    best_known = known;
  }
  return best;
}

JoinedInstance* InstanceList::choose_decode() const {
  const std::vector<JoinedInstance*> all = of_role(pd::Role::Decode);
  if (all.empty()) return nullptr;
  const auto fuller = [](const JoinedInstance* a, const JoinedInstance* b) {
    const int seats_a = a->about.batch_size - a->open, seats_b = b->about.batch_size - b->open;
    if (seats_a != seats_b) return seats_a < seats_b;
    return a->state.blocks - a->state.blocks_in_use < b->state.blocks - b->state.blocks_in_use;
  };
  JoinedInstance* best = all.front();
  for (JoinedInstance* one : all)
    if (fuller(best, one)) best = one;
  return best;
}

}  // namespace troupe::serve

#include "serve/shared_kv.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cstdlib>
#include <cstring>
#include <string_view>

#include "actors/kv_space.h"
#include "base/error.h"

namespace troupe::serve {

namespace {

bool checks_sums() {
  const char* wish = std::getenv("TROUPE_KV_CHECKSUM");
  return wish != nullptr && std::string_view(wish) == "1";
}

int64_t section_blocks(const layers::KvCacheShape& shape, int64_t blocks) {
  const int64_t unit = actors::kv_section_alignment(shape);
  return (blocks + unit - 1) / unit * unit;
}

size_t section_bytes(layers::KvCacheShape shape, int64_t blocks) {
  shape.num_blocks = blocks;
  return actors::kv_section_bytes(shape);
}

// FNV-1a over words, of the first `positions` rows of every layer of a block.
uint64_t checksum(const layers::KvCacheShape& shape, const std::byte* block, int64_t positions) {
  const size_t bytes = positions * shape.row_bytes();
  uint64_t sum = 0xcbf29ce484222325;
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    const std::byte* rows = block + layer * shape.block_bytes();
    for (size_t at = 0; at < bytes; at += sizeof(uint64_t)) {
      uint64_t word = 0;
      std::memcpy(&word, rows + at, std::min(sizeof(word), bytes - at));
      sum = (sum ^ word) * 0x100000001b3;
    }
  }
  return sum;
}

// Of an offer's i-th block.
int64_t positions_in(const layers::KvCacheShape& shape, int64_t positions, size_t i) {
  return std::min<int64_t>(shape.block_size,
                           positions - static_cast<int64_t>(i) * shape.block_size);
}

// The section of the first rank of an attention group; the others' hold the same, or their heads.
const std::byte* block_of(const layers::KvCacheShape& shape, const Mapping& rows, size_t section,
                          int first_rank, int32_t block) {
  return rows.data() + first_rank * section + block * shape.stride_bytes();
}

}  // namespace

// ---- prefill ------------------------------------------------------------------------------------

SharedKvSource::SharedKvSource(launcher::Session& session)
    : limits_(session.limits()),
      shape_(session.kv_shape()),
      board_(comm::HandoffBoard::create(
          static_cast<uint32_t>(limits_.dp_size() * limits_.blocks_per_dp_rank),
          limits_.dp_size() * limits_.blocks_per_dp_rank)) {
  const auto path = fmt::format("/proc/self/fd/{}", session.kv_file());
  readable_ = Fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!readable_) throw std::runtime_error(errno_text("open of the KV memory"));
  for (int d = 0; d < limits_.dp_size(); ++d)
    session.show_generations(d, board_.generations().subspan(d * limits_.blocks_per_dp_rank,
                                                             limits_.blocks_per_dp_rank));
  if (checks_sums())
    rows_ = Mapping(readable_.get(), limits_.world_size * actors::kv_section_bytes(shape_),
                    Mapping::Access::kReadOnly);
}

std::vector<int> SharedKvSource::describe(pd::InstanceT& about) const {
  about.num_slots = limits_.dp_size() * static_cast<int32_t>(limits_.blocks_per_dp_rank);
  return {readable_.get(), board_.fd()};
}

// Every hand-off has a block of its own, so there are never more of them than slots.
pd::OfferT SharedKvSource::offer(uint64_t room, const actors::HeldBlocks& held) {
  const auto ticket = board_.offer();
  TROUPE_CHECK(ticket.has_value(), "{} hand-offs", offered_.size());
  offered_[room] = *ticket;
  pd::OfferT offer;
  offer.slot = ticket->slot;
  offer.ticket = ticket->ticket;
  offer.dp_rank = held.dp_rank;
  offer.positions = held.positions;
  offer.blocks = held.blocks;
  offer.generations = held.generations;
  offer.drafts = held.drafts;
  if (rows_.size() == 0) return offer;
  const size_t section = actors::kv_section_bytes(shape_);
  for (size_t i = 0; i < held.blocks.size(); ++i)
    offer.checksums.push_back(checksum(
        shape_,
        block_of(shape_, rows_, section, held.dp_rank * limits_.attn_tp_size, held.blocks[i]),
        positions_in(shape_, held.positions, i)));
  return offer;
}

void SharedKvSource::withdraw(uint64_t room) {
  const auto found = offered_.find(room);
  if (found == offered_.end() || !board_.withdraw(found->second)) return;
  offered_.erase(found);
  back_.push_back(room);
}

void SharedKvSource::withdraw_all() {
  std::vector<uint64_t> rooms;
  for (const auto& [room, ticket] : offered_) rooms.push_back(room);
  for (const uint64_t room : rooms) withdraw(room);
}

void SharedKvSource::reclaim(const std::function<void(uint64_t, bool)>& on_back) {
  std::vector<uint64_t> back;
  back.swap(back_);
  for (const uint64_t room : back) on_back(room, false);
  for (auto it = offered_.begin(); it != offered_.end();) {
    const auto owned = board_.look(it->second);
    if (owned == comm::HandoffBoard::Owned::kAway) {
      ++it;
      continue;
    }
    const uint64_t room = it->first;
    it = offered_.erase(it);
    on_back(room, owned == comm::HandoffBoard::Owned::kLeaseEnded);
  }
}

// ---- decode -------------------------------------------------------------------------------------

struct SharedKvReader::Pool {
  pd::InstanceT about;
  comm::HandoffBoard board;
  Mapping rows;  // for checksums
  int64_t first_block = 0, num_blocks = 0;

  int dp_size() const { return about.world_size / about.attn_tp_size; }
};

SharedKvReader::SharedKvReader(launcher::Session& session)
    : session_(session), shape_(session.kv_shape()) {}

// The first gap between the pools that are mapped.
int64_t SharedKvReader::find_place(int64_t blocks) const {
  int64_t place = section_blocks(shape_, shape_.num_blocks);
  for (const auto& [first, count] : places_) {
    if (first - place >= blocks) break;
    place = first + count;
  }
  if (blocks > shape_.num_blocks + actors::most_foreign_blocks(shape_) - place)
    throw_user_error("{} KV blocks of a prefill instance find no addresses beside those of {}",
                     blocks, places_.size());
  return place;
}

void SharedKvReader::attach(uint32_t pool, const pd::InstanceT& about, std::vector<Fd> files) {
  if (files.size() != 2 || about.attn_tp_size < 1 || about.world_size < about.attn_tp_size ||
      about.world_size % about.attn_tp_size != 0 || about.blocks_per_dp_rank < 1)
    throw_user_error("pool {} is not described as one", pool);
  const int dp_size = about.world_size / about.attn_tp_size;
  const size_t section = section_bytes(shape_, about.blocks_per_dp_rank);
  struct stat status {};
  if (::fstat(files[0].get(), &status) != 0 ||
      static_cast<size_t>(status.st_size) != about.world_size * section)
    throw_user_error("pool {} has {} bytes, not {} sections of {}", pool, status.st_size,
                     about.world_size, section);
  const int64_t stride = section_blocks(shape_, about.blocks_per_dp_rank);
  auto board = comm::HandoffBoard::open(std::move(files[1]),
                                        static_cast<uint32_t>(std::max(0, about.num_slots)),
                                        dp_size * about.blocks_per_dp_rank);
  const int64_t first = find_place(dp_size * stride);
  const int tp = session_.limits().attn_tp_size;
  for (int d = 0; d < dp_size; ++d)
    session_.map_kv({.first_block = first + d * stride,
                     .blocks = about.blocks_per_dp_rank,
                     .offset =
                         [&](int rank) {
                           const int shard = about.kv_heads_shards > 1 ? rank % tp : 0;
                           return (d * about.attn_tp_size + shard) * section;
                         }},
                    Fd(::fcntl(files[0].get(), F_DUPFD_CLOEXEC, 0)));
  Mapping rows;
  if (checks_sums())
    rows = Mapping(files[0].get(), about.world_size * section, Mapping::Access::kReadOnly);
  places_[first] = dp_size * stride;
  pools_[pool] =
      std::make_shared<Pool>(about, std::move(board), std::move(rows), first, dp_size * stride);
}

// The ranks unmap it once nobody reads there.
void SharedKvReader::let_go(std::shared_ptr<Pool> pool) {
  if (pool.use_count() > 1) return;
  session_.map_kv({.first_block = pool->first_block, .blocks = pool->num_blocks, .offset = {}},
                  Fd());
  places_.erase(pool->first_block);
}

void SharedKvReader::detach(uint32_t pool) {
  const auto found = pools_.find(pool);
  if (found == pools_.end()) return;
  auto gone = std::move(found->second);
  pools_.erase(found);
  let_go(std::move(gone));
}

void SharedKvReader::detach_all() {
  while (!pools_.empty()) detach(pools_.begin()->first);
}

std::vector<int32_t> SharedKvReader::take(uint64_t room, uint32_t number, const pd::OfferT& offer) {
  const auto found = pools_.find(number);
  if (found == pools_.end()) throw_user_error("its prefill instance has gone");
  const Pool& pool = *found->second;
  const int64_t per_dp_rank = pool.about.blocks_per_dp_rank;
  const auto exists = [&](int32_t block) { return block >= 0 && block < per_dp_rank; };
  const int64_t blocks = (offer.positions + shape_.block_size - 1) / shape_.block_size;
  if (offer.slot >= static_cast<uint32_t>(pool.about.num_slots) || offer.dp_rank < 0 ||
      offer.dp_rank >= pool.dp_size() || std::ssize(offer.blocks) != blocks ||
      offer.generations.size() != offer.blocks.size() || !std::ranges::all_of(offer.blocks, exists))
    throw_user_error("the offer of its KV blocks is none");
  const comm::HandoffTicket ticket{offer.slot, offer.ticket};
  if (!pool.board.take(ticket)) throw_user_error("its KV blocks have been taken back");
  taken_[room] = {found->second, ticket, offer};
  if (const std::string why = trouble(room); !why.empty()) {
    finish(room);
    throw UserError(why);
  }
  std::vector<int32_t> ids;
  const int64_t section = pool.first_block + offer.dp_rank * section_blocks(shape_, per_dp_rank);
  for (const int32_t block : offer.blocks) ids.push_back(static_cast<int32_t>(section + block));
  return ids;
}

std::string SharedKvReader::trouble(uint64_t room) const {
  const auto found = taken_.find(room);
  if (found == taken_.end()) return "";
  const auto& [pool, ticket, offer] = found->second;
  std::string why = changed_block(*pool, offer);
  if (!pool->board.holds(ticket))
    why = "its KV blocks were taken back: this instance showed no life for 10 s";
  return why;
}

std::string SharedKvReader::changed_block(const Pool& pool, const pd::OfferT& offer) const {
  const auto generations = pool.board.generations().subspan(
      offer.dp_rank * pool.about.blocks_per_dp_rank, pool.about.blocks_per_dp_rank);
  const size_t section = section_bytes(shape_, pool.about.blocks_per_dp_rank);
  for (size_t i = 0; i < offer.blocks.size(); ++i) {
    if (generations[offer.blocks[i]].load() != offer.generations[i])
      return fmt::format("KV block {} is of generation {}, not {}", offer.blocks[i],
                         generations[offer.blocks[i]].load(), offer.generations[i]);
    if (pool.rows.size() == 0 || i >= offer.checksums.size()) continue;
    const std::byte* block = block_of(shape_, pool.rows, section,
                                      offer.dp_rank * pool.about.attn_tp_size, offer.blocks[i]);
    if (checksum(shape_, block, positions_in(shape_, offer.positions, i)) != offer.checksums[i])
      return fmt::format("KV block {} is not what was offered", offer.blocks[i]);
  }
  return "";
}

void SharedKvReader::finish(uint64_t room) {
  const auto found = taken_.find(room);
  if (found == taken_.end()) return;
  auto pool = std::move(found->second.pool);
  pool->board.finish(found->second.ticket);
  taken_.erase(found);
  let_go(std::move(pool));
}

void SharedKvReader::show_life() {
  for (const auto& [room, taken] : taken_)
    if (taken.pool->board.holds(taken.ticket)) taken.pool->board.beat(taken.ticket);
}

}  // namespace troupe::serve

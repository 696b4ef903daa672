#include "model/bpe.h"

#include <bit>
#include <functional>
#include <queue>

#include "base/error.h"

namespace troupe::model {

namespace {

// Two numbers that are not negative, ordered by the first.
uint64_t pack(int32_t first, int32_t second) {
  return static_cast<uint64_t>(first) << 32 | static_cast<uint32_t>(second);
}

}  // namespace

// A piece while it is merged: a linked list in an array, where symbol i starts at byte i, and the
// merges that were possible when they were queued. A queued merge is not taken back when its
// symbols change; it is checked when its turn comes.
class Bpe::Word {
 public:
  Word(const Bpe& bpe, std::vector<int32_t> ids);
  void merge_all();
  void append_to(std::vector<int32_t>& ids) const;

 private:
  static constexpr int32_t kGone = -1;  // the id of a symbol that was merged into the one before

  struct Symbol {
    int32_t id;
    int32_t previous, next;  // -1 and size() at the ends
  };
  bool is_symbol(int32_t at) const { return at >= 0 && at < static_cast<int32_t>(symbols_.size()); }
  void consider(int32_t left, int32_t right);

  const Bpe& bpe_;
  std::vector<Symbol> symbols_;
  // Rank and position of the left symbol, packed; the smallest comes first.
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> queue_;
};

Bpe::Word::Word(const Bpe& bpe, std::vector<int32_t> ids) : bpe_(bpe) {
  symbols_.reserve(ids.size());
  for (int32_t i = 0; i < static_cast<int32_t>(ids.size()); ++i)
    symbols_.push_back({ids[i], i - 1, i + 1});
  for (int32_t i = 1; i < static_cast<int32_t>(ids.size()); ++i) consider(i - 1, i);
}

void Bpe::Word::consider(int32_t left, int32_t right) {
  if (!is_symbol(left) || !is_symbol(right)) return;
  const Rule* rule = bpe_.find(symbols_[left].id, symbols_[right].id);
  if (rule != nullptr) queue_.push(pack(rule->rank, left));
}

void Bpe::Word::merge_all() {
  while (!queue_.empty()) {
    const auto position = static_cast<int32_t>(queue_.top() & 0xffffffffu);
    const int32_t result = bpe_.results_[queue_.top() >> 32];
    queue_.pop();
    Symbol& left = symbols_[position];
    if (left.id == kGone || !is_symbol(left.next)) continue;
    Symbol& right = symbols_[left.next];
    // The reference asks for the same result only, not for the pair that was queued.
    const Rule* rule = bpe_.find(left.id, right.id);
    if (rule == nullptr || rule->result != result) continue;

    left.id = result;
    left.next = right.next;
    right.id = kGone;
    if (is_symbol(left.next)) symbols_[left.next].previous = position;
    consider(left.previous, position);
    consider(position, left.next);
  }
}

void Bpe::Word::append_to(std::vector<int32_t>& ids) const {
  for (const Symbol& symbol : symbols_)
    if (symbol.id != kGone) ids.push_back(symbol.id);
}

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids, std::span<const Merge> merges)
    : byte_ids_(byte_ids), slots_(std::bit_ceil(2 * merges.size() + 2)) {
  for (const Merge& merge : merges) {
    const uint64_t pair = pack(merge.left, merge.right);
    slots_[slot_of(pair)] = {pair, {merge.rank, merge.result}};
    if (std::ssize(results_) <= merge.rank) results_.resize(merge.rank + 1, -1);
    results_[merge.rank] = merge.result;
  }
}

size_t Bpe::slot_of(uint64_t pair) const {
  // Fibonacci hashing: the product's high bits depend on all bits of the pair.
  size_t slot = pair * 0x9e3779b97f4a7c15u >> 32 & (slots_.size() - 1);
  while (slots_[slot].pair != kEmpty && slots_[slot].pair != pair)
    slot = (slot + 1) & (slots_.size() - 1);
  return slot;
}

const Bpe::Rule* Bpe::find(int32_t left, int32_t right) const {
  const uint64_t pair = pack(left, right);
  const Slot& slot = slots_[slot_of(pair)];
  return slot.pair == pair ? &slot.rule : nullptr;
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  // The reference drops such bytes without a word: the text would not come back.
  std::vector<int32_t> bytes;
  bytes.reserve(piece.size());
  for (const char c : piece) {
    const auto byte = static_cast<uint8_t>(c);
    if (byte_ids_[byte] < 0)
      throw_user_error(
          "the text holds bytes {:#04x}, for which the tokenizer's vocabulary has no token", byte);
    bytes.push_back(byte_ids_[byte]);
  }
  Word word(*this, std::move(bytes));
  word.merge_all();
  word.append_to(ids);
}

}  // namespace troupe::model

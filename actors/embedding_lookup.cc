#include "actors/embedding_lookup.h"

#include <algorithm>
#include <cstring>

namespace troupe::actors {

EmbeddingLookup::EmbeddingLookup(const RankContext& context, const model::Embedding& table)
    : table_(table),
      ranks_(context.groups->embed_tp),
      format_(table.dtype == model::Dtype::kBf16 ? RowFormat::kBf16 : RowFormat::kF32),
      vocab_size_(context.config.vocab_size),
      sent_(ranks_.size()),
      received_(ranks_.size()) {}

void EmbeddingLookup::read_row(int32_t id, std::span<float> row) const {
  TROUPE_CHECK(id >= table_.vocab.begin && id < table_.vocab.end, "token {}", id);
  const size_t row_bytes = row.size() * element_bytes(format_);
  unpack_row(table_.rows + (id - table_.vocab.begin) * row_bytes, format_, row);
}

// Everybody's ids, in group order; counts_ says how many are whose.
void EmbeddingLookup::exchange_ids(std::span<const int32_t> ids) {
  const int size = ranks_.size();
  counts_.assign(size, 0);
  const auto count = static_cast<int32_t>(ids.size());
  ranks_.group().all_gather(std::as_bytes(std::span(&count, 1)),
                            std::as_writable_bytes(std::span(counts_)));
  const auto longest = static_cast<size_t>(*std::ranges::max_element(counts_));
  std::vector<int32_t>& padded = group_ids_;
  padded.assign(size * longest, 0);
  const auto own = std::span(padded).subspan(ranks_.group().rank() * longest, longest);
  std::ranges::copy(ids, own.begin());
  ranks_.group().all_gather(std::as_bytes(own), std::as_writable_bytes(std::span(padded)));
}

void EmbeddingLookup::lookup(std::span<const int32_t> ids, Matrix<float> rows) {
  const auto width = static_cast<size_t>(rows.cols);
  if (ranks_.size() == 1) {
    for (size_t i = 0; i < ids.size(); ++i)
      read_row(ids[i], {rows.row(static_cast<int64_t>(i)), width});
    return;
  }
  exchange_ids(ids);
  const size_t stride = group_ids_.size() / ranks_.size();
  send_views_.clear();
  receive_views_.clear();
  for (int r = 0; r < ranks_.size(); ++r) {
    sent_[r].clear();
    for (int32_t i = 0; i < counts_[r]; ++i) {
      const int32_t id = group_ids_[r * stride + i];
      if (id < table_.vocab.begin || id >= table_.vocab.end) continue;
      sent_[r].resize(sent_[r].size() + width);
      read_row(id, std::span(sent_[r]).last(width));
    }
    send_views_.emplace_back(sent_[r].data(), static_cast<int64_t>(sent_[r].size() / width),
                             rows.cols);
    const model::Range vocab = model::piece(vocab_size_, r, ranks_.size());
    const auto from_r =
        std::ranges::count_if(ids, [&](int32_t id) { return id >= vocab.begin && id < vocab.end; });
    received_[r].resize(from_r * width);
    receive_views_.emplace_back(received_[r].data(), from_r, rows.cols);
  }
  ranks_.exchange(send_views_, receive_views_, format_);
  for (int r = 0; r < ranks_.size(); ++r) {
    const model::Range vocab = model::piece(vocab_size_, r, ranks_.size());
    int64_t next = 0;
    for (size_t i = 0; i < ids.size(); ++i)
      if (ids[i] >= vocab.begin && ids[i] < vocab.end)
        std::memcpy(rows.row(static_cast<int64_t>(i)), receive_views_[r].row(next++),
                    width * sizeof(float));
  }
}

}  // namespace troupe::actors

// actors/row_exchange.h: moves rows between the ranks of one group when neighbouring stages are cut
// differently.
//
// Between stages every rank holds rows of its own: the residual stream is cut by tokens, whatever
// the tensor-parallel sizes (attention's ranks, who run the same sequences, hold a slice each). A
// stage that is cut over a group begins with gather (everybody's rows) or with an exchange of
// columns, and ends with scatter_sum: partial sums go to the rows' owner, who adds them in the
// fixed tree. A group of one rank moves nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/matrix.h"
#include "comm/process_group.h"
#include "layers/rounding.h"

namespace troupe::actors {

// How a row travels: fp32, or bf16 for values that were rounded to it before (the dtype).
enum class RowFormat { kF32, kBf16 };
inline size_t element_bytes(RowFormat format) {
  return format == RowFormat::kBf16 ? sizeof(Bf16) : sizeof(float);
}
void pack_row(std::span<const float> from, RowFormat format, std::byte* to);
void unpack_row(const std::byte* from, RowFormat format, std::span<float> to);

// to = round(from), element by element; the same rows are allowed.
void round_rows(Matrix<const float> from, Matrix<float> to, layers::Rounding rounding);

class RowExchange {
 public:
  explicit RowExchange(comm::ProcessGroup& group) : group_(group) {}

  comm::ProcessGroup& group() const { return group_; }
  int size() const { return group_.size(); }

  // Rows per rank from now on; world_rows [world size], by world rank, the same on all ranks.
  void set_rows(std::span<const int32_t> world_rows);
  int64_t total_rows() const { return offsets_.back(); }
  int64_t offset(int group_rank) const { return offsets_[group_rank]; }
  int64_t rows(int group_rank) const { return offsets_[group_rank + 1] - offsets_[group_rank]; }
  int64_t own_rows() const { return rows(group_.rank()); }
  // The rows of one rank within a matrix of everybody's rows.
  template <class T>
  Matrix<T> rows_of(int group_rank, Matrix<T> all) const {
    return all.rows_from(offset(group_rank), rows(group_rank));
  }

  // Everybody's rows in group order: [total_rows, own.cols]. For a group of one: `own` itself.
  // Valid until the next call of this object.
  Matrix<const float> gather(Matrix<const float> own, RowFormat format);

  // own = round(tree sum over ranks of their `partial` [total_rows, own.cols] at my rows).
  void scatter_sum(Matrix<const float> partial, Matrix<float> own, layers::Rounding rounding);

  // send[r] goes to rank r; receive[r] is filled by rank r's view for me, of the same shape.
  void exchange(std::span<const Matrix<const float>> send, std::span<const Matrix<float>> receive,
                RowFormat format);

 private:
  comm::ProcessGroup& group_;
  std::vector<int64_t> offsets_ = {0};  // [size + 1]
  // Grown to the largest message, then reused.
  std::vector<std::byte> send_buffer_, receive_buffer_;
  std::vector<int64_t> send_bytes_, send_displs_, receive_bytes_, receive_displs_;
  std::vector<float> gathered_, partials_;
  std::vector<const std::byte*> sources_;
  std::vector<Matrix<const float>> send_views_;
  std::vector<Matrix<float>> receive_views_;
};

}  // namespace troupe::actors

#include "actors/row_exchange.h"

#include <cstring>

#include "comm/tree_sum.h"
#include "layers/team.h"

namespace troupe::actors {

namespace {

template <class T>
T* grown(std::vector<T>& buffer, size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

template <class T>
size_t packed_bytes(Matrix<T> view, RowFormat format) {
  return static_cast<size_t>(view.rows * view.cols) * element_bytes(format);
}

}  // namespace

void pack_row(std::span<const float> from, RowFormat format, std::byte* to) {
  if (format == RowFormat::kF32) {
    std::memcpy(to, from.data(), from.size_bytes());
  } else {
    auto* out = reinterpret_cast<Bf16*>(to);
    for (size_t i = 0; i < from.size(); ++i) out[i] = to_bf16(from[i]);
  }
}

void unpack_row(const std::byte* from, RowFormat format, std::span<float> to) {
  if (format == RowFormat::kF32) {
    std::memcpy(to.data(), from, to.size_bytes());
  } else {
    const auto* in = reinterpret_cast<const Bf16*>(from);
    for (size_t i = 0; i < to.size(); ++i) to[i] = to_float(in[i]);
  }
}

void round_rows(Matrix<const float> from, Matrix<float> to, layers::Rounding rounding) {
  layers::parallel_for(from.rows, layers::row_grain(from.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* in = from.row(r);
      float* out = to.row(r);
      if (rounding == layers::Rounding::kBf16) {
        for (int64_t i = 0; i < from.cols; ++i) out[i] = round_to_bf16(in[i]);
      } else if (in != out) {
        std::memcpy(out, in, from.cols * sizeof(float));
      }
    }
  });
}

void RowExchange::set_rows(std::span<const int32_t> world_rows) {
  offsets_.assign(1, 0);
  for (int r = 0; r < size(); ++r)
    offsets_.push_back(offsets_.back() + world_rows[group_.world_rank(r)]);
}

Matrix<const float> RowExchange::gather(Matrix<const float> own, RowFormat format) {
  if (size() == 1) return own;
  const Matrix<float> all(grown(gathered_, total_rows() * own.cols), total_rows(), own.cols);
  send_views_.assign(size(), own);
  receive_views_.clear();
  for (int r = 0; r < size(); ++r) receive_views_.push_back(rows_of(r, all));
  exchange(send_views_, receive_views_, format);
  return all;
}

void RowExchange::scatter_sum(Matrix<const float> partial, Matrix<float> own,
                              layers::Rounding rounding) {
  if (size() == 1) return round_rows(partial, own, rounding);
  // Partial sums travel in fp32 whatever the dtype: there is one rounding, after the root.
  const size_t elements = own.rows * own.cols;
  float* parts = grown(partials_, size() * elements);
  send_views_.clear();
  receive_views_.clear();
  sources_.clear();
  for (int r = 0; r < size(); ++r) {
    send_views_.push_back(rows_of(r, partial));
    receive_views_.emplace_back(parts + r * elements, own.rows, own.cols);
    sources_.push_back(reinterpret_cast<const std::byte*>(parts + r * elements));
  }
  exchange(send_views_, receive_views_, RowFormat::kF32);
  comm::tree_sum(comm::DataType::kF32, sources_, reinterpret_cast<std::byte*>(parts),
                 elements * sizeof(float));
  round_rows(Matrix<const float>(parts, own.rows, own.cols), own, rounding);
}

void RowExchange::exchange(std::span<const Matrix<const float>> send,
                           std::span<const Matrix<float>> receive, RowFormat format) {
  send_bytes_.assign(size(), 0);
  send_displs_.assign(size(), 0);
  receive_bytes_.assign(size(), 0);
  receive_displs_.assign(size(), 0);
  int64_t send_total = 0, receive_total = 0;
  for (int r = 0; r < size(); ++r) {
    // The same rows for everybody are packed once.
    const bool repeated =
        r > 0 && send[r].data == send[r - 1].data && send[r].rows == send[r - 1].rows;
    send_bytes_[r] = static_cast<int64_t>(packed_bytes(send[r], format));
    send_displs_[r] = repeated ? send_displs_[r - 1] : send_total;
    if (!repeated) send_total += send_bytes_[r];
    receive_bytes_[r] = static_cast<int64_t>(packed_bytes(receive[r], format));
    receive_displs_[r] = receive_total;
    receive_total += receive_bytes_[r];
  }
  std::byte* out = grown(send_buffer_, send_total);
  std::byte* in = grown(receive_buffer_, receive_total);
  for (int r = 0; r < size(); ++r) {
    if (r > 0 && send_displs_[r] == send_displs_[r - 1] && send_bytes_[r - 1] > 0) continue;
    const size_t row_bytes = send[r].cols * element_bytes(format);
    for (int64_t i = 0; i < send[r].rows; ++i)
      pack_row({send[r].row(i), static_cast<size_t>(send[r].cols)}, format,
               out + send_displs_[r] + i * row_bytes);
  }
  group_.all_to_all_v({out, static_cast<size_t>(send_total)},
                      {in, static_cast<size_t>(receive_total)},
                      {send_bytes_, send_displs_, receive_bytes_, receive_displs_});
  for (int r = 0; r < size(); ++r) {
    const size_t row_bytes = receive[r].cols * element_bytes(format);
    for (int64_t i = 0; i < receive[r].rows; ++i)
      unpack_row(in + receive_displs_[r] + i * row_bytes, format,
                 {receive[r].row(i), static_cast<size_t>(receive[r].cols)});
  }
}

}  // namespace troupe::actors

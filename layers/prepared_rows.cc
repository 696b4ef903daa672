#include "layers/prepared_rows.h"

#include "layers/kernels.h"
#include "layers/quantize.h"
#include "layers/team.h"

namespace troupe::layers {
namespace {

// An odd number of cache lines: rows a multiple of 4 KiB apart would all fall into one set of L1.
int64_t bf16_row_bytes(int64_t cols) {
  const int64_t lines = (cols * static_cast<int64_t>(sizeof(Bf16)) + 63) / 64;
  return (lines | 1) * 64;
}

}  // namespace

PreparedRows::PreparedRows(Matrix<const float> x)
    : rows(x.rows),
      cols(x.cols),
      data(reinterpret_cast<const std::byte*>(x.data)),
      row_bytes(x.stride * static_cast<int64_t>(sizeof(float))) {}

PreparedRows PreparedRows::rows_from(int64_t first, int64_t count) const {
  TROUPE_CHECK(first >= 0 && count >= 0 && first + count <= rows, "rows {}+{} of {}", first, count,
               rows);
  PreparedRows part = *this;
  part.data += first * row_bytes;
  part.rows = count;
  return part;
}

InputForm input_form(const PackedMatrix& w, Rounding dtype) {
  const bool may_round = dtype == Rounding::kBf16 && kernels().linear_dot_bf16 != nullptr;
  switch (w.type) {
    case WeightType::kF32:
      return InputForm::kF32;
    case WeightType::kBf16:
    case WeightType::kFp8:
      return may_round ? InputForm::kBf16 : InputForm::kF32;
    case WeightType::kInt8:
      return InputForm::kForInt8;
    case WeightType::kInt4:
      return InputForm::kForInt4;
    case WeightType::kMxfp4:
      return InputForm::kForMxfp4;
  }
  TROUPE_CHECK(false, "weight type {}", static_cast<int>(w.type));
}

size_t prepared_bytes(const PackedMatrix& w, Rounding dtype, int64_t rows) {
  switch (input_form(w, dtype)) {
    case InputForm::kF32:
      return 0;
    case InputForm::kBf16:
      return rows * bf16_row_bytes(w.cols);
    case InputForm::kForInt8:
    case InputForm::kForInt4:
    case InputForm::kForMxfp4:
      return rows * quantized_shape(w.type, w.leaves).row_bytes;
  }
  TROUPE_CHECK(false, "weight type {}", static_cast<int>(w.type));
}

PreparedRows describe_rows(const PackedMatrix& w, Matrix<const float> x, Rounding dtype,
                           const std::byte* memory) {
  TROUPE_CHECK(x.cols == w.cols, "w [{}, {}] x [{}, {}]", w.rows, w.cols, x.rows, x.cols);
  const InputForm form = input_form(w, dtype);
  if (form == InputForm::kF32) return x;
  PreparedRows prepared;
  prepared.form = form;
  prepared.rows = x.rows;
  prepared.cols = x.cols;
  prepared.leaves = w.leaves;
  prepared.data = memory;
  prepared.row_bytes = static_cast<int64_t>(prepared_bytes(w, dtype, 1));
  return prepared;
}

PreparedRows prepare(const PackedMatrix& w, Matrix<const float> x, Rounding dtype,
                     std::byte* memory) {
  const PreparedRows prepared = describe_rows(w, x, dtype, memory);
  if (prepared.form == InputForm::kF32) return prepared;
  parallel_for(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    if (prepared.form != InputForm::kBf16)
      return quantize_rows(w.type, w.leaves, x.rows_from(begin, end - begin),
                           memory + begin * prepared.row_bytes);
    for (int64_t t = begin; t < end; ++t)
      kernels().round_to_bf16_row(x.row(t), x.cols,
                                  reinterpret_cast<Bf16*>(memory + t * prepared.row_bytes));
  });
  return prepared;
}

std::byte* InputBuffer::reserve(size_t bytes) {
  const size_t lines = (bytes + sizeof(Line) - 1) / sizeof(Line);
  if (lines > lines_.size()) lines_.resize(lines);
  return lines_.empty() ? nullptr : lines_.data()->bytes;
}

PreparedRows InputBuffer::prepare(const PackedMatrix& w, Matrix<const float> x, Rounding dtype) {
  return layers::prepare(w, x, dtype, reserve(prepared_bytes(w, dtype, x.rows)));
}

}  // namespace troupe::layers

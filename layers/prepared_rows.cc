#include "layers/prepared_rows.h"

namespace troupe::layers {

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

InputForm input_form(const PackedMatrix&, Rounding) { return InputForm::kF32; }

size_t prepared_bytes(const PackedMatrix& w, Rounding dtype, int64_t) {
  switch (input_form(w, dtype)) {
    case InputForm::kF32:
      return 0;
  }
  TROUPE_CHECK(false, "weight type {}", static_cast<int>(w.type));
}

PreparedRows prepare(const PackedMatrix& w, Matrix<const float> x, Rounding dtype, std::byte*) {
  TROUPE_CHECK(x.cols == w.cols, "w [{}, {}] x [{}, {}]", w.rows, w.cols, x.rows, x.cols);
  switch (input_form(w, dtype)) {
    case InputForm::kF32:
      return x;
  }
  TROUPE_CHECK(false, "weight type {}", static_cast<int>(w.type));
}

PreparedRows InputBuffer::prepare(const PackedMatrix& w, Matrix<const float> x, Rounding dtype) {
  const size_t lines = (prepared_bytes(w, dtype, x.rows) + sizeof(Line) - 1) / sizeof(Line);
  if (lines > lines_.size()) lines_.resize(lines);
  return layers::prepare(w, x, dtype, lines_.empty() ? nullptr : lines_.data()->bytes);
}

}  // namespace troupe::layers

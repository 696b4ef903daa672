// layers/prepared_rows.h: the inputs of a product in the form that its kernel reads.
//
// An input is prepared once and then multiplied by every matrix that reads it in the same form
// (q_a and kv_a; gate and up), by every thread. A form is chosen by three things that do not depend
// on the batch: the weight's type, the dtype, and the instruction set.
//
// How a form is added (int8 with a scale per leaf, say): an InputForm here; what its rows occupy
// and how they are written in prepared_rows.cc; the kernel that reads them in
// linear_<format>_kernel.h, and what it computes in namespace reference (layers/linear.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/matrix.h"
#include "layers/packed_matrix.h"
#include "layers/rounding.h"
#include "layers/team.h"

namespace troupe::layers {

enum class InputForm : uint8_t {
  kF32,      // [cols] floats, as they are
  kBf16,     // [cols] Bf16
  kForInt8,  // layers/quantize.h: 8-bit codes, scales and offsets for weights of that type
  kForInt4,
  kForMxfp4,
};

// Rows [rows, cols] in some form. A row is `row_bytes` long and complete in itself: whatever scales
// its form has lie in it, so that threads may prepare and use any part of the rows.
struct PreparedRows {
  InputForm form = InputForm::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  LeafRange leaves;  // of the matrix they were prepared for; its form may depend on them
  const std::byte* data = nullptr;
  int64_t row_bytes = 0;  // from one row to the next

  PreparedRows() = default;
  // Floats are their own prepared form: for a product in fp32, whatever the dtype.
  PreparedRows(Matrix<const float> x);  // NOLINT: implicit
  PreparedRows(Matrix<float> x) : PreparedRows(Matrix<const float>(x)) {}

  PreparedRows rows_from(int64_t first, int64_t count) const;
};

// The form that products with `w` read. dtype kBf16 allows forms that round inputs to bfloat16;
// those of most products are such values already.
InputForm input_form(const PackedMatrix& w, Rounding dtype);

// Memory of `rows` rows of that form; 0 for kF32, which needs no copy. A row occupies
// prepared_bytes(w, dtype, 1), a multiple of 64.
size_t prepared_bytes(const PackedMatrix& w, Rounding dtype, int64_t rows);

// x [rows, w.cols] in the form that products with `w` read. `memory` has room for
// prepared_bytes(w, dtype, x.rows), 64-byte aligned; the result points into it, or into x. The
// calling thread's team takes rows (layers/team.h).
PreparedRows prepare(const PackedMatrix& w, Matrix<const float> x, Rounding dtype,
                     std::byte* memory);

// What prepare() would return, without writing anything.
PreparedRows describe_rows(const PackedMatrix& w, Matrix<const float> x, Rounding dtype,
                           const std::byte* memory);

// Memory for one input at a time; grows to the largest it has seen, so that a step like an earlier
// one allocates nothing.
class InputBuffer {
 public:
  // The results are valid until the next call.
  PreparedRows prepare(const PackedMatrix& w, Matrix<const float> x, Rounding dtype);

  // The same of rows that are made on the way: fill(r, one row) writes row r [1, w.cols]. `rows`
  // holds them where floats are the form that w reads; else a thread makes one row after the other
  // in the same few lines of it, and prepares each while it is in the cache.
  template <class Fill>
  PreparedRows prepare(const PackedMatrix& w, Matrix<float> rows, Rounding dtype,
                       const Fill& fill) {
    std::byte* const memory = reserve(prepared_bytes(w, dtype, rows.rows));
    PreparedRows prepared = describe_rows(w, rows, dtype, memory);
    const bool as_floats = prepared.form == InputForm::kF32;
    parallel_for(rows.rows, row_grain(rows.cols), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const Matrix<float> row = rows.rows_from(as_floats ? r : begin, 1);
        fill(r, row);
        if (!as_floats) layers::prepare(w, row, dtype, memory + r * prepared.row_bytes);
      }
    });
    return prepared;
  }

 private:
  std::byte* reserve(size_t bytes);

  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> lines_;
};

}  // namespace troupe::layers

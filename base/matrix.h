// base/matrix.h: a row-major view of memory that somebody else owns.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/error.h"

namespace troupe {

template <class T>
struct Matrix {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements from one row to the next, >= cols

  Matrix() = default;
  Matrix(T* data_, int64_t rows_, int64_t cols_) : Matrix(data_, rows_, cols_, cols_) {}
  Matrix(T* data_, int64_t rows_, int64_t cols_, int64_t stride_)
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}

  T* row(int64_t r) const { return data + r * stride; }
  Matrix rows_from(int64_t first, int64_t count) const {
    TROUPE_CHECK(first >= 0 && count >= 0 && first + count <= rows, "rows {}+{} of {}", first,
                 count, rows);
    return Matrix(data + first * stride, count, cols, stride);
  }
  Matrix columns_from(int64_t first, int64_t count) const {
    TROUPE_CHECK(first >= 0 && count >= 0 && first + count <= cols, "columns {}+{} of {}", first,
                 count, cols);
    return Matrix(data + first, rows, count, stride);
  }
  operator Matrix<const T>() const requires(!std::is_const_v<T>) {
    return Matrix<const T>(data, rows, cols, stride);
  }
};

}  // namespace troupe

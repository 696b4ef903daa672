#include "base/matrix.h"

#include <gtest/gtest.h>

#include <vector>

namespace troupe {
namespace {

TEST(Matrix, RowsLieAStrideApart) {
  std::vector<float> data{0, 1, 2, 3, 4, 5, 6, 7};
  const Matrix<float> dense(data.data(), 4, 2);
  const Matrix<float> strided(data.data(), 2, 2, 4);
  EXPECT_EQ(dense.row(3)[1], 7);
  EXPECT_EQ(strided.row(1)[1], 5);
}

TEST(Matrix, RowsFromIsAViewOfTheSameMemory) {
  std::vector<float> data(8);
  const Matrix<float> all(data.data(), 2, 2, 4);
  const Matrix<float> last = all.rows_from(1, 1);
  last.row(0)[1] = 9;
  EXPECT_EQ(data[5], 9);
  EXPECT_EQ(last.rows, 1);
  EXPECT_EQ(last.stride, 4);
}

TEST(Matrix, RowsFromMayBeEmptyAtTheEnd) {
  std::vector<float> data(4);
  EXPECT_EQ(Matrix<float>(data.data(), 2, 2).rows_from(2, 0).rows, 0);
}

TEST(Matrix, RowsBeyondTheEndAreRefused) {
  std::vector<float> data(4);
  const Matrix<float> matrix(data.data(), 2, 2);
  EXPECT_THROW(matrix.rows_from(1, 2), std::logic_error);
  EXPECT_THROW(matrix.rows_from(-1, 1), std::logic_error);
  EXPECT_THROW(matrix.rows_from(0, -1), std::logic_error);
}

TEST(Matrix, ColumnsFromIsAViewOfTheSameRows) {
  std::vector<float> data{0, 1, 2, 3, 4, 5, 6, 7};
  const Matrix<float> last = Matrix<float>(data.data(), 2, 3, 4).columns_from(1, 2);
  EXPECT_EQ(last.row(1)[0], 5);
  EXPECT_EQ(last.cols, 2);
  EXPECT_EQ(last.stride, 4);
  EXPECT_THROW(last.columns_from(1, 2), std::logic_error);
}

}  // namespace
}  // namespace troupe

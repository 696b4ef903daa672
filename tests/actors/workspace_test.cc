#include "actors/workspace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace troupe::actors {
namespace {

TEST(Workspace, TensorsAreZeroedAndStartOnCacheLines) {
  Workspace workspace;
  for (const auto& [rows, cols] : {std::pair{3, 5}, {1, 1}, {7, 16}, {2, 33}}) {
    const msg::Tensor tensor = workspace.allocate(rows, cols);

    const Matrix<float> view = workspace.floats(tensor);
    EXPECT_EQ(view.rows, rows);
    EXPECT_EQ(view.cols, cols);
    EXPECT_EQ(view.stride, cols);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(view.data) % 64, 0);
    EXPECT_TRUE(std::all_of(view.data, view.data + rows * cols, [](float x) { return x == 0; }));
    std::fill_n(view.data, rows * cols, 1.0f);  // the next one is zero all the same
  }
}

TEST(Workspace, TensorsDoNotOverlapAndStayWhereTheyAre) {
  Workspace workspace;
  std::vector<msg::Tensor> tensors;
  std::vector<int32_t*> places;
  for (int i = 0; i < 50; ++i) {
    tensors.push_back(workspace.allocate(1 + i % 7, 1 + i % 11));
    const Matrix<int32_t> view = workspace.ints(tensors.back());
    places.push_back(view.data);
    std::fill_n(view.data, view.rows * view.cols, i);
  }

  for (int i = 0; i < 50; ++i) {
    const Matrix<int32_t> view = workspace.ints(tensors[i]);
    EXPECT_EQ(view.data, places[i]);
    EXPECT_EQ(std::count(view.data, view.data + view.rows * view.cols, i), view.rows * view.cols);
  }
}

TEST(Workspace, ATensorWithoutElementsTakesNoMemory) {
  Workspace workspace;

  const msg::Tensor no_rows = workspace.allocate(0, 5), no_cols = workspace.allocate(5, 0);

  EXPECT_EQ(workspace.used_bytes(), 0);
  EXPECT_EQ(workspace.floats(no_rows).rows, 0);
  EXPECT_EQ(workspace.floats(no_cols).cols, 0);
}

TEST(Workspace, RefusesATensorThatReachesPastWhatWasAllocated) {
  Workspace workspace;
  workspace.allocate(4, 16);  // 256 bytes
  constexpr int32_t kMost = INT32_MAX;

  EXPECT_NO_THROW(workspace.floats({64, 3, 16}));
  for (const msg::Tensor& wrong :
       {msg::Tensor(64, 4, 16), msg::Tensor(0, 5, 16), msg::Tensor(0, 4, 17),
        msg::Tensor(257, 0, 0), msg::Tensor(UINT64_MAX, 1, 1), msg::Tensor(0, -1, 16),
        msg::Tensor(0, 1, -16), msg::Tensor(0, kMost, kMost), msg::Tensor(0, INT32_MIN, INT32_MIN)})
    EXPECT_THROW(workspace.floats(wrong), std::logic_error)
        << wrong.rows() << " x " << wrong.cols() << " at " << wrong.offset();
}

TEST(Workspace, GrowsAndStillRefusesWhatReachesPastATensor) {
  Workspace workspace;
  constexpr int64_t kLarge = 3 << 20;  // of rows of 16 bytes: 48 MiB
  const msg::Tensor small = workspace.allocate(5, 4), large = workspace.allocate(kLarge, 4);
  const msg::Tensor last = workspace.allocate(7, 4);
  const Matrix<float> view = workspace.floats(large);
  view.data[0] = view.data[4 * kLarge - 1] = 1;

  for (const msg::Tensor& tensor : {small, last}) {
    const Matrix<float> other = workspace.floats(tensor);
    EXPECT_TRUE(std::all_of(other.data, other.data + 4 * other.rows, [](float x) { return !x; }));
    EXPECT_THROW(workspace.floats({tensor.offset(), tensor.rows() + 4, 4}), std::logic_error);
  }
  EXPECT_THROW(workspace.floats({large.offset(), kLarge + 4, 4}), std::logic_error);
}

TEST(Workspace, RefusesToGrowPastItsBound) {
  Workspace workspace;

  EXPECT_THROW(workspace.allocate(INT32_MAX, INT32_MAX), std::logic_error);
  EXPECT_THROW(workspace.allocate(-1, 4), std::logic_error);
  EXPECT_THROW(workspace.allocate(int64_t{1} << 32, 1), std::logic_error);
  EXPECT_EQ(workspace.used_bytes(), 0);
}

TEST(FirstRows, AreThoseAtTheSamePlace) {
  const msg::Tensor tensor(640, 5, 3);

  const msg::Tensor first = first_rows(tensor, 2);

  EXPECT_EQ(first.offset(), 640);
  EXPECT_EQ(first.rows(), 2);
  EXPECT_EQ(first.cols(), 3);
  EXPECT_THROW(first_rows(tensor, 6), std::logic_error);
  EXPECT_THROW(first_rows(tensor, -1), std::logic_error);
}

}  // namespace
}  // namespace troupe::actors

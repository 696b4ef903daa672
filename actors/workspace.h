// actors/workspace.h: the tensors of a rank's actors: allocated once, named by offset in messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "actors/messages/message_generated.h"
#include "base/matrix.h"
#include "base/memory.h"
#include "model/parallel_layout.h"

namespace troupe::actors {

// Grows by segments, so that sizes need not be known before the actors are built and no address
// space is reserved that a limit (RLIMIT_AS, vm.overcommit_memory 2) would count.
class Workspace {
 public:
  // A zeroed buffer [rows, cols] of 4-byte elements, for the lifetime of the rank.
  msg::Tensor allocate(int64_t rows, int64_t cols);
  size_t used_bytes() const { return used_; }

  Matrix<float> floats(const msg::Tensor& tensor) const { return view<float>(tensor); }
  Matrix<int32_t> ints(const msg::Tensor& tensor) const { return view<int32_t>(tensor); }

 private:
  template <class T>
  Matrix<T> view(const msg::Tensor& tensor) const {
    return Matrix<T>(reinterpret_cast<T*>(checked_place(tensor)), tensor.rows(), tensor.cols());
  }
  // Where the tensor lies, whole inside one segment.
  std::byte* checked_place(const msg::Tensor& tensor) const;

  struct Segment {
    Mapping memory;
    size_t first = 0;  // offset of its first byte
    size_t used = 0;
  };
  std::vector<Segment> segments_;  // by offset; tensors of one lie in one segment
  size_t used_ = 0;                // of all; padding at the end of a segment does not count
};

// The first `rows` rows of a tensor.
inline msg::Tensor first_rows(const msg::Tensor& tensor, int64_t rows) {
  TROUPE_CHECK(rows >= 0 && rows <= tensor.rows(), "{} of {}", rows, tensor.rows());
  return msg::Tensor(tensor.offset(), static_cast<int32_t>(rows), tensor.cols());
}

// Rows [range.begin, range.end) of a tensor.
inline msg::Tensor slice_rows(const msg::Tensor& tensor, const model::Range& range) {
  TROUPE_CHECK(range.begin >= 0 && range.begin <= range.end && range.end <= tensor.rows());
  return msg::Tensor(tensor.offset() + range.begin * tensor.cols() * sizeof(float),
                     static_cast<int32_t>(range.size()), tensor.cols());
}

}  // namespace troupe::actors

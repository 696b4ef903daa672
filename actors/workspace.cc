#include "actors/workspace.h"

#include <algorithm>

#include "base/checked_size.h"

namespace troupe::actors {

namespace {
constexpr size_t kMostBytes = size_t{64} << 30;
constexpr size_t kSegmentBytes = size_t{16} << 20;
constexpr size_t kAlignment = 64;
}  // namespace

msg::Tensor Workspace::allocate(int64_t rows, int64_t cols) {
  TROUPE_CHECK(rows >= 0 && cols >= 0 && rows <= INT32_MAX && cols <= INT32_MAX, "{} x {}", rows,
               cols);
  const size_t bytes = (rows * cols * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
  TROUPE_CHECK(bytes <= kMostBytes - used_, "workspace of {} bytes at most, {} used, {} wanted",
               kMostBytes, used_, bytes);
  if (segments_.empty() || bytes > segments_.back().memory.size() - segments_.back().used) {
    const size_t first =
        segments_.empty() ? 0 : segments_.back().first + segments_.back().memory.size();
    segments_.push_back({Mapping::anonymous(std::max(bytes, kSegmentBytes)), first, 0});
  }
  Segment& segment = segments_.back();
  const msg::Tensor tensor(segment.first + segment.used, static_cast<int32_t>(rows),
                           static_cast<int32_t>(cols));
  segment.used += bytes;
  used_ += bytes;
  return tensor;
}

std::byte* Workspace::checked_place(const msg::Tensor& tensor) const {
  const size_t bytes = static_cast<size_t>(tensor.rows()) * tensor.cols() * sizeof(float);
  auto segment = segments_.rbegin();
  while (segment != segments_.rend() && tensor.offset() < segment->first) ++segment;
  if (segment != segments_.rend() && tensor.rows() >= 0 && tensor.cols() >= 0) {
    const size_t inside = tensor.offset() - segment->first;
    if (is_inside(inside, bytes, segment->used)) return segment->memory.data() + inside;
  }
  TROUPE_CHECK(false, "{} x {} at {}, {} used", tensor.rows(), tensor.cols(), tensor.offset(),
               used_);
}

}  // namespace troupe::actors

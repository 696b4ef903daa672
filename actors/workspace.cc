#include "actors/workspace.h"

namespace troupe::actors {

namespace {
constexpr size_t kReservedBytes = size_t{64} << 30;
constexpr size_t kAlignment = 64;
}  // namespace

Workspace::Workspace() : memory_(Mapping::anonymous(kReservedBytes)) {}

msg::Tensor Workspace::allocate(int64_t rows, int64_t cols) {
  TROUPE_CHECK(rows >= 0 && cols >= 0 && rows <= INT32_MAX && cols <= INT32_MAX, "{} x {}", rows,
               cols);
  const size_t bytes = (rows * cols * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
  TROUPE_CHECK(bytes <= kReservedBytes - used_, "workspace of {} bytes, {} used, {} wanted",
               kReservedBytes, used_, bytes);
  const msg::Tensor tensor(used_, static_cast<int32_t>(rows), static_cast<int32_t>(cols));
  used_ += bytes;
  return tensor;
}

void Workspace::check(const msg::Tensor& tensor) const {
  TROUPE_CHECK(tensor.rows() >= 0 && tensor.cols() >= 0 && tensor.offset() <= used_ &&
                   static_cast<size_t>(tensor.rows()) * tensor.cols() * sizeof(float) <=
                       used_ - tensor.offset(),
               "{} x {} at {}, {} used", tensor.rows(), tensor.cols(), tensor.offset(), used_);
}

}  // namespace troupe::actors

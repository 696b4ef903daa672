#include "base/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"

namespace troupe {

Fd& Fd::operator=(Fd&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

Fd::~Fd() {
  if (fd_ >= 0) ::close(fd_);
}

Mapping::Mapping(int fd, size_t bytes, Access access, size_t offset) : bytes_(bytes) {
  if (bytes == 0) return;
  const int protection = access == Access::kReadOnly ? PROT_READ : PROT_READ | PROT_WRITE;
  void* address = ::mmap(nullptr, bytes, protection, MAP_SHARED, fd, static_cast<off_t>(offset));
  if (address == MAP_FAILED) throw std::runtime_error(errno_text("mmap"));
  data_ = static_cast<std::byte*>(address);
}

Mapping Mapping::anonymous(size_t bytes, Pages pages) {
  Mapping mapping;
  if (bytes == 0) return mapping;
  void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) throw std::runtime_error(errno_text("mmap"));
  if (pages == Pages::kHuge) ::madvise(address, bytes, MADV_HUGEPAGE);  // a wish, may be refused
  mapping.data_ = static_cast<std::byte*>(address);
  mapping.bytes_ = bytes;
  return mapping;
}

Mapping Mapping::reserve(size_t bytes) {
  Mapping mapping;
  if (bytes == 0) return mapping;
  void* address =
      ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) throw std::runtime_error(errno_text("mmap"));
  mapping.data_ = static_cast<std::byte*>(address);
  mapping.bytes_ = bytes;
  return mapping;
}

void Mapping::put(size_t at, size_t bytes, Access access, int fd, size_t offset) const {
  TROUPE_CHECK(at <= bytes_ && bytes <= bytes_ - at, "{} bytes at {} of {}", bytes, at, bytes_);
  if (bytes == 0) return;
  const int protection = fd < 0                        ? PROT_NONE
                         : access == Access::kReadOnly ? PROT_READ
                                                       : PROT_READ | PROT_WRITE;
  const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
  if (::mmap(data_ + at, bytes, protection, flags | MAP_FIXED, fd, static_cast<off_t>(offset)) ==
      MAP_FAILED)
    throw std::runtime_error(errno_text("mmap"));
}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    if (data_ != nullptr) ::munmap(data_, bytes_);
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

void Mapping::make_read_only() {
  if (data_ != nullptr && ::mprotect(data_, bytes_, PROT_READ) != 0)
    throw std::runtime_error(errno_text("mprotect"));
}

Fd create_shared_memory(const std::string& name, size_t bytes) {
  Fd fd(::memfd_create(name.c_str(), MFD_CLOEXEC));
  if (!fd) throw std::runtime_error(errno_text("memfd_create"));
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
    throw std::runtime_error(errno_text("ftruncate of shared memory"));
  return fd;
}

}  // namespace troupe

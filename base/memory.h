// base/memory.h: file descriptors and mappings that are released with their owner.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

namespace troupe {

// Owns a file descriptor.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept;
  ~Fd();

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// Owns one mmap()ed range. Movable, not copyable; a default one is empty.
class Mapping {
 public:
  enum class Access { kReadOnly, kReadWrite };

  Mapping() = default;
  // Maps [offset, offset + bytes) of `fd`, shared; offset is a multiple of the page size. Throws
  // std::runtime_error with the errno text.
  Mapping(int fd, size_t bytes, Access access, size_t offset = 0);
  // Private zeroed memory. kHuge asks for huge pages (MADV_HUGEPAGE): faster to stream, but the
  // memory then grows in steps of 2 MiB; a system without them gives normal ones.
  enum class Pages { kNormal, kHuge };
  static Mapping anonymous(size_t bytes, Pages pages = Pages::kNormal);
  // Addresses without memory; put() gives parts of them some. No limit of memory counts them, that
  // of addresses (RLIMIT_AS) does.
  static Mapping reserve(size_t bytes);
  // [at, at + bytes) of this range, whole pages, becomes [offset, + bytes) of `fd`, shared; with -1
  // it is without memory again. Throws std::runtime_error with the errno text.
  void put(size_t at, size_t bytes, Access access, int fd, size_t offset) const;

  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  std::byte* data() const { return data_; }
  size_t size() const { return bytes_; }
  void make_read_only();

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// Anonymous shared memory of `bytes` zero bytes, pages allocated when touched. It has no name in
// any file system: when the last process that holds it dies, however it dies, it is gone. `name`
// only labels it in /proc/PID/maps. The descriptor is close-on-exec.
Fd create_shared_memory(const std::string& name, size_t bytes);

}  // namespace troupe

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
  // Maps [0, bytes) of `fd`, shared. Throws std::runtime_error with the errno text.
  Mapping(int fd, size_t bytes, Access access);
  // Private zeroed memory, on huge pages where the system allows (MADV_HUGEPAGE).
  static Mapping anonymous(size_t bytes);

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

// Anonymous shared memory of `bytes` zero bytes, pages allocated when touched. It has no name in any
// file system: when the last process that holds it dies, however it dies, it is gone.
// `name` only labels it in /proc/PID/maps. The descriptor is close-on-exec.
Fd create_shared_memory(const std::string& name, size_t bytes);

}  // namespace troupe

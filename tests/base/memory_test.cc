#include "base/memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <stdexcept>

namespace troupe {
namespace {

constexpr size_t kPage = 4096;

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

TEST(Fd, ClosesWhatItOwns) {
  int number = -1;
  {
    const Fd fd(::open("/dev/null", O_RDONLY));
    ASSERT_TRUE(fd);
    number = fd.get();
    EXPECT_TRUE(is_open(number));
  }
  EXPECT_FALSE(is_open(number));
}

TEST(Fd, MovingHandsOverTheDescriptor) {
  Fd from(::open("/dev/null", O_RDONLY));
  const int number = from.get();
  Fd to(std::move(from));
  EXPECT_FALSE(from);
  EXPECT_EQ(to.get(), number);
  EXPECT_TRUE(is_open(number));
}

TEST(Fd, AssignmentClosesTheOldDescriptor) {
  Fd fd(::open("/dev/null", O_RDONLY));
  const int old = fd.get();
  fd = Fd(::open("/dev/zero", O_RDONLY));
  EXPECT_FALSE(is_open(old));
  EXPECT_TRUE(is_open(fd.get()));
}

TEST(SharedMemory, IsZeroAndSeenByEveryMapping) {
  const Fd fd = create_shared_memory("troupe-test", 3 * kPage);
  const Mapping writer(fd.get(), 3 * kPage, Mapping::Access::kReadWrite);
  const Mapping reader(fd.get(), 3 * kPage, Mapping::Access::kReadOnly);
  EXPECT_TRUE(std::all_of(reader.data(), reader.data() + reader.size(),
                          [](std::byte b) { return b == std::byte{0}; }));
  writer.data()[2 * kPage] = std::byte{42};
  EXPECT_EQ(reader.data()[2 * kPage], std::byte{42});
}

TEST(SharedMemory, HasNoNameInAnyFileSystem) {
  const Fd fd = create_shared_memory("troupe-test", kPage);
  const auto link = "/proc/self/fd/" + std::to_string(fd.get());
  EXPECT_EQ(std::filesystem::read_symlink(link), "/memfd:troupe-test (deleted)");
  EXPECT_FALSE(std::filesystem::exists("/dev/shm/troupe-test"));
}

TEST(SharedMemory, IsNotInheritedByAccident) {
  const Fd fd = create_shared_memory("troupe-test", kPage);
  EXPECT_TRUE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC);
}

TEST(Mapping, BeginsAtItsOffset) {
  const Fd fd = create_shared_memory("troupe-test", 2 * kPage);
  const Mapping all(fd.get(), 2 * kPage, Mapping::Access::kReadWrite);
  const Mapping second(fd.get(), kPage, Mapping::Access::kReadOnly, kPage);
  all.data()[kPage + 7] = std::byte{1};
  EXPECT_EQ(second.data()[7], std::byte{1});
  EXPECT_EQ(second.size(), kPage);
}

TEST(Mapping, SaysWhichCallFailed) {
  try {
    const Mapping mapping(-1, kPage, Mapping::Access::kReadOnly);
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "mmap: Bad file descriptor");
  }
}

TEST(Mapping, OfNoBytesNeedsNoDescriptor) {
  const Mapping mapping(-1, 0, Mapping::Access::kReadOnly);
  EXPECT_EQ(mapping.data(), nullptr);
  EXPECT_EQ(Mapping::anonymous(0).data(), nullptr);
}

TEST(Mapping, AnonymousMemoryIsZero) {
  for (const auto pages : {Mapping::Pages::kNormal, Mapping::Pages::kHuge}) {
    const Mapping mapping = Mapping::anonymous(3 * kPage, pages);
    EXPECT_TRUE(std::all_of(mapping.data(), mapping.data() + mapping.size(),
                            [](std::byte b) { return b == std::byte{0}; }));
    mapping.data()[3 * kPage - 1] = std::byte{1};
  }
}

TEST(Mapping, MovingLeavesTheSourceEmpty) {
  Mapping from = Mapping::anonymous(kPage);
  std::byte* const data = from.data();
  Mapping to;
  to = std::move(from);
  EXPECT_EQ(to.data(), data);
  EXPECT_EQ(from.data(), nullptr);
  EXPECT_EQ(from.size(), 0u);
}

TEST(MappingDeathTest, WritingToReadOnlyMemoryDies) {
  Mapping mapping = Mapping::anonymous(kPage);
  mapping.data()[0] = std::byte{1};
  mapping.make_read_only();
  EXPECT_EQ(mapping.data()[0], std::byte{1});
  EXPECT_DEATH(const_cast<volatile std::byte*>(mapping.data())[0] = std::byte{2}, "");
}

}  // namespace
}  // namespace troupe

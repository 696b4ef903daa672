// tests/model/page_cache.h: what of a file the kernel holds in memory.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "base/memory.h"

namespace troupe::model {

inline bool has_page_cache(const std::filesystem::path& path) {
  struct statfs system {};
  EXPECT_EQ(::statfs(path.c_str(), &system), 0);
  return system.f_type != TMPFS_MAGIC;
}

inline size_t num_cached_pages(const std::filesystem::path& path) {
  const size_t bytes = std::filesystem::file_size(path);
  const auto page = static_cast<size_t>(::getpagesize());
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const Mapping mapping(fd.get(), bytes, Mapping::Access::kReadOnly);
  std::vector<unsigned char> cached((bytes + page - 1) / page);
  EXPECT_EQ(::mincore(mapping.data(), bytes, cached.data()), 0);
  return static_cast<size_t>(
      std::ranges::count_if(cached, [](unsigned char flags) { return (flags & 1) != 0; }));
}

}  // namespace troupe::model
